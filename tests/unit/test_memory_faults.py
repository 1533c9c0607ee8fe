"""What can a test make the memory broker (and store) do, that the real ones do when one least wants it?"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import pytest

from choreo.broker import Broker, Edge, Report, Start, TopicInfo
from choreo.errors import BrokerError, StateError, StoreError
from choreo.record import Committed, Outgoing, TopicPartition
from choreo.storage.memory import MemoryStore
from choreo.store import Claim
from choreo.testing import MemoryBroker
from choreo.testing.conformance import assert_owned_by_one
from choreo.testing.members import Clients, Member, Noted, wait_until
from choreo.testing.memory_consumer import MemoryConsumer

DEADLINE_S = 10.0
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic("orders", partitions=2)
    return broker


def write(broker: MemoryBroker, *values: bytes, partition: int = 0) -> None:
    for value in values:
        broker.write(Outgoing("orders", None, value, partition=partition))


def member_of(broker: MemoryBroker, group: str = "payments", **options: object) -> Member:
    """A member of the group that has been told what it owns."""
    member = Member(broker.consumer(group), ["orders"], **options)  # type: ignore[arg-type]
    member.step(timeout_s=0)
    return member


def memory_consumer(member: Member) -> MemoryConsumer:
    assert isinstance(member.consumer, MemoryConsumer)
    return member.consumer


def test_it_is_a_broker(broker: MemoryBroker) -> None:
    as_port: Broker = broker

    assert as_port.cluster().topics() == {"orders": TopicInfo("orders", 2, 1, {}, 7 * 86_400_000)}


# ---- the log ------------------------------------------------------------------------------------------------------------


def test_offsets_may_have_gaps(broker: MemoryBroker) -> None:
    write(broker, b"0")
    broker.skip_offsets("orders", 0, 3)
    write(broker, b"4", b"5")
    broker.skip_offsets("orders", 0, 2)
    member = member_of(broker)
    reader = broker.reader()
    reader.assign({P0: 0})

    member.step()
    read = reader.read(0)

    assert [record.offset for record in member.records] == [record.offset for record in read] == [0, 4, 5]
    assert reader.position() == {P0: 8}
    assert reader.ends("orders")[P0] == (0, 8)


def test_gaps_are_passed_one_record_at_a_time_too(broker: MemoryBroker) -> None:
    write(broker, b"0")
    broker.skip_offsets("orders", 0, 3)
    write(broker, b"4", b"5")
    member = Member(broker.consumer("payments"), ["orders"])

    wait_until(lambda: len(member.records) >= 3, member, max_records=1)

    assert [record.offset for record in member.records] == [0, 4, 5]


def test_a_start_within_a_gap_goes_on_behind_it(broker: MemoryBroker) -> None:
    write(broker, b"0")
    broker.skip_offsets("orders", 0, 3)
    write(broker, b"4")
    broker.skip_offsets("orders", 1, 3)

    member = member_of(broker, start=2)

    assert member.values() == [b"4"]


def test_a_member_whose_place_was_deleted_is_told_once_and_the_others_go_on(broker: MemoryBroker) -> None:
    write(broker, b"0", b"1", b"2")
    write(broker, b"other", partition=1)
    broker.trim("orders", 0, before=2)

    with pytest.raises(BrokerError, match="holds 2 to 3") as refused:
        member_of(broker, start=0)
    (member,) = broker.consumers("payments")
    records = member.poll(10, 0)
    again = member.poll(10, 0)

    assert (refused.value.code, refused.value.retriable) == ("_AUTO_OFFSET_RESET", False)
    assert [record.value for batch in records for record in batch.records] == [b"other"]
    assert again == []


def test_a_place_past_the_end_is_told_too(broker: MemoryBroker) -> None:
    write(broker, b"0")

    with pytest.raises(BrokerError) as refused:
        member_of(broker, start=5)

    assert refused.value.code == "_AUTO_OFFSET_RESET"


def test_the_beginning_of_a_trimmed_log_is_its_first_record(broker: MemoryBroker) -> None:
    write(broker, b"0", b"1", b"2")
    broker.trim("orders", 0, before=2)
    reader = broker.reader()

    member = member_of(broker, start=Edge.BEGINNING)
    reader.assign({P0: 0})

    assert member.values() == [b"2"]
    assert [record.offset for record in reader.read(0)] == [2]
    assert reader.ends("orders")[P0] == (2, 3)


def test_a_record_can_be_written_at_any_time(broker: MemoryBroker) -> None:
    record = broker.write(Outgoing("orders", b"o-1", b"old"), timestamp_ms=1)

    assert record.timestamp_ms == 1
    assert broker.records("orders") == [record]


# ---- sending ------------------------------------------------------------------------------------------------------------


def test_sends_fail_as_often_as_asked_and_are_not_written(broker: MemoryBroker) -> None:
    clients = Clients(broker)
    broker.fail_sends("orders", "_MSG_TIMED_OUT", times=2)
    records = [Outgoing("orders", b"o-1", str(number).encode()) for number in range(3)]

    reports = clients.send(*records)

    assert [report.error.code if report.error else None for report in reports] == ["_MSG_TIMED_OUT", "_MSG_TIMED_OUT", None]
    assert [record.value for record in broker.records("orders")] == [b"2"]


def test_faults_end_when_the_broker_is_healed(broker: MemoryBroker) -> None:
    clients = Clients(broker)
    broker.fail_sends("orders", "_MSG_TIMED_OUT", times=10**9)
    broker.hold_sends("orders")

    broker.heal()
    (report,) = clients.send(Outgoing("orders", None, b"0"))

    assert report.error is None


def test_held_sends_are_on_their_way_until_they_are_released(broker: MemoryBroker) -> None:
    broker.create_topic("payments")
    producer = broker.producer()
    reports: list[Report] = []
    broker.hold_sends("orders")

    for number, topic in enumerate(("orders", "payments", "orders", "orders")):
        producer.send(Outgoing(topic, b"o-1", str(number).encode()), reports.append)
    left_while_held = producer.flush(0)
    written_while_held = len(broker.records("orders"))
    broker.release_sends("orders")
    left = producer.flush(0)

    assert (left_while_held, written_while_held, left) == (3, 0, 0)
    assert [report.offset for report in reports] == [0, 0, 1, 2]
    assert [record.value for record in broker.records("orders")] == [b"0", b"2", b"3"]


def test_what_was_held_goes_before_what_is_sent_after_the_release(broker: MemoryBroker) -> None:
    producer = broker.producer()
    broker.hold_sends("orders")
    producer.send(Outgoing("orders", b"o-1", b"held"), print)

    broker.release_sends("orders")
    producer.send(Outgoing("orders", b"o-1", b"later"), print)

    assert [record.value for record in broker.records("orders")] == [b"held", b"later"]


def test_a_flush_ends_when_what_was_held_is_released(broker: MemoryBroker) -> None:
    producer = broker.producer()
    reports: list[Report] = []
    broker.hold_sends("orders")
    producer.send(Outgoing("orders", b"o-1", b"x"), reports.append)

    release = threading.Timer(0.05, broker.release_sends, ["orders"])
    release.start()
    left = producer.flush(DEADLINE_S)
    release.join()

    assert left == 0
    assert len(reports) == 1


def test_what_is_still_held_when_the_producer_is_closed_is_dropped_and_reported(broker: MemoryBroker) -> None:
    producer = broker.producer()
    reports: list[Report] = []
    broker.hold_sends("orders")
    producer.send(Outgoing("orders", b"o-1", b"x"), reports.append)

    left = producer.close(0)
    broker.release_sends("orders")

    assert left == 1
    assert [report.error.code if report.error else None for report in reports] == ["_PURGE_QUEUE"]
    assert broker.records("orders") == []
    with pytest.raises(BrokerError, match="closed"):
        producer.send(Outgoing("orders", b"o-1", b"x"), reports.append)


def test_a_full_queue_pushes_back(broker: MemoryBroker) -> None:
    broker = MemoryBroker(queue_records=2)
    broker.create_topic("orders")
    producer = broker.producer()
    reports: list[Report] = []
    producer.send(Outgoing("orders", None, b"0"), reports.append)
    producer.send(Outgoing("orders", None, b"1"), reports.append)

    with pytest.raises(BufferError, match="poll, then send again"):
        producer.send(Outgoing("orders", None, b"2"), reports.append)
    producer.poll(0)
    producer.send(Outgoing("orders", None, b"3"), reports.append)
    producer.flush(0)

    assert [record.value for record in broker.records("orders")] == [b"0", b"1", b"3"]


def test_a_topics_own_limit_goes_before_the_brokers(broker: MemoryBroker) -> None:
    broker.create_topic("small", config={"max.message.bytes": "100"})
    producer = broker.producer()

    with pytest.raises(BrokerError, match=r"small: a record of 171 bytes, more than max\.message\.bytes=100") as refused:
        producer.send(Outgoing("small", b"k", b"x" * 90, [("name", b"value!")]), print)

    assert (refused.value.code, refused.value.retriable) == ("MSG_SIZE_TOO_LARGE", False)


def test_a_partition_that_is_not_there_is_refused(broker: MemoryBroker) -> None:
    with pytest.raises(BrokerError, match="orders has 2 partitions") as refused:
        broker.producer().send(Outgoing("orders", None, b"x", partition=2), print)

    assert refused.value.code == "_UNKNOWN_PARTITION"


# ---- the group ----------------------------------------------------------------------------------------------------------


def test_a_failed_commit_says_so_and_the_next_one_counts(broker: MemoryBroker) -> None:
    member = member_of(broker)
    broker.fail_commits("payments", "_TIMED_OUT")

    member.consumer.commit({P0: Committed(1)})
    member.consumer.commit({P0: Committed(2)})
    failed, done = member.consumer.commit_results()

    assert failed.error is not None
    assert (failed.error.code, failed.offsets) == ("_TIMED_OUT", {P0: Committed(1)})
    assert (done.error, done.offsets) == (None, {P0: Committed(2)})
    assert broker.committed("payments") == {P0: 2}


def test_a_commit_of_a_partition_that_was_never_assigned_is_refused(broker: MemoryBroker) -> None:
    member = member_of(broker)
    stranger = TopicPartition("other", 0)

    member.consumer.commit({P0: Committed(1), stranger: Committed(5)})
    done, refused = member.consumer.commit_results()

    assert (done.offsets, done.error) == ({P0: Committed(1)}, None)
    assert refused.offsets == {stranger: Committed(5)}
    assert refused.error is not None
    assert not refused.error.retriable
    assert broker.committed("payments") == {P0: 1}


def test_a_failed_poll_raises_as_often_as_asked(broker: MemoryBroker) -> None:
    member = member_of(broker)
    write(broker, b"0")
    broker.fail_polls("payments", "_FATAL", fatal=True, retriable=False)

    with pytest.raises(BrokerError, match="_FATAL") as failed:
        member.step()
    member.step()

    assert failed.value.fatal
    assert member.values() == [b"0"]


def test_a_lost_member_is_told_cannot_commit_and_joins_again(broker: MemoryBroker) -> None:
    write(broker, b"0")
    journal: list[Noted] = []
    member = member_of(broker, name="a", journal=journal)

    broker.lose(memory_consumer(member))
    member.consumer.commit({P0: Committed(1)})
    (result,) = member.consumer.commit_results()
    member.step(timeout_s=0)

    assert result.error is not None
    assert broker.committed("payments") == {}
    assert [noted.what for noted in journal] == ["assigned", "assigned", "lost", "lost", "assigned", "assigned"]
    assert member.values() == [b"0", b"0"]


def test_the_partitions_of_a_lost_member_go_to_the_others_before_it_knows(broker: MemoryBroker) -> None:
    first = member_of(broker, name="first")
    second = member_of(broker, name="second")
    wait_until(lambda: len(first.owned) == len(second.owned) == 1, first, second)

    broker.lose(memory_consumer(first))
    second.step(timeout_s=0)

    assert second.owned == {P0, P1}
    assert len(first.owned) == 1


def test_a_member_that_is_lost_while_it_gives_back_is_told_both(broker: MemoryBroker) -> None:
    journal: list[Noted] = []

    def lose_me(member: Member, _: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        broker.lose(memory_consumer(member))
        return {P0: Committed(9), P1: Committed(9)}

    member = member_of(broker, journal=journal, on_revoked=lose_me)
    member_of(broker, name="second")
    member.step(timeout_s=0)

    assert [noted.what for noted in journal if noted.partition == P1][:3] == ["assigned", "revoked", "lost"]
    assert broker.committed("payments") == {}


def test_new_partitions_are_assigned(broker: MemoryBroker) -> None:
    member = member_of(broker)

    broker.cluster().add_partitions("orders", 3)
    member.step(timeout_s=0)

    assert member.owned == {P0, P1, TopicPartition("orders", 2)}


def test_a_topic_that_appears_is_assigned(broker: MemoryBroker) -> None:
    member = Member(broker.consumer("payments"), ["orders", "later"])
    member.step(timeout_s=0)

    broker.create_topic("later")
    member.step(timeout_s=0)

    assert member.owned == {P0, P1, TopicPartition("later", 0)}


def test_a_waiting_member_is_assigned_at_once_what_another_gives_back(broker: MemoryBroker) -> None:
    first = member_of(broker, name="first")
    taken = threading.Event()
    second = Member(broker.consumer("payments"), ["orders"], name="second", on_assigned=lambda *_: taken.set())
    waiting = threading.Thread(target=second.step, kwargs={"timeout_s": DEADLINE_S})

    waiting.start()
    wait_until(lambda: len(first.owned) == 1, first)
    taken_in_time = taken.wait(DEADLINE_S / 2)
    write(broker, b"end", partition=1)
    waiting.join()
    first.consumer.close()
    second.step(timeout_s=0)

    assert taken_in_time
    assert second.owned == {P0, P1}


def test_a_listener_that_raises_surfaces_from_poll_and_is_asked_again(broker: MemoryBroker) -> None:
    class Hesitant:
        def __init__(self) -> None:
            self.asked = 0

        def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
            self.asked += 1
            if self.asked == 1:
                raise StateError("not yet")
            return dict.fromkeys(committed, 0)

        def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
            raise StateError("never")

        def lost(self, partitions: Sequence[TopicPartition]) -> None: ...

    write(broker, b"0")
    consumer = broker.consumer("payments")
    consumer.subscribe(["orders"], Hesitant())

    with pytest.raises(StateError, match="not yet"):
        consumer.poll(10, 0)
    batches = consumer.poll(10, 0)
    with pytest.raises(StateError, match="never"):
        consumer.close()
    next_member = member_of(broker)

    assert [record.value for batch in batches for record in batch.records] == [b"0"]
    assert next_member.owned == {P0, P1}


def test_a_listener_must_name_a_start_for_each_partition(broker: MemoryBroker) -> None:
    class Forgetful(Member):
        def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
            return {P0: 0}

    with pytest.raises(StateError, match=r"orders\[1\]: the listener's assigned\(\) named no start"):
        Forgetful(broker.consumer("payments"), ["orders"]).step()


def test_a_closed_consumer_is_used_no_more(broker: MemoryBroker) -> None:
    member = member_of(broker)

    member.consumer.close()

    with pytest.raises(BrokerError, match="closed"):
        member.step()
    assert broker.consumers("payments") == []


def test_a_consumer_without_a_subscription_waits_and_closes() -> None:
    consumer = MemoryBroker().consumer("payments")

    batches = consumer.poll(10, 0)
    consumer.close()

    assert batches == []


def test_all_partitions_get_their_turn_when_there_is_more_than_a_poll_takes(broker: MemoryBroker) -> None:
    write(broker, *[b"x"] * 50, partition=0)
    write(broker, *[b"x"] * 50, partition=1)
    member = member_of(broker, start=Edge.BEGINNING)
    member.records.clear()
    write(broker, *[b"x"] * 50, partition=0)
    write(broker, *[b"x"] * 50, partition=1)

    for _ in range(4):
        member.step(max_records=5)

    assert {record.partition for record in member.records} == {0, 1}


# ---- threads ------------------------------------------------------------------------------------------------------------


def test_members_in_their_own_threads_share_the_work_through_joins_and_closes() -> None:
    broker = MemoryBroker()
    broker.create_topic("orders", partitions=8)
    journal: list[Noted] = []
    clients = Clients(broker)
    total = 4000
    seen = [0] * total
    problems: list[BaseException] = []
    over = threading.Event()

    def work(name: str, enough: int) -> None:
        try:
            member = clients.member("payments", "orders", name=name, on_revoked=Member.next_offsets, journal=journal)
            while not over.is_set() and len(member.records) < enough:
                for record in member.step(max_records=20, timeout_s=0.02):
                    seen[int(record.value or b"")] += 1
                if all(seen):
                    over.set()
            member.consumer.close()
        except BaseException as error:  # told below: a thread's error fails no test
            problems.append(error)
            over.set()

    steady = [threading.Thread(target=work, args=[name, total]) for name in ("a", "b")]
    passing = [threading.Thread(target=work, args=[f"passing {number}", 40]) for number in range(5)]
    for thread in steady:
        thread.start()
    for number in range(0, total, 40):
        clients.send(*(Outgoing("orders", str(n).encode(), str(n).encode()) for n in range(number, number + 40)))
        if number % 800 == 0:
            passing[number // 800].start()
    done = over.wait(DEADLINE_S)
    over.set()
    for thread in steady + passing:
        thread.join(DEADLINE_S)
    clients.close()

    assert problems == []
    assert done
    assert seen == [1] * total
    assert_owned_by_one(journal)


# ---- the store ----------------------------------------------------------------------------------------------------------


def test_a_store_fails_as_often_as_asked_and_writes_nothing_then() -> None:
    store = MemoryStore()
    store.open("payments")
    claim = Claim("charge-card", "e-1")
    store.fail(StoreError("locked, as the test asked"), times=2)

    with pytest.raises(StoreError, match="as the test asked"):
        store.claim([claim])
    with pytest.raises(StoreError, match="as the test asked"):
        store.lookup([claim])
    already = store.claim([claim])

    assert already == set()
