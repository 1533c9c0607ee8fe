"""What must every transactor do? The docstrings of `choreo.broker.Transactor` and `Consumer.identity` as tests, for real Kafka and memory.

Subclass and supply the fixtures `broker` and `topic`, as for `choreo.testing.conformance.BrokerConformance`. The cases know nothing
but the ports; none shares a topic, a group or a transactional id with another. Needs pytest; for readable failures:
``pytest.register_assert_rewrite("choreo.testing.transactor_conformance", "choreo.testing.members")``. Longer than 300 lines, because
the contract is read in one piece.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar

import pytest

from choreo.broker import FENCED, METADATA_TOO_LARGE, Broker, Edge, Ended, Part, Report, TopicInfo, Transactor, Work
from choreo.errors import BrokerError
from choreo.record import Committed, Outgoing, Record, TopicPartition
from choreo.testing.conformance import JAVA_PARTITIONS_OF_6, MakeTopic, numbered, outgoing
from choreo.testing.members import STEP_S, Clients, Member, Revoked, wait_until

MOVED = frozenset({"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID"})
"""Codes of a group that doesn't know the member, or not by this generation."""
_MARK = b"the end, as the suite sees it"


class TransactorConformance:
    """The cases of `choreo.broker.Transactor`. `deadline_s` bounds each wait; the broker takes no value of `too_large_bytes`."""

    deadline_s: ClassVar[float] = 30.0
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

    @pytest.fixture
    def transactor(self, clients: Clients) -> Transactor:
        """One that is open, with an id of its own."""
        return self.opened(clients.transactor(_new_id()))

    # ---- what the cases are made of -------------------------------------------------------------------------------------

    def wait(self, condition: Callable[[], bool], *members: Member) -> None:
        wait_until(condition, *members, deadline_s=self.deadline_s)

    def opened(self, transactor: Transactor) -> Transactor:
        deadline = time.monotonic() + self.deadline_s
        while True:
            try:
                transactor.open()
            except BrokerError as error:
                if not error.retriable or time.monotonic() > deadline:
                    raise
            else:
                return transactor

    def joined(self, clients: Clients, group: str, topic: str, partitions: int, *, start: Edge = Edge.BEGINNING) -> Member:
        """A member that owns all partitions of the topic."""
        member = clients.member(group, topic, start=start)
        self.wait(lambda: len(member.owned) == partitions, member)
        return member

    def ran(self, transactor: Transactor, member: Member, group: str, offsets: Mapping[TopicPartition, Committed], *parts: Part) -> Ended:
        """How it ended, the group's own moves left out: then it is run again, as the member is known by then."""
        deadline = time.monotonic() + self.deadline_s
        while True:
            identity = member.consumer.identity()
            if identity is not None:
                ended = transactor.run(Work(parts, offsets, group, identity))
                if ended.error is None or ended.error.code not in MOVED:
                    return ended
                assert (ended.outcome, ended.refused, ended.hindered) == ("aborted", {}, {})
            assert time.monotonic() < deadline, f"the group moves for ever: {member}"
            member.step()

    def everything(self, clients: Clients, topic: str) -> list[Record]:
        """All that is committed, by partition, then offset, as a reader and as a consumer have it. A mark behind it says where it ends."""
        reader = clients.reader()
        firsts = {partition: first for partition, (first, _) in reader.ends(topic).items()}
        mark = _MARK + uuid.uuid4().bytes
        clients.send(*(outgoing(topic, mark, partition=partition.partition) for partition in firsts))
        reader.assign(firsts)
        read: list[Record] = []
        deadline = time.monotonic() + self.deadline_s
        while sum(record.value == mark for record in read) < len(firsts):
            assert time.monotonic() < deadline, f"{topic}: read to {reader.position()} within {self.deadline_s} s"
            read += reader.read(STEP_S)
        reader.close()
        member = clients.member(f"look-{uuid.uuid4().hex[:12]}", topic)
        self.wait(lambda: sum(value == mark for value in member.values()) == len(firsts), member)
        member.consumer.close()
        found, consumed = (
            sorted((r for r in records if not (r.value or b"").startswith(_MARK)), key=lambda r: (r.partition, r.offset))
            for records in (read, member.records)
        )
        assert found == consumed
        return found

    def values(self, clients: Clients, topic: str) -> list[bytes | None]:
        return [record.value for record in self.everything(clients, topic)]

    def committed(self, clients: Clients, group: str, topic: str, partitions: int) -> dict[TopicPartition, int | None]:
        """What a new member of the group, which has no other by now, is told."""
        member = self.joined(clients, group, topic, partitions, start=Edge.END)
        member.consumer.close()
        return member.committed

    # ---- all of it ------------------------------------------------------------------------------------------------------

    def test_records_and_offsets_with_their_texts_are_there_and_the_next_member_goes_on_from_there(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(2), topic(3)
        one, two = TopicPartition(orders, 0), TopicPartition(orders, 1)
        clients.send(*numbered(orders, 6, partition=0), *numbered(orders, 6, partition=1))
        first = self.joined(clients, group, orders, 2)
        parts = [Part([outgoing(payments, f"{part}-{n}".encode(), key=b"k") for n in range(2)]) for part in range(3)]

        ended = self.ran(transactor, first, group, {one: Committed(4, "a text: é"), two: Committed(5)}, *parts)
        first.consumer.close()
        second = clients.member(group, orders)
        self.wait(lambda: len(second.records) == 3, second)

        assert ended == Ended("committed")
        assert (second.committed, second.texts) == ({one: 4, two: 5}, {one: "a text: é", two: ""})
        assert sorted((record.partition, record.offset) for record in second.records) == [(0, 4), (0, 5), (1, 5)]
        assert sorted(self.values(clients, payments), key=str) == [b"0-0", b"0-1", b"1-0", b"1-1", b"2-0", b"2-1"]

    def test_the_records_of_a_key_stand_in_the_order_of_the_parts(self, clients: Clients, topic: MakeTopic, transactor: Transactor) -> None:
        name = topic(3)
        keys = [b"a", b"b", b"c", b"d"]
        parts = [Part([outgoing(name, f"{part}-{n}".encode(), key=key) for n in range(5) for key in keys]) for part in range(20)]

        ended = transactor.run(Work(parts))

        assert ended == Ended("committed")
        found = self.everything(clients, name)
        for key in keys:
            of_key = [record for record in found if record.key == key]
            assert [record.value for record in of_key] == [f"{part}-{n}".encode() for part in range(20) for n in range(5)]
            assert len({record.partition for record in of_key}) == 1

    def test_a_part_is_told_where_its_records_stand_and_may_say_more(
        self, clients: Clients, topic: MakeTopic, transactor: Transactor
    ) -> None:
        letters, states = topic(3), topic(1)

        def said(number: int, reports: Sequence[Report]) -> list[Outgoing]:
            assert all(report.error is None for report in reports)
            places = ",".join(f"{report.partition}@{report.offset}" for report in reports)
            return [outgoing(states, f"{number}:{places}".encode())]

        parts = [
            Part([outgoing(letters, b"0a", key=b"x"), outgoing(letters, b"0b", partition=2)], lambda reports: said(0, reports)),
            Part([outgoing(states, b"first of all")]),
            Part([], lambda reports: said(2, reports)),
            Part([outgoing(letters, b"3", key=b"y")], lambda reports: said(3, reports)),
        ]

        before = transactor.run(Work(parts[:1]))
        ended = transactor.run(Work(parts))

        assert (before, ended) == (Ended("committed"), Ended("committed"))
        places: dict[bytes | None, list[str]] = {}
        for record in self.everything(clients, letters):
            places.setdefault(record.value, []).append(f"{record.partition}@{record.offset}")
        expected = [f"0:{places[b'0a'][nth]},{places[b'0b'][nth]}".encode() for nth in range(2)]
        assert self.values(clients, states) == [expected[0], b"first of all", expected[1], b"2:", f"3:{places[b'3'][0]}".encode()]

    def test_nobody_sees_anything_before_it_is_committed_nor_what_others_wrote_behind_it(
        self, clients: Clients, topic: MakeTopic, transactor: Transactor
    ) -> None:
        name = topic(1)
        place = TopicPartition(name, 0)
        other = self.opened(clients.transactor(_new_id()))
        reader = clients.reader()
        seen: list[object] = []

        def look(_: Sequence[Report]) -> list[Outgoing]:
            seen.append(other.run(Work([Part([outgoing(name, b"another's", partition=0)])])))
            clients.send(outgoing(name, b"a producer's", partition=0))
            reader.assign({place: 0})
            seen.append((reader.ends(name)[place], reader.read(0.2)))
            return [outgoing(name, b"the last", partition=0)]

        ended = transactor.run(Work([Part([outgoing(name, b"the first", partition=0)], look)]))

        assert ended == Ended("committed")
        assert seen == [Ended("committed"), ((0, 0), [])]
        assert self.values(clients, name) == [b"the first", b"another's", b"a producer's", b"the last"]

    def test_without_offsets_nobody_need_say_who_it_is(self, clients: Clients, topic: MakeTopic, transactor: Transactor) -> None:
        name = topic(1)

        ended = transactor.run(Work([Part([outgoing(name, b"x")])]))

        assert ended == Ended("committed")
        assert self.values(clients, name) == [b"x"]

    def test_offsets_alone_are_a_transaction_and_so_is_nothing(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders = topic(2)
        clients.send(*numbered(orders, 6))
        member = self.joined(clients, group, orders, 2)

        nothing = transactor.run(Work())
        ended = self.ran(transactor, member, group, {TopicPartition(orders, 0): Committed(3)})
        member.consumer.close()

        assert (nothing, ended) == (Ended("committed"), Ended("committed"))
        assert self.committed(clients, group, orders, 2) == {TopicPartition(orders, 0): 3, TopicPartition(orders, 1): None}

    def test_offsets_are_taken_as_they_are(self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor) -> None:
        orders = topic(1)
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 9))
        member = self.joined(clients, group, orders, 1)

        for offset in (7, 2):
            assert self.ran(transactor, member, group, {place: Committed(offset)}) == Ended("committed")
        member.consumer.close()

        assert self.committed(clients, group, orders, 1) == {place: 2}

    def test_two_hundred_in_a_row_are_each_there_once_and_in_order(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(1), topic(1)
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 200))
        member = self.joined(clients, group, orders, 1)

        for number in range(200):
            paid = outgoing(payments, str(number).encode(), key=b"k")
            assert self.ran(transactor, member, group, {place: Committed(number + 1, str(number))}, Part([paid])) == Ended("committed")
        member.consumer.close()
        heir = self.joined(clients, group, orders, 1)

        assert self.values(clients, payments) == [str(number).encode() for number in range(200)]
        assert (heir.committed, heir.texts) == ({place: 200}, {place: "199"})

    # ---- or nothing -----------------------------------------------------------------------------------------------------

    def test_of_an_aborted_one_nothing_is_there_and_the_next_works(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(1), topic(2)
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 9))
        gone = self.joined(clients, group, orders, 1)
        assert self.ran(transactor, gone, group, {place: Committed(2, "kept")}, _part(payments, b"1")) == Ended("committed")
        identity = gone.consumer.identity()
        assert identity is not None
        gone.consumer.close()

        left = transactor.run(Work([_part(payments, b"2"), _part(payments, b"3")], {place: Committed(5, "lost")}, group, identity))
        heir = self.joined(clients, group, orders, 1)
        still = transactor.run(Work([_part(payments, b"4")], {place: Committed(6, "lost")}, group, identity))
        ended = self.ran(transactor, heir, group, {}, _part(payments, b"5"))

        assert [self.refusal(refused) for refused in (left, still)] == ["moved", "moved"]
        assert ended == Ended("committed")
        assert (heir.committed, heir.texts) == ({place: 2}, {place: "kept"})
        assert self.values(clients, payments) == [b"1", b"5"]

    def test_the_identity_of_a_former_generation_is_refused(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(2), topic(1)
        offsets = {TopicPartition(orders, number): Committed(number + 1) for number in range(2)}
        clients.send(*numbered(orders, 6, partition=0), *numbered(orders, 6, partition=1))
        first = self.joined(clients, group, orders, 2)
        former = first.consumer.identity()
        assert former is not None
        second = clients.member(group, orders)
        self.wait(lambda: len(first.owned) == len(second.owned) == 1, first, second)

        refused = transactor.run(Work([_part(payments, b"former")], offsets, group, former))
        ended = self.ran(transactor, first, group, {p: offsets[p] for p in first.owned}, _part(payments, b"new"))
        kept = set(first.owned)
        for member in (first, second):
            member.consumer.close()

        assert self.refusal(refused) == "moved"
        assert ended == Ended("committed")
        expected = {partition: offsets[partition].offset if partition in kept else None for partition in offsets}
        assert self.committed(clients, group, orders, 2) == expected
        assert self.values(clients, payments) == [b"new"]

    def test_a_member_that_left_while_it_wrote_is_refused(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(1), topic(1)
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 9))
        first = self.joined(clients, group, orders, 1)

        def leave(_: Sequence[Report]) -> list[Outgoing]:
            first.consumer.close()
            return []

        part = Part([outgoing(payments, b"x")], leave)
        refused = transactor.run(Work([part], {place: Committed(1)}, group, first.consumer.identity() or b""))

        assert self.refusal(refused) == "moved"
        assert self.values(clients, payments) == []
        assert self.committed(clients, group, orders, 1) == {place: None}

    def refusal(self, ended: Ended) -> str:
        """Why it was aborted; ``moved`` where it is the group that doesn't know the member."""
        assert (ended.outcome, ended.refused, ended.hindered) == ("aborted", {}, {})
        assert ended.error is not None
        return "moved" if ended.error.code in MOVED and ended.error.retriable else str(ended.error)

    def test_a_text_that_is_too_long_is_refused_with_everything(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(1), topic(1)
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 9))
        member = self.joined(clients, group, orders, 1)

        refused = self.ran(transactor, member, group, {place: Committed(1, "x" * 4097)}, _part(payments, b"1"))
        ended = self.ran(transactor, member, group, {place: Committed(2, "x" * 4095)}, _part(payments, b"2"))
        member.consumer.close()

        assert (refused.outcome, refused.refused, refused.error and refused.error.code) == ("aborted", {}, METADATA_TOO_LARGE)
        assert ended == Ended("committed")
        assert self.committed(clients, group, orders, 1) == {place: 2}
        assert self.values(clients, payments) == [b"2"]

    # ---- records that can't be written ----------------------------------------------------------------------------------

    def small(self, broker: Broker) -> str:
        """A topic that takes 20,000 bytes a batch."""
        name = f"small-{uuid.uuid4().hex[:12]}"
        cluster = broker.cluster()
        cluster.create([TopicInfo(name, 1, 1, {"max.message.bytes": "20000"})])
        deadline = time.monotonic() + self.deadline_s
        while name not in cluster.topics():
            assert time.monotonic() < deadline, f"{name} did not show up"
        cluster.close()
        return name

    def test_a_record_that_is_too_large_is_to_blame_and_not_those_beside_it(
        self, broker: Broker, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, name = topic(1), self.small(broker)
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 9))
        member = self.joined(clients, group, orders, 1)
        parts = [Part([outgoing(name, f"{part}-{n}".encode(), key=b"k") for n in range(3)]) for part in range(5)]
        bad = [Part([outgoing(name, b"small, and with it", key=b"k"), outgoing(name, b"x" * 30_000, key=b"k")]) for _ in range(2)]
        work = [*parts[:2], bad[0], parts[2], bad[1], *parts[3:]]

        while (ended := self.ran(transactor, member, group, {place: Committed(1)}, *work)).outcome == "aborted":
            assert ended.refused
            assert {error.code for error in ended.refused.values()} == {"MSG_SIZE_TOO_LARGE"}
            assert all(work[number] in bad for number in ended.refused)
            assert not any(error.retriable for error in ended.refused.values())
            work = [part for number, part in enumerate(work) if number not in ended.refused]
        member.consumer.close()

        assert ended == Ended("committed")
        assert work == parts
        assert self.values(clients, name) == [f"{part}-{n}".encode() for part in range(5) for n in range(3)]
        assert self.committed(clients, group, orders, 1) == {place: 1}

    def test_records_that_are_too_large_together_go_in_batches(self, broker: Broker, clients: Clients, transactor: Transactor) -> None:
        name = self.small(broker)
        parts = [Part([outgoing(name, f"{part:02}".encode() * 4_000, key=b"k") for _ in range(2)]) for part in range(20)]

        ended = transactor.run(Work(parts))

        assert ended == Ended("committed")
        assert [(value or b"")[:2] for value in self.values(clients, name)] == [f"{part:02}".encode() for part in range(20) for _ in "ab"]

    def test_a_record_that_is_too_large_for_any_topic_is_to_blame(self, clients: Clients, topic: MakeTopic, transactor: Transactor) -> None:
        name = topic(1)
        huge = Part([outgoing(name, bytes(self.too_large_bytes))])

        refused = transactor.run(Work([_part(name, b"1"), huge, _part(name, b"3")]))
        ended = transactor.run(Work([_part(name, b"1"), _part(name, b"3")]))

        assert (refused.outcome, {n: error.code for n, error in refused.refused.items()}) == ("aborted", {1: "MSG_SIZE_TOO_LARGE"})
        assert refused.error == refused.refused[1]
        assert ended == Ended("committed")
        assert self.values(clients, name) == [b"1", b"3"]

    def test_what_a_part_says_further_may_be_to_blame_too(self, broker: Broker, clients: Clients, transactor: Transactor) -> None:
        name = self.small(broker)
        parts = [_part(name, b"1"), Part([outgoing(name, b"2")], lambda _: [outgoing(name, b"x" * 30_000)]), _part(name, b"3")]

        refused = transactor.run(Work(parts))
        ended = transactor.run(Work([parts[0], parts[2]]))

        assert (refused.outcome, {n: error.code for n, error in refused.refused.items()}) == ("aborted", {1: "MSG_SIZE_TOO_LARGE"})
        assert ended == Ended("committed")
        assert self.values(clients, name) == [b"1", b"3"]

    @pytest.mark.parametrize("odd", ["ten\0ant", "ten\ud800"])
    def test_a_record_that_no_client_takes_is_to_blame(self, clients: Clients, topic: MakeTopic, transactor: Transactor, odd: str) -> None:
        name = topic(1)

        refused = transactor.run(Work([_part(name, b"1"), _part(odd, b"2"), _part(name, b"3")]))
        ended = transactor.run(Work([_part(name, b"1"), _part(name, b"3")]))

        assert (refused.outcome, list(refused.refused)) == ("aborted", [1])
        assert ended == Ended("committed")
        assert self.values(clients, name) == [b"1", b"3"]

    def test_a_topic_that_is_not_there_is_no_records_fault(self, clients: Clients, topic: MakeTopic, transactor: Transactor) -> None:
        name = topic(1)
        missing = _part(f"missing-{uuid.uuid4().hex[:12]}", b"x")

        ended = transactor.run(Work([_part(name, b"1"), missing]))
        self.opened(transactor)
        following = transactor.run(Work([_part(name, b"2")]))

        assert (ended.outcome, ended.refused) == ("aborted", {})
        assert list(ended.hindered) == [1]
        assert ended.error == ended.hindered[1]
        assert following == Ended("committed")
        assert self.values(clients, name) == [b"2"]

    # ---- bytes and places -----------------------------------------------------------------------------------------------

    def test_a_record_comes_back_byte_for_byte(self, clients: Clients, topic: MakeTopic, transactor: Transactor) -> None:
        name = topic(1)
        sent = [
            outgoing(name, b"{}", key=b"o-1", headers=[("choreo-id", b"1"), ("content-type", b"application/json")]),
            outgoing(name, b"no key", key=None),
            outgoing(name, None, key=b"a tombstone"),
            outgoing(name, b"", key=b"an empty value is no tombstone"),
            outgoing(name, b"an empty key is a key", key=b""),
            outgoing(name, None, key=None),
            outgoing(name, bytes(range(256)), key=b"\x00\xff"),
            outgoing(name, b"headers", headers=[("twice", b"1"), ("é", b"\x00\xff"), ("twice", b"2"), ("none", None), ("empty", b"")]),
        ]

        before_ms = int(time.time() * 1000) - 1
        ended = transactor.run(Work([Part(sent)]))

        assert ended == Ended("committed")
        found = self.everything(clients, name)
        assert [(r.key, r.value, list(r.headers)) for r in found] == [(r.key, r.value, list(r.headers)) for r in sent]
        assert all(before_ms <= record.timestamp_ms <= before_ms + 60_000 for record in found)

    def test_a_key_goes_to_the_partition_that_java_chooses_and_an_explicit_one_goes_before_it(
        self, clients: Clients, topic: MakeTopic, transactor: Transactor
    ) -> None:
        name, explicit = topic(6), topic(6)
        placed = [outgoing(explicit, b"x", key=b"abc", partition=partition) for partition in range(6)]

        ended = transactor.run(Work([Part([outgoing(name, b"x", key=key) for key in JAVA_PARTITIONS_OF_6]), Part(placed)]))

        assert ended == Ended("committed")
        assert {record.key: record.partition for record in self.everything(clients, name)} == JAVA_PARTITIONS_OF_6
        assert [record.partition for record in self.everything(clients, explicit)] == list(range(6))

    def test_records_without_a_key_reach_every_partition(self, clients: Clients, topic: MakeTopic, transactor: Transactor) -> None:
        name = topic(3)
        reached: set[int] = set()

        def note(reports: Sequence[Report]) -> list[Outgoing]:
            reached.update(report.partition for report in reports)
            return []

        deadline = time.monotonic() + self.deadline_s
        while len(reached) < 3 and time.monotonic() < deadline:
            assert transactor.run(Work([Part([outgoing(name, b"x")], note)])) == Ended("committed")

        assert reached == {0, 1, 2}

    # ---- two with one id ------------------------------------------------------------------------------------------------

    def test_of_two_with_one_id_the_one_that_was_opened_last_counts(self, clients: Clients, topic: MakeTopic) -> None:
        name, its_id = topic(1), _new_id()
        older = self.opened(clients.transactor(its_id))
        assert older.run(Work([_part(name, b"1")])) == Ended("committed")

        newer = self.opened(clients.transactor(its_id))
        fenced = older.run(Work([_part(name, b"fenced")]))
        ended = newer.run(Work([_part(name, b"2")]))
        not_opened = older.run(Work([_part(name, b"not opened")]))
        self.opened(older)
        again = older.run(Work([_part(name, b"3")]))
        fenced_too = newer.run(Work([_part(name, b"fenced, too")]))

        assert [self.fenced(one) for one in (fenced, fenced_too)] == [FENCED, FENCED]
        assert (not_opened.outcome, not_opened.error and not_opened.error.code) == ("aborted", "_STATE")
        assert (ended, again) == (Ended("committed"), Ended("committed"))
        assert self.values(clients, name) == [b"1", b"2", b"3"]

    def test_what_an_older_one_has_under_way_is_aborted(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        orders, name, its_id = topic(1), topic(1), _new_id()
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 9))
        member = self.joined(clients, group, orders, 1)
        older, newer = self.opened(clients.transactor(its_id)), clients.transactor(its_id)
        during: list[object] = []

        def another_opens(_: Sequence[Report]) -> list[Outgoing]:
            self.opened(newer)
            during.append(self.values(clients, name))  # nothing is open any more, or what comes later could not be read
            during.append(newer.run(Work([_part(name, b"newer")])))
            return [outgoing(name, b"older, too")]

        parts = [Part([outgoing(name, b"older")], another_opens)]
        fenced = older.run(Work(parts, {place: Committed(5)}, group, member.consumer.identity() or b""))
        after = newer.run(Work([_part(name, b"newer, too")]))
        member.consumer.close()

        assert self.fenced(fenced) == FENCED
        assert (during, after) == ([[], Ended("committed")], Ended("committed"))
        assert self.values(clients, name) == [b"newer", b"newer, too"]
        assert self.committed(clients, group, orders, 1) == {place: None}

    def fenced(self, ended: Ended) -> str:
        """The code. That it was aborted may be known or not."""
        assert ended.outcome != "committed"
        assert ended.refused == {}
        assert ended.error is not None
        assert not ended.error.retriable
        return ended.error.code

    def test_transactors_with_ids_of_their_own_do_not_meet(self, clients: Clients, topic: MakeTopic, transactor: Transactor) -> None:
        name = topic(1)
        other = self.opened(clients.transactor(_new_id()))

        ended = [one.run(Work([_part(name, str(turn).encode())])) for turn in range(5) for one in (transactor, other)]

        assert ended == [Ended("committed")] * 10
        assert self.values(clients, name) == [str(turn).encode() for turn in range(5) for _ in "ab"]

    # ---- opening and closing --------------------------------------------------------------------------------------------

    def test_it_has_to_be_opened_first_and_may_be_opened_again(self, clients: Clients, topic: MakeTopic) -> None:
        name = topic(1)
        transactor = clients.transactor(_new_id())

        too_early = transactor.run(Work([_part(name, b"too early")]))
        ended = []
        for number in range(3):
            self.opened(transactor)
            ended.append(transactor.run(Work([_part(name, str(number).encode())])))

        assert (too_early.outcome, too_early.error and too_early.error.code) == ("aborted", "_STATE")
        assert ended == [Ended("committed")] * 3
        assert self.values(clients, name) == [b"0", b"1", b"2"]

    def test_closing_twice_is_closing_once_and_then_it_can_do_nothing(self, clients: Clients, topic: MakeTopic) -> None:
        name, its_id = topic(1), _new_id()
        transactor = self.opened(clients.transactor(its_id))
        assert transactor.run(Work([_part(name, b"1")])) == Ended("committed")

        transactor.close()
        transactor.close()
        too_late = transactor.run(Work([_part(name, b"too late")]))
        with pytest.raises(BrokerError) as refused:
            transactor.open()
        heir = self.opened(clients.transactor(its_id))
        ended = heir.run(Work([_part(name, b"2")]))
        clients.transactor(its_id).close()
        ended_too = heir.run(Work([_part(name, b"3")]))

        assert too_late.outcome == "aborted"
        assert not refused.value.retriable
        assert (ended, ended_too) == (Ended("committed"), Ended("committed"))
        assert self.values(clients, name) == [b"1", b"2", b"3"]

    # ---- who a member is ------------------------------------------------------------------------------------------------

    def test_a_member_has_an_identity_from_its_first_assignment_on(self, clients: Clients, topic: MakeTopic, group: str) -> None:
        orders = topic(1)
        within: list[bytes | None] = []
        consumer = clients.broker.consumer(group)
        before = consumer.identity()

        member = Member(consumer, [orders], on_assigned=lambda member, _: within.append(member.consumer.identity()))
        self.wait(lambda: bool(member.owned), member)
        after = consumer.identity()
        consumer.close()

        assert before is None
        assert (len(within), None in within) == (1, False)
        assert after is not None

    def test_a_member_that_owns_nothing_has_one_and_whose_the_partitions_are_is_not_asked(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders = topic(1)
        place = TopicPartition(orders, 0)
        clients.send(*numbered(orders, 9))
        first = self.joined(clients, group, orders, 1)
        second = clients.member(group, orders)
        self.wait(lambda: second.consumer.identity() is not None, first, second)
        owner, idle = (second, first) if second.owned else (first, second)

        ended = self.ran(transactor, idle, group, {place: Committed(3)})
        owner.consumer.close()
        self.wait(lambda: bool(idle.owned), idle)

        assert ended == Ended("committed")
        assert idle.committed == {place: 3}

    def test_the_last_transaction_of_what_is_taken_away_is_made_while_it_is_given_back(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(2), topic(1)
        clients.send(*numbered(orders, 6, partition=0), *numbered(orders, 6, partition=1))
        ended: list[Ended] = []

        first = clients.member(group, orders, on_revoked=self.last_words(transactor, group, payments, ended))
        self.wait(lambda: len(first.records) == 12, first)
        second = clients.member(group, orders)
        self.wait(lambda: len(second.owned) == 1, first, second)

        assert ended == [Ended("committed")]
        assert (list(second.committed.values()), list(second.texts.values())) == ([6], ["last"])
        assert self.values(clients, payments) == [b"last words"]

    def test_the_last_transaction_of_a_member_that_leaves_is_made_while_it_closes(
        self, clients: Clients, topic: MakeTopic, group: str, transactor: Transactor
    ) -> None:
        orders, payments = topic(2), topic(1)
        clients.send(*numbered(orders, 6, partition=0), *numbered(orders, 6, partition=1))
        ended: list[Ended] = []

        first = clients.member(group, orders, on_revoked=self.last_words(transactor, group, payments, ended))
        self.wait(lambda: len(first.records) == 12, first)
        first.consumer.close()
        second = self.joined(clients, group, orders, 2)

        assert ended == [Ended("committed")]
        assert (list(second.committed.values()), list(second.texts.values())) == ([6, 6], ["last", "last"])
        assert self.values(clients, payments) == [b"last words"]

    def last_words(self, transactor: Transactor, group: str, topic: str, ended: list[Ended]) -> Revoked:
        """What a member does when partitions are taken from it: it commits what it has read of them. How that ended is added to `ended`."""

        def revoked(member: Member, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
            offsets = {partition: Committed(offset, "last") for partition, offset in member.next_offsets(partitions).items()}
            ended.append(transactor.run(Work([_part(topic, b"last words")], offsets, group, member.consumer.identity() or b"")))
            return {}

        return revoked


def _new_id() -> str:
    return f"id-{uuid.uuid4().hex[:12]}"


def _part(topic: str, value: bytes) -> Part:
    """One record in partition 0."""
    return Part([outgoing(topic, value, partition=0)])
