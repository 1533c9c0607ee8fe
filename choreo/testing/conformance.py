"""What must every broker and every store do? The ports' docstrings as tests: one suite for real Kafka and for the fakes.

Subclass and supply the fixtures::

    class TestMemoryBroker(BrokerConformance):
        @pytest.fixture
        def broker(self) -> Broker: ...                # of one cluster; the suite makes and closes its clients

        @pytest.fixture
        def topic(self) -> Callable[[int], str]: ...   # makes a new topic of so many partitions; its name

    class TestMemoryStore(StoreConformance):
        @pytest.fixture
        def store(self) -> Store: ...                  # not opened yet, without claims; the suite closes it

        @pytest.fixture
        def reopen(self) -> Callable[[], Store]: ...   # another store, not opened yet, over the same claims

The cases know nothing but the ports, and no case shares a topic or a group with another. Waiting has a deadline and no
sleeps. Needs pytest; for readable failures: ``pytest.register_assert_rewrite("choreo.testing.conformance",
"choreo.testing.members")``. Longer than 300 lines, because the contract is read in one piece.
"""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar, TypeAlias

import pytest

from choreo.broker import METADATA_TOO_LARGE, REBALANCE_FAILED, Broker, Edge, Report, Start, TopicInfo
from choreo.errors import BrokerError, StoreError
from choreo.record import Headers, Outgoing, Record, TopicPartition
from choreo.store import Claim, Store
from choreo.testing.members import STEP_S, Clients, Member, Noted, send_when_there_is_room, wait_until

MakeTopic: TypeAlias = Callable[[int], str]

# As Java's producer places them on 6 partitions: (murmur2(key) & 0x7fffffff) % 6.
JAVA_PARTITIONS_OF_6: Mapping[bytes, int] = {
    b"21": 0,
    b"foobar": 0,
    b"a-little-bit-long-string": 2,
    b"a-little-bit-longer-string": 5,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": 5,
    b"abc": 3,
    b"": 3,
    b"kafka": 4,
    b"\xff\x80\x81": 4,
    b"o-1042": 2,
}


def outgoing(topic: str, value: bytes | None, *, key: bytes | None = None, partition: int | None = None, headers: Headers = ()) -> Outgoing:
    return Outgoing(topic, key, value, headers, partition)


def numbered(topic: str, count: int, *, partition: int = 0, first: int = 0) -> list[Outgoing]:
    """Records of one partition with the values 0, 1, 2, ... as text."""
    return [outgoing(topic, str(number).encode(), partition=partition) for number in range(first, first + count)]


class BrokerConformance:
    """The cases of `choreo.broker`. `deadline_s` bounds each wait; `too_large_bytes` is more than the broker takes in a value."""

    deadline_s: ClassVar[float] = 30.0
    unknown_topic_deadline_s: ClassVar[float] = 60.0
    too_large_bytes: ClassVar[int] = 3_000_000

    @pytest.fixture
    def broker(self) -> Broker:
        raise NotImplementedError("supply the broker under test")

    @pytest.fixture
    def topic(self) -> MakeTopic:
        raise NotImplementedError("supply a function that makes a topic with so many partitions and returns its name")

    @pytest.fixture
    def group(self) -> str:
        return f"group-{uuid.uuid4().hex[:12]}"

    @pytest.fixture
    def clients(self, broker: Broker) -> Iterator[Clients]:
        clients = Clients(broker, deadline_s=self.deadline_s)
        yield clients
        clients.close()

    def wait(self, condition: Callable[[], bool], *members: Member, max_records: int = 500) -> None:
        wait_until(condition, *members, max_records=max_records, deadline_s=self.deadline_s)

    def joined(self, clients: Clients, group: str, topic: str, partitions: int, *, start: Start = Edge.BEGINNING) -> Member:
        """A member that owns all partitions of the topic."""
        member = clients.member(group, topic, start=start)
        self.wait(lambda: len(member.owned) == partitions, member)
        return member

    # ---- records --------------------------------------------------------------------------------------------------------

    def test_a_record_comes_back_byte_for_byte(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        sent = [
            outgoing(name, b'{"type":"order.placed"}', key=b"o-1", headers=[("choreo-id", b"1"), ("content-type", b"application/json")]),
            outgoing(name, b"no key", key=None),
            outgoing(name, None, key=b"a tombstone"),
            outgoing(name, b"", key=b"an empty value is no tombstone"),
            outgoing(name, b"an empty key is a key", key=b""),
            outgoing(name, None, key=None),
            outgoing(name, bytes(range(256)), key=b"\x00\xff"),
            outgoing(
                name, b"headers", headers=[("twice", b"1"), ("other", b"\x00\xff\xfe"), ("twice", b"2"), ("none", None), ("empty", b"")]
            ),
            outgoing(name, random.Random(7).randbytes(500_000), key=b"large"),
        ]

        before_ms = int(time.time() * 1000) - 1
        clients.send(*sent)
        member = clients.member(group, name)
        self.wait(lambda: len(member.records) == len(sent), member)

        actual = [(record.key, record.value, list(record.headers)) for record in member.records]
        assert actual == [(record.key, record.value, list(record.headers)) for record in sent]
        assert [(record.topic, record.partition, record.offset) for record in member.records] == [(name, 0, n) for n in range(len(sent))]
        assert all(before_ms <= record.timestamp_ms <= before_ms + 60_000 for record in member.records)

    def test_records_of_each_partition_come_in_order_and_once(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(3)
        sent = [record for nth in range(200) for p in range(3) for record in numbered(name, 1, partition=p, first=nth)]

        clients.send(*sent)
        member = clients.member(group, name)
        self.wait(lambda: len(member.records) >= len(sent), member)

        for partition in range(3):
            actual = [(record.offset, record.value) for record in member.records if record.partition == partition]
            assert actual == [(number, str(number).encode()) for number in range(200)]

    def test_a_poll_gives_no_more_records_than_asked_for(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        clients.send(*numbered(name, 40, partition=0), *numbered(name, 40, partition=1))

        member = clients.member(group, name)
        self.wait(lambda: len(member.records) == 80, member, max_records=7)  # each step checks the bound

        assert sorted((record.partition, record.offset) for record in member.records) == [(p, n) for p in range(2) for n in range(40)]

    def test_a_poll_returns_with_the_first_record_long_before_its_timeout(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        member = self.joined(clients, group, name, 1)

        with sending_now_and_then(clients, name):
            started = time.monotonic()
            while len(member.records) < 5:
                member.step(timeout_s=self.deadline_s)
            waited_s = time.monotonic() - started

        assert waited_s < self.deadline_s / 3

    def test_a_poll_without_records_ends_after_its_timeout(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        member = self.joined(clients, group, name, 1)

        started = time.monotonic()
        records = member.step(timeout_s=0.2)
        waited_s = time.monotonic() - started

        assert records == []
        assert waited_s < self.deadline_s / 3

    # ---- where to begin -------------------------------------------------------------------------------------------------

    def test_a_group_that_never_committed_has_no_offsets(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)

        member = self.joined(clients, group, name, 2)

        assert member.committed == {TopicPartition(name, 0): None, TopicPartition(name, 1): None}

    def test_reading_begins_at_the_first_record_when_asked_so(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 5))

        member = clients.member(group, name, start=Edge.BEGINNING)
        self.wait(lambda: len(member.records) == 5, member)

        assert member.values() == [b"0", b"1", b"2", b"3", b"4"]

    def test_reading_begins_at_an_offset_when_asked_so(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 5))

        member = clients.member(group, name, start=3)
        self.wait(lambda: len(member.records) == 2, member)

        assert [record.offset for record in member.records] == [3, 4]

    def test_reading_begins_with_what_comes_next_when_asked_so(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 5))
        member = self.joined(clients, group, name, 1, start=Edge.END)

        # The end is looked up in its own time: what is sent meanwhile may be before it.
        sent = 5
        deadline = time.monotonic() + self.deadline_s
        while not member.records:
            assert time.monotonic() < deadline, f"nothing came: {member}"
            clients.send(*numbered(name, 1, first=sent))
            sent += 1
            member.step()
        first = member.records[0].offset
        self.wait(lambda: member.records[-1].offset == sent - 1, member)

        assert first >= 5
        assert [record.offset for record in member.records] == list(range(first, sent))

    def test_reading_begins_at_a_time_when_asked_so(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 3))
        _past_millisecond(5)
        clients.send(*numbered(name, 2, first=3))
        at_ms = clients.read_all(name)[3].timestamp_ms

        member = clients.member(group, name, start=datetime.fromtimestamp(at_ms / 1000, UTC))
        self.wait(lambda: len(member.records) >= 2, member)

        assert member.values() == [b"3", b"4"]

    def test_a_time_after_the_last_record_means_what_comes_next(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 3))
        member = self.joined(clients, group, name, 1, start=datetime.fromtimestamp(time.time() + 3600, UTC))

        clients.send(*numbered(name, 1, first=3))
        sent = 4
        while not member.records:
            clients.send(*numbered(name, 1, first=sent))
            sent += 1
            member.step()

        assert member.records[0].offset >= 3

    # ---- commits --------------------------------------------------------------------------------------------------------

    def test_a_second_consumer_of_the_group_goes_on_at_the_committed_offset(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        clients.send(*numbered(name, 6, partition=0), *numbered(name, 6, partition=1))
        first = clients.member(group, name)
        self.wait(lambda: len(first.records) == 12, first)

        first.commit({TopicPartition(name, 0): 4}, self.deadline_s)
        first.consumer.close()
        second = clients.member(group, name)
        self.wait(lambda: len(second.records) == 8, second)

        assert second.committed == {TopicPartition(name, 0): 4, TopicPartition(name, 1): None}
        assert sorted((r.partition, r.offset) for r in second.records) == [(0, 4), (0, 5), *((1, n) for n in range(6))]

    def test_a_commit_never_goes_back(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        clients.send(*numbered(name, 6, partition=0), *numbered(name, 6, partition=1))
        first = clients.member(group, name)
        self.wait(lambda: len(first.records) == 12, first)

        first.commit({TopicPartition(name, 0): 5}, self.deadline_s)
        first.begin_commit({TopicPartition(name, 0): 2})
        first.commit({TopicPartition(name, 1): 3}, self.deadline_s)  # one commit is under way at most: the one before it is over
        first.consumer.close()
        second = self.joined(clients, group, name, 2)

        assert second.committed == {TopicPartition(name, 0): 5, TopicPartition(name, 1): 3}

    def test_the_text_beside_a_committed_offset_comes_with_it(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        clients.send(*numbered(name, 9, partition=0))
        first = self.joined(clients, group, name, 2)

        first.commit({TopicPartition(name, 0): 4}, self.deadline_s, text="a text: é")
        first.consumer.close()
        second = self.joined(clients, group, name, 2)

        assert second.texts == {TopicPartition(name, 0): "a text: é"}

    def test_the_text_beside_the_same_offset_may_change_and_goes_with_an_offset_without_one(
        self, clients: Clients, topic: MakeTopic, group: str
    ) -> None:
        name = topic(2)
        clients.send(*numbered(name, 9, partition=0), *numbered(name, 9, partition=1))
        first = self.joined(clients, group, name, 2)

        for text in ("a", "b"):
            first.commit({TopicPartition(name, 0): 4, TopicPartition(name, 1): 3}, self.deadline_s, text=text)
        first.commit({TopicPartition(name, 1): 5}, self.deadline_s)
        first.consumer.close()
        second = self.joined(clients, group, name, 2)

        assert second.texts == {TopicPartition(name, 0): "b", TopicPartition(name, 1): ""}

    def test_a_text_that_is_too_long_is_refused_with_its_offset(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        partition = TopicPartition(name, 0)
        clients.send(*numbered(name, 9))
        first = self.joined(clients, group, name, 1)
        first.commit({partition: 4}, self.deadline_s, text="a")

        first.begin_commit({partition: 6}, text="x" * 4096)
        self.wait(lambda: any(result.error is not None for result in first.results), first)
        (refused,) = [result.error for result in first.results if result.error is not None]
        first.commit({partition: 7}, self.deadline_s, text="x" * 4095)

        assert refused.code == METADATA_TOO_LARGE

    def test_of_commits_in_a_row_the_newest_wins(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 100))
        first = clients.member(group, name)
        self.wait(lambda: len(first.records) == 100, first)

        for offset in range(1, 100):
            first.begin_commit({TopicPartition(name, 0): offset})
        first.commit({TopicPartition(name, 0): 100}, self.deadline_s)
        first.consumer.close()
        second = self.joined(clients, group, name, 1)

        assert second.committed == {TopicPartition(name, 0): 100}

    def test_a_commit_for_a_partition_that_another_member_owns_does_not_count(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        clients.send(*numbered(name, 6, partition=0), *numbered(name, 6, partition=1))
        first = clients.member(group, name, name="first")
        self.wait(lambda: len(first.records) == 12, first)
        first.commit({TopicPartition(name, 0): 2, TopicPartition(name, 1): 2}, self.deadline_s)
        second = clients.member(group, name, name="second")
        self.wait(lambda: len(first.owned) == len(second.owned) == 1, first, second)
        (kept,), (moved,) = first.owned, second.owned

        first.begin_commit({moved: 5})
        first.commit({kept: 6}, self.deadline_s)
        first.consumer.close()
        second.consumer.close()
        third = self.joined(clients, group, name, 2)

        assert third.committed == {kept: 6, moved: 2}

    # ---- rebalances -----------------------------------------------------------------------------------------------------

    def test_two_members_split_the_partitions_and_none_is_owned_by_both(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(4)
        journal: list[Noted] = []
        first = clients.member(group, name, name="first", journal=journal)
        self.wait(lambda: len(first.owned) == 4, first)

        second = clients.member(group, name, name="second", journal=journal)
        self.wait(lambda: len(first.owned) == len(second.owned) == 2, first, second)

        assert first.owned | second.owned == {TopicPartition(name, number) for number in range(4)}
        for moved in second.owned:
            taken, given = Noted("second", "assigned", moved), Noted("first", "revoked", moved)
            assert journal.index(given) < journal.index(taken)
        assert_owned_by_one(journal)

    def test_offsets_that_a_revoke_answers_are_committed_before_the_partition_moves(
        self, clients: Clients, topic: MakeTopic, group: str
    ) -> None:
        name = topic(2)
        clients.send(*numbered(name, 6, partition=0), *numbered(name, 6, partition=1))
        first = clients.member(group, name, name="first", on_revoked=Member.next_offsets)
        self.wait(lambda: len(first.records) == 12, first)

        second = clients.member(group, name, name="second")
        self.wait(lambda: len(second.owned) == 1, first, second)
        (moved,) = second.owned

        assert second.committed == {moved: 6}

    def test_offsets_that_a_closing_member_answers_are_committed(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 6))
        first = clients.member(group, name, on_revoked=Member.next_offsets)
        self.wait(lambda: len(first.records) == 6, first)

        first.consumer.close()
        second = self.joined(clients, group, name, 1)

        assert second.committed == {TopicPartition(name, 0): 6}

    def test_an_offset_that_a_revoke_answers_never_goes_back(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 6))
        first = clients.member(group, name, on_revoked=lambda _, partitions: dict.fromkeys(partitions, 1))
        self.wait(lambda: len(first.records) == 6, first)

        first.commit({TopicPartition(name, 0): 5}, self.deadline_s)
        first.consumer.close()
        second = self.joined(clients, group, name, 1)

        assert second.committed == {TopicPartition(name, 0): 5}

    def test_moving_partitions_loses_nothing_and_repeats_nothing(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(4)
        journal: list[Noted] = []
        first = clients.member(group, name, name="first", on_revoked=Member.next_offsets, journal=journal)
        active = [first]
        sent = 0

        def keep_sending_until(condition: Callable[[], bool]) -> None:
            nonlocal sent
            deadline = time.monotonic() + self.deadline_s
            while not condition():
                assert time.monotonic() < deadline, f"not so after {self.deadline_s} s: {active}"
                clients.send(*(outgoing(name, str(n).encode(), partition=n % 4) for n in range(sent, sent + 20)))
                sent += 20
                for member in active:
                    member.step(max_records=15)

        keep_sending_until(lambda: len(first.records) >= 50)
        second = clients.member(group, name, name="second", on_revoked=Member.next_offsets, journal=journal)
        active.append(second)
        keep_sending_until(lambda: len(second.records) >= 50)
        first.consumer.close()
        active.remove(first)
        keep_sending_until(lambda: len(second.owned) == 4)
        self.wait(lambda: len(first.records) + len(second.records) >= sent, second)

        assert sorted(int(value or b"-1") for value in first.values() + second.values()) == list(range(sent))
        assert_owned_by_one(journal)

    def test_closing_hands_the_partitions_to_the_others_and_a_second_close_does_nothing(
        self, clients: Clients, topic: MakeTopic, group: str
    ) -> None:
        name = topic(2)
        journal: list[Noted] = []
        first = clients.member(group, name, name="first", journal=journal)
        second = clients.member(group, name, name="second", journal=journal)
        self.wait(lambda: len(first.owned) == len(second.owned) == 1, first, second)

        first.consumer.close()
        after_first_close = len(journal)
        first.consumer.close()
        after_second_close = len(journal)
        self.wait(lambda: len(second.owned) == 2, second)

        assert after_second_close == after_first_close
        assert first.owned == set()
        assert_owned_by_one(journal)

    # ---- pausing --------------------------------------------------------------------------------------------------------

    def test_a_paused_partition_is_silent_while_the_others_go_on(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        member = self.joined(clients, group, name, 2)
        paused = TopicPartition(name, 0)

        member.consumer.pause([paused])
        clients.send(*numbered(name, 10, partition=0))
        for rounds in range(1, 4):
            clients.send(*numbered(name, 10, partition=1, first=rounds * 10))
            self.wait(lambda rounds=rounds: len(member.records) >= rounds * 10, member)  # type: ignore[misc]
        came_while_paused = [record for record in member.records if record.partition == 0]
        member.consumer.resume([paused])
        self.wait(lambda: len(member.records) >= 40, member)

        assert came_while_paused == []
        assert [record.offset for record in member.records if record.partition == 0] == list(range(10))

    def test_a_pause_within_a_backlog_loses_nothing_and_repeats_nothing(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        clients.send(*numbered(name, 1000))
        member = clients.member(group, name)
        self.wait(lambda: len(member.records) > 0, member, max_records=10)

        while len(member.records) < 1000:
            member.consumer.pause([TopicPartition(name, 0)])
            assert [member.step(max_records=10, timeout_s=0) for _ in range(3)] == [[], [], []]
            member.consumer.resume([TopicPartition(name, 0)])
            wanted = min(len(member.records) + 150, 1000)
            self.wait(lambda wanted=wanted: len(member.records) >= wanted, member, max_records=30)  # type: ignore[misc]

        assert [record.offset for record in member.records] == list(range(1000))

    def test_a_partition_paused_while_it_is_assigned_is_silent_from_the_start(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        paused = TopicPartition(name, 0)
        clients.send(*numbered(name, 10, partition=0), *numbered(name, 10, partition=1))

        member = clients.member(group, name, on_assigned=lambda member, _: member.consumer.pause([paused]))
        self.wait(lambda: len(member.records) >= 10, member)
        clients.send(*numbered(name, 10, partition=1, first=10))
        self.wait(lambda: len(member.records) >= 20, member)
        came_while_paused = [record for record in member.records if record.partition == 0]
        member.consumer.resume([paused])
        self.wait(lambda: len(member.records) >= 30, member)

        assert came_while_paused == []

    def test_an_assignment_that_could_not_be_answered_for_now_ends_the_consumer_and_a_new_one_reads_everything(
        self, clients: Clients, topic: MakeTopic, group: str
    ) -> None:
        name = topic(1)
        clients.send(*numbered(name, 3))
        problem = BrokerError("the marks can't be read just now", code="_TIMED_OUT")

        def fails(member: Member, partitions: Sequence[TopicPartition]) -> None:
            raise problem

        unlucky = clients.member(group, name, name="unlucky", on_assigned=fails)
        with pytest.raises(BrokerError) as raised:
            self.wait(lambda: len(unlucky.records) > 0, unlucky)
        unlucky.consumer.close()
        lucky = clients.member(group, name, name="lucky")
        self.wait(lambda: len(lucky.records) == 3, lucky)

        assert (raised.value.code, raised.value.retriable) == (REBALANCE_FAILED, False)
        assert str(problem) in str(raised.value)
        assert unlucky.records == []

    def test_a_partition_that_comes_back_is_paused_no_more(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(2)
        first = clients.member(group, name, name="first")
        self.wait(lambda: len(first.owned) == 2, first)
        first.consumer.pause(list(first.owned))
        second = clients.member(group, name, name="second")
        self.wait(lambda: len(first.owned) == len(second.owned) == 1, first, second)
        (moved,) = second.owned

        second.consumer.close()
        self.wait(lambda: len(first.owned) == 2, first)
        clients.send(*numbered(name, 5, partition=moved.partition))
        self.wait(lambda: len(first.records) >= 5, first)

        assert {record.partition for record in first.records} == {moved.partition}

    def test_pausing_a_partition_that_is_not_assigned_does_nothing(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        name = topic(1)
        strangers = [TopicPartition(name, 7), TopicPartition(f"{name}-other", 0)]
        clients.send(*numbered(name, 3))
        member = clients.member(group, name)

        member.consumer.pause([*strangers, TopicPartition(name, 0)])
        member.consumer.resume(strangers)
        self.wait(lambda: len(member.records) == 3, member)

        assert member.values() == [b"0", b"1", b"2"]

    # ---- the producer ---------------------------------------------------------------------------------------------------

    def test_each_record_is_reported_once_with_its_partition_and_offset(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(3)
        producer = clients.producer()
        reports: list[tuple[int, Report]] = []

        for nth in range(300):
            record = outgoing(name, str(nth).encode(), key=str(nth % 50).encode())
            send_when_there_is_room(producer, record, lambda report, nth=nth: reports.append((nth, report)))  # type: ignore[misc]
        left = producer.flush(self.deadline_s)
        producer.poll(0)

        assert left == 0
        assert sorted(nth for nth, _ in reports) == list(range(300))
        assert [report.error for _, report in reports] == [None] * 300
        reported = {(report.partition, report.offset): str(nth).encode() for nth, report in reports}
        assert reported == {(record.partition, record.offset): record.value for record in clients.read_all(name)}

    def test_a_report_comes_from_poll_or_flush_and_never_from_send(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(1)
        producer = clients.producer()
        reports: list[Report] = []

        for record in numbered(name, 100):
            producer.send(record, reports.append)
        before_poll = len(reports)
        counted, deadline = 0, time.monotonic() + self.deadline_s
        while counted < 100 and time.monotonic() < deadline:
            counted += producer.poll(STEP_S)

        assert before_poll == 0
        assert counted == len(reports) == 100
        assert [report.offset for report in reports] == list(range(100))

    def test_a_key_goes_to_the_partition_that_java_chooses(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(6)

        reports = clients.send(*(outgoing(name, b"x", key=key) for key in JAVA_PARTITIONS_OF_6))

        assert dict(zip(JAVA_PARTITIONS_OF_6, (report.partition for report in reports), strict=True)) == JAVA_PARTITIONS_OF_6

    def test_an_explicit_partition_goes_before_the_key(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(6)

        reports = clients.send(*(outgoing(name, b"x", key=b"abc", partition=partition) for partition in range(6)))

        assert [report.partition for report in reports] == list(range(6))

    def test_records_without_a_key_reach_every_partition(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(3)
        reached: set[int] = set()

        deadline = time.monotonic() + self.deadline_s
        while len(reached) < 3 and time.monotonic() < deadline:
            reached |= {report.partition for report in clients.send(outgoing(name, b"x"))}

        assert reached == {0, 1, 2}

    def test_a_record_that_is_too_large_is_refused_for_good(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(1)
        too_large = outgoing(name, random.Random(7).randbytes(self.too_large_bytes))

        error = self.refusal(clients, too_large, self.deadline_s)
        clients.send(outgoing(name, b"the next one goes through"))

        assert (error.code, error.retriable) == ("MSG_SIZE_TOO_LARGE", False)
        assert [record.value for record in clients.read_all(name)] == [b"the next one goes through"]

    def test_a_record_for_an_unknown_topic_is_refused_for_good(self, clients: Clients) -> None:
        missing = outgoing(f"missing-{uuid.uuid4().hex[:12]}", b"x")

        error = self.refusal(clients, missing, self.unknown_topic_deadline_s)

        assert error.code in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC")
        assert not error.retriable

    def refusal(self, clients: Clients, record: Outgoing, deadline_s: float) -> BrokerError:
        """The error that `send` raised or, just as well, that was reported."""
        producer = clients.producer()
        reports: list[Report] = []
        try:
            producer.send(record, reports.append)
        except BrokerError as error:
            assert producer.flush(deadline_s) == 0
            assert reports == []
            return error
        assert producer.flush(deadline_s) == 0
        (reported,) = reports
        assert reported.error is not None
        return reported.error

    def test_closing_a_producer_reports_what_is_out_and_a_second_close_does_nothing(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(1)
        producer = clients.producer()
        reports: list[Report] = []
        for record in numbered(name, 50):
            producer.send(record, reports.append)

        left = producer.close(self.deadline_s)
        again = producer.close(self.deadline_s)

        assert (left, again) == (0, 0)
        assert [report.error for report in reports] == [None] * 50

    # ---- reading logs ---------------------------------------------------------------------------------------------------

    def test_a_reader_says_where_each_partition_begins_and_ends(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(2)
        clients.send(*numbered(name, 4, partition=1))

        ends = clients.reader().ends(name)

        assert ends == {TopicPartition(name, 0): (0, 0), TopicPartition(name, 1): (0, 4)}

    def test_a_reader_refuses_an_unknown_topic(self, clients: Clients) -> None:
        with pytest.raises(BrokerError) as refused:
            clients.reader().ends(f"missing-{uuid.uuid4().hex[:12]}")

        assert refused.value.code == "UNKNOWN_TOPIC_OR_PART"

    def test_a_reader_reads_from_where_it_was_told_and_knows_its_position(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(3)
        clients.send(*(record for p in range(3) for record in numbered(name, 6, partition=p)))
        reader = clients.reader()

        reader.assign({TopicPartition(name, 0): 0, TopicPartition(name, 1): 4})
        position_before = dict(reader.position())
        records = self.read(reader.read, 8)

        assert sorted((r.partition, r.offset) for r in records) == [*((0, n) for n in range(6)), (1, 4), (1, 5)]
        assert position_before == {TopicPartition(name, 0): 0, TopicPartition(name, 1): 4}
        assert dict(reader.position()) == {TopicPartition(name, 0): 6, TopicPartition(name, 1): 6}

    def test_a_reader_that_is_assigned_anew_reads_the_new_partitions_and_no_others(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(2)
        clients.send(*numbered(name, 3, partition=0), *numbered(name, 3, partition=1))
        reader = clients.reader()
        reader.assign({TopicPartition(name, 0): 0})
        self.read(reader.read, 3)

        reader.assign({TopicPartition(name, 1): 1})
        clients.send(*numbered(name, 3, partition=0, first=3), *numbered(name, 1, partition=1, first=3))
        records = self.read(reader.read, 3)

        assert [(record.partition, record.offset) for record in records] == [(1, 1), (1, 2), (1, 3)]
        assert dict(reader.position()) == {TopicPartition(name, 1): 4}

    def test_a_reader_returns_with_the_first_record_long_before_its_timeout(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(1)
        reader = clients.reader()
        reader.assign({TopicPartition(name, 0): 0})
        nothing = reader.read(0.05)

        with sending_now_and_then(clients, name):
            started = time.monotonic()
            records: list[Record] = []
            while len(records) < 5:
                records += reader.read(self.deadline_s)
            waited_s = time.monotonic() - started

        assert nothing == []
        assert [record.offset for record in records] == list(range(len(records)))
        assert waited_s < self.deadline_s / 3

    def test_closing_a_reader_twice_is_closing_it_once(self, clients: Clients, topic: MakeTopic) -> None:
        reader = clients.reader()
        reader.assign({TopicPartition(topic(1), 0): 0})

        reader.close()
        reader.close()

    def read(self, read: Callable[[float], Sequence[Record]], wanted: int) -> list[Record]:
        """Reads until `wanted` records came, and once more."""
        records: list[Record] = []
        deadline = time.monotonic() + self.deadline_s
        while len(records) < wanted:
            assert time.monotonic() < deadline, f"{len(records)} of {wanted} records came within {self.deadline_s} s"
            records += read(STEP_S)
        return [*records, *read(STEP_S)]

    # ---- the cluster ----------------------------------------------------------------------------------------------------

    def test_a_topic_that_was_made_is_there_and_cannot_be_made_again(self, broker: Broker) -> None:
        cluster = broker.cluster()
        name = f"made-{uuid.uuid4().hex[:12]}"
        wanted = TopicInfo(name, 3, 1, {"cleanup.policy": "compact"})

        cluster.create([wanted])
        made = self.visible(broker, name, 3)
        with pytest.raises(BrokerError) as refused:
            cluster.create([wanted])

        assert (made.name, made.partitions, made.replication, made.config) == (name, 3, 1, wanted.config)
        assert made.retention_ms == -1  # of each key the last is kept
        assert (refused.value.code, refused.value.retriable) == ("TOPIC_ALREADY_EXISTS", False)
        cluster.close()

    def test_a_topic_says_for_how_long_its_records_are_kept(self, broker: Broker) -> None:
        cluster = broker.cluster()
        name = f"made-{uuid.uuid4().hex[:12]}"

        cluster.create([TopicInfo(name, 1, 1, {"retention.ms": "60000"})])
        made = self.visible(broker, name, 1)
        cluster.close()

        assert made.retention_ms == 60_000

    def test_partitions_can_be_added(self, broker: Broker, clients: Clients, topic: MakeTopic) -> None:
        name = topic(2)
        cluster = broker.cluster()

        cluster.add_partitions(name, 5)
        grown = self.visible(broker, name, 5)

        assert grown.partitions == 5
        assert len(clients.reader().ends(name)) == 5
        cluster.close()

    def test_partitions_cannot_be_taken_away(self, broker: Broker, topic: MakeTopic) -> None:
        name = topic(3)
        cluster = broker.cluster()

        with pytest.raises(BrokerError) as refused:
            cluster.add_partitions(name, 2)

        assert (refused.value.code, refused.value.retriable) == ("INVALID_PARTITIONS", False)
        cluster.close()

    def test_a_topics_settings_are_set_beside_those_it_has(self, broker: Broker) -> None:
        cluster = broker.cluster()
        name = f"set-{uuid.uuid4().hex[:12]}"
        cluster.create([TopicInfo(name, 1, 1, {"retention.ms": "1000000", "cleanup.policy": "delete"})])
        self.visible(broker, name, 1)

        cluster.configure(name, {"cleanup.policy": "compact", "max.message.bytes": "2097152"})

        deadline = time.monotonic() + self.deadline_s
        wanted = {"retention.ms": "1000000", "cleanup.policy": "compact", "max.message.bytes": "2097152"}
        while (found := cluster.topics()[name].config) != wanted:
            assert time.monotonic() < deadline, f"{name}: {found}"
        cluster.close()

    def test_a_topic_has_an_id_of_its_own(self, broker: Broker, topic: MakeTopic) -> None:
        one, other = topic(1), topic(2)
        cluster = broker.cluster()
        try:
            found = cluster.topic_ids([one, other, "no-such-topic"])
            again = cluster.topic_ids([one])
        finally:
            cluster.close()

        assert found.keys() == {one, other}
        assert [len(found[one]), len(found[other]), found[one] == found[other]] == [16, 16, False]
        assert again == {one: found[one]}

    def test_a_cluster_counts_its_brokers(self, broker: Broker) -> None:
        cluster = broker.cluster()

        assert cluster.brokers() >= 1
        cluster.close()

    def test_a_cluster_describes_itself_in_one_line(self, broker: Broker) -> None:
        cluster = broker.cluster()

        line = cluster.describe()

        assert line
        assert "\n" not in line
        cluster.close()

    def visible(self, broker: Broker, topic: str, partitions: int) -> TopicInfo:
        """The topic, once the cluster shows it with so many partitions."""
        cluster = broker.cluster()
        deadline = time.monotonic() + self.deadline_s
        while (found := cluster.topics().get(topic)) is None or found.partitions != partitions:
            assert time.monotonic() < deadline, f"{topic} with {partitions} partitions did not show up, but {found}"
        cluster.close()
        return found


def assert_owned_by_one(journal: Sequence[Noted]) -> None:
    """Walks through the calls of all listeners: a partition is assigned only while nobody owns it, and taken from who owns it."""
    owners: dict[TopicPartition, str] = {}
    for member, what, partition in journal:
        if what == "assigned":
            assert partition not in owners, f"{partition} was assigned to {member} while {owners[partition]} owned it: {journal}"
            owners[partition] = member
        else:
            assert owners.pop(partition, None) == member, f"{partition} was {what} from {member}, which did not own it: {journal}"


@contextmanager
def sending_now_and_then(clients: Clients, topic: str) -> Iterator[None]:
    """Another thread sends a record every 50 ms: all but the first come while the caller is waiting for them."""
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            clients.send(outgoing(topic, b"now and then"))
            over.wait(0.05)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield
    finally:
        over.set()
        sender.join()


def _past_millisecond(count: int) -> None:
    """Waits until the wall clock is `count` milliseconds on."""
    until = time.time_ns() // 1_000_000 + count
    while time.time_ns() // 1_000_000 <= until:
        pass


class StoreConformance:
    """The cases of `choreo.store`."""

    deadline_s: ClassVar[float] = 30.0

    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("supply the store under test, not opened yet, without claims")

    @pytest.fixture
    def reopen(self) -> Callable[[], Store]:
        raise NotImplementedError("supply a function that makes another store, not opened yet, over the same claims")

    @pytest.fixture
    def payments(self, store: Store) -> Iterator[Store]:
        """The store, open for the service `payments`."""
        store.open("payments")
        yield store
        store.close()

    @pytest.fixture
    def another(self, store: Store, reopen: Callable[[], Store]) -> Iterator[Callable[[str], Store]]:
        """Opens one more store over the same claims: another member's, or this one's after a restart."""
        opened: list[Store] = []

        def open_one(service: str) -> Store:
            one = reopen()
            one.open(service)
            opened.append(one)
            return one

        yield open_one
        for one in opened:
            one.close()

    def test_a_claim_is_found_once_it_was_made(self, payments: Store) -> None:
        made, other = Claim("charge-card", "e-1"), Claim("charge-card", "e-2")

        before = payments.lookup([made, other])
        already = payments.claim([made])
        after = payments.lookup([made, other])

        assert (before, already, after) == (set(), set(), {made})

    def test_claiming_says_which_were_there_already_and_writes_the_others(self, payments: Store) -> None:
        claims = [Claim("charge-card", f"e-{number}") for number in range(10)]
        payments.claim(claims[:4])

        already = payments.claim(claims[2:])

        assert already == set(claims[2:4])
        assert payments.lookup(claims) == set(claims)

    def test_a_claim_that_stands_twice_in_one_call_is_made_once(self, payments: Store) -> None:
        claim = Claim("charge-card", "e-1")

        first = payments.claim([claim, claim])
        second = payments.claim([claim, claim])

        assert (first, second) == (set(), {claim})

    def test_handler_event_and_run_each_tell_claims_apart(self, payments: Store) -> None:
        made = Claim("charge-card", "e-1", "run-1")
        others = [Claim("charge-card", "e-1"), Claim("charge-card", "e-1", "run-2"), Claim("charge-card", "e-2", "run-1")]
        others += [Claim("book-payment", "e-1", "run-1"), Claim("e-1", "charge-card", "run-1"), Claim("Charge-card", "e-1", "run-1")]

        payments.claim([made])

        assert payments.lookup([made, *others]) == {made}
        assert payments.claim(others) == set()

    def test_beside_a_claim_stands_the_payload_that_was_first(self, payments: Store, another: Callable[[str], Store]) -> None:
        first, second, bare = Claim("charge-card", "e-1"), Claim("charge-card", "e-2"), Claim("charge-card", "e-3")
        payments.claim([first, second], [b"\x00\xff" * 16, b"two"])
        payments.claim([bare])

        already = payments.claim([second, first], [b"other", b"other"])

        assert already == {first, second}
        expected = {first: b"\x00\xff" * 16, second: b"two", bare: b""}
        stranger = Claim("charge-card", "e-4")
        assert payments.payloads([first, second, bare, stranger]) == another("payments").payloads(expected) == expected

    def test_services_do_not_see_each_others_claims(self, payments: Store, another: Callable[[str], Store]) -> None:
        claim = Claim("charge-card", "e-1")
        payments.claim([claim])

        stock = another("stock")

        assert stock.lookup([claim]) == set()
        assert stock.claim([claim]) == set()
        assert payments.lookup([claim]) == {claim}

    def test_another_member_sees_the_claims_at_once(self, payments: Store, another: Callable[[str], Store]) -> None:
        other_member = another("payments")
        claim = Claim("charge-card", "e-1")

        payments.claim([claim])

        assert other_member.lookup([claim]) == {claim}
        assert other_member.claim([claim]) == {claim}

    def test_claims_are_there_after_a_restart(self, payments: Store, another: Callable[[str], Store]) -> None:
        claims = [Claim("charge-card", f"e-{number}", "run-1") for number in range(3)]
        payments.claim(claims)
        payments.close()

        restarted = another("payments")

        assert restarted.lookup(claims) == set(claims)

    def test_of_two_members_that_claim_the_same_exactly_one_is_first(self, payments: Store, another: Callable[[str], Store]) -> None:
        claims = [Claim("charge-card", f"e-{number}") for number in range(200)]
        stores = [payments, another("payments")]
        new: list[list[Claim]] = [[], []]

        def claim_all(which: int) -> None:
            order = claims if which == 0 else claims[::-1]
            for at in range(0, len(order), 10):
                burst = order[at : at + 10]
                already = stores[which].claim(burst)
                new[which] += [claim for claim in burst if claim not in already]

        threads = [threading.Thread(target=claim_all, args=[which]) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(new[0] + new[1]) == sorted(claims)

    def test_thousands_at_once_are_claimed_and_found(self, payments: Store) -> None:
        claims = [Claim(f"handler-{number % 7}", f"e-{number}", "" if number % 3 else "run-1") for number in range(5000)]
        strangers = [Claim(f"handler-{number % 7}", f"none-{number}") for number in range(5000)]

        first = payments.claim(claims)

        assert first == set()
        assert payments.lookup(claims + strangers) == set(claims)
        assert payments.claim(claims) == set(claims)

    @pytest.mark.parametrize(
        "event_id",
        [
            "it's",
            'quo"ted',
            "per%cent_",
            "back\\slash",
            "größe-日本-🙂",
            "A",
            "a",
            "trailing ",
            "x" * 128,
            "\x00nul",
            "a\nb",
            "0198",
            "198",
        ],
    )
    def test_any_text_that_a_producer_may_send_as_an_id_is_an_id(self, payments: Store, event_id: str) -> None:
        claim = Claim("charge-card", event_id)
        neighbours = {Claim("charge-card", near) for near in (event_id.strip("\x00 "), event_id.upper(), event_id[:-1], "")} - {claim}

        first = payments.claim([claim])

        assert first == set()
        assert payments.lookup([claim, *neighbours]) == {claim}
        assert payments.claim([claim]) == {claim}

    def test_ids_that_would_look_alike_escaped_are_told_apart(self, payments: Store) -> None:
        claims = [Claim("charge-card", event_id) for event_id in ("\x00", "\\0", "\\\\0", "\\x00", "\\u0000", "%00")]

        for number, claim in enumerate(claims):
            assert payments.lookup(claims) == set(claims[:number])
            assert payments.claim([claim]) == set()

    def test_claims_that_are_old_enough_are_deleted_and_can_be_made_anew(self, payments: Store) -> None:
        claim = Claim("charge-card", "e-1")
        made_s = time.monotonic()
        payments.claim([claim], [b"first"])

        while payments.delete_older(0.2, 10) == 0:
            assert time.monotonic() - made_s < self.deadline_s
        age_s, left = time.monotonic() - made_s, payments.lookup([claim])
        already = payments.claim([claim], [b"second"])

        assert age_s > 0.19
        assert (left, already) == (set(), set())
        assert payments.payloads([claim]) == {claim: b"second"}

    def test_claims_that_are_not_old_enough_stay(self, payments: Store) -> None:
        claims = [Claim("charge-card", f"e-{number}") for number in range(20)]
        payments.claim(claims)
        # Sixty milliseconds would be over.
        _past_millisecond(100)

        deleted = payments.delete_older(60.0, 1_000)

        assert deleted == 0
        assert payments.lookup(claims) == set(claims)

    def test_the_oldest_claims_are_deleted_first_and_no_more_than_were_asked_for(self, payments: Store) -> None:
        # Neither the order of the ids nor that of the handlers is the order of time.
        claims = [Claim(f"handler-{number * 3 % 7}", f"e-{number * 5 % 7}") for number in range(7)]
        for claim in claims:
            payments.claim([claim])
            _past_millisecond(2)

        deleted, left = [], []
        for _ in range(4):
            deleted.append(payments.delete_older(0.0, 2))
            left.append(payments.lookup(claims))

        assert deleted == [2, 2, 2, 1]
        assert left == [set(claims[2:]), set(claims[4:]), set(claims[6:]), set()]

    def test_claims_of_another_service_are_left_alone(self, payments: Store, another: Callable[[str], Store]) -> None:
        claim = Claim("charge-card", "e-1")
        stock = another("stock")
        stock.claim([claim])
        payments.claim([claim])

        deleted = payments.delete_older(0.0, 10)

        assert deleted == 1
        assert stock.lookup([claim]) == {claim}
        assert stock.delete_older(0.0, 10) == 1

    def test_members_that_delete_at_once_delete_each_claim_once(self, payments: Store, another: Callable[[str], Store]) -> None:
        claims = [Claim("charge-card", f"e-{number}") for number in range(300)]
        payments.claim(claims)
        _past_millisecond(2)
        stores, deleted = [payments, another("payments")], [0, 0]

        def delete_all(which: int) -> None:
            until = time.monotonic() + self.deadline_s
            while stores[which].lookup(claims) and time.monotonic() < until:
                deleted[which] += stores[which].delete_older(0.0, 10)

        threads = [threading.Thread(target=delete_all, args=[which]) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sum(deleted) == len(claims)
        assert payments.lookup(claims) == set()

    def test_no_claims_are_none(self, payments: Store) -> None:
        assert payments.lookup([]) == set()
        assert payments.claim([]) == set()
        assert payments.payloads([]) == {}
        assert payments.delete_older(0.0, 10) == 0

    def test_a_second_open_and_a_second_close_do_nothing(self, store: Store) -> None:
        claim = Claim("charge-card", "e-1")
        store.open("payments")
        store.claim([claim])

        store.open("payments")
        found = store.lookup([claim])
        store.close()
        store.close()

        assert found == {claim}

    def test_a_store_that_is_not_open_refuses(self, store: Store) -> None:
        claim = Claim("charge-card", "e-1")

        with pytest.raises(StoreError) as not_yet:
            store.lookup([claim])
        store.open("payments")
        store.close()
        with pytest.raises(StoreError) as no_more:
            store.claim([claim])
        with pytest.raises(StoreError):
            store.delete_older(0.0, 10)

        assert not not_yet.value.retriable
        assert not no_more.value.retriable

    def test_a_store_describes_itself_in_one_line(self, store: Store) -> None:
        line = store.describe()

        assert line
        assert "\n" not in line
