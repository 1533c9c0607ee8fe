"""What can a test make the memory broker's transactions do, that Kafka's do when one least wants it?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from choreo.broker import FENCED, Broker, Ended, Part, Report, Transactor, Work
from choreo.errors import BrokerError
from choreo.record import Committed, Outgoing, TopicPartition
from choreo.testing import MemoryBroker
from choreo.testing.members import Member, wait_until
from choreo.testing.memory_consumer import MemoryConsumer
from tests.support.waiting import wait_for

DEADLINE_S = 10.0
GROUP = "payments"
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
COMMITTED = Ended("committed")


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic("orders", partitions=2)
    broker.create_topic("paid")
    for partition in range(2):
        for _ in range(9):
            broker.write(Outgoing("orders", None, b"", partition=partition))
    return broker


@pytest.fixture
def transactor(broker: MemoryBroker) -> Transactor:
    transactor = broker.transactor("id-1")
    transactor.open()
    return transactor


def member_of(broker: MemoryBroker) -> Member:
    member = Member(broker.consumer(GROUP), ["orders"])
    member.step(timeout_s=0)
    return member


def memory_consumer(member: Member) -> MemoryConsumer:
    assert isinstance(member.consumer, MemoryConsumer)
    return member.consumer


def paid(value: bytes, then: Callable[[Sequence[Report]], Sequence[Outgoing]] | None = None) -> Part:
    return Part([Outgoing("paid", b"k", value)], then)


def work(member: Member, value: bytes, offset: int) -> Work:
    """One record, and where the member has read to."""
    return Work([paid(value)], {P0: Committed(offset, "text")}, GROUP, member.consumer.identity() or b"")


def values(broker: MemoryBroker) -> list[bytes | None]:
    return [record.value for record in broker.records("paid")]


def code(ended: Ended) -> tuple[str, str]:
    assert ended.error is not None
    return ended.outcome, ended.error.code


@contextmanager
def held(broker: MemoryBroker, transactor: Transactor, one: Work) -> Iterator[list[Ended]]:
    """It is run in another thread, and held; how it ended is in the list when the block is over, which has to release it."""
    ended: list[Ended] = []
    broker.hold_transactions()
    thread = threading.Thread(target=lambda: ended.append(transactor.run(one)), daemon=True)
    thread.start()
    wait_for(broker.held_transactions, "a transaction that is held", deadline_s=DEADLINE_S, every_s=0.001)
    yield ended
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert broker.held_transactions() == 0


def test_it_is_a_brokers_transactor(broker: MemoryBroker) -> None:
    as_port: Broker = broker

    transactor: Transactor = as_port.transactor("id-1")

    assert code(transactor.run(Work())) == ("aborted", "_STATE")


# ---- endings ------------------------------------------------------------------------------------------------------------


def test_transactions_are_aborted_as_often_as_asked_and_leave_gaps(broker: MemoryBroker, transactor: Transactor) -> None:
    member = member_of(broker)
    broker.fail_transactions("_TIMED_OUT", times=2)

    ended = [transactor.run(work(member, value, offset)) for offset, value in enumerate([b"1", b"2", b"3"], 1)]

    assert [code(ended[0]), code(ended[1]), ended[2]] == [("aborted", "_TIMED_OUT")] * 2 + [COMMITTED]
    assert [(record.offset, record.value) for record in broker.records("paid")] == [(4, b"3")]
    assert broker.committed(GROUP) == {P0: 3}


@pytest.mark.parametrize("committed", [False, True])
def test_of_an_unknown_one_all_or_nothing_is_there_and_it_has_to_be_opened_again(
    broker: MemoryBroker, transactor: Transactor, committed: bool
) -> None:
    member = member_of(broker)
    broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=committed, retriable=False)

    unknown = transactor.run(work(member, b"1", 1))
    not_opened = transactor.run(work(member, b"2", 2))
    there = (values(broker), broker.committed(GROUP), broker.committed_texts(GROUP))
    transactor.open()
    after = transactor.run(work(member, b"3", 3))

    assert (code(unknown), unknown.error and unknown.error.retriable) == (("unknown", "_TIMED_OUT"), False)
    assert code(not_opened) == ("aborted", "_STATE")
    assert there == (([b"1"], {P0: 1}, {P0: "text"}) if committed else ([], {}, {}))
    assert after == COMMITTED


def test_what_kafka_would_not_take_is_aborted_also_where_it_was_to_count(broker: MemoryBroker, transactor: Transactor) -> None:
    member = member_of(broker)
    former = work(member, b"1", 1)
    broker.lose(memory_consumer(member))
    member.step(timeout_s=0)
    broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=True)

    ended = transactor.run(former)

    assert code(ended) == ("aborted", "ILLEGAL_GENERATION")
    assert (values(broker), broker.committed(GROUP)) == ([], {})


def test_an_aborted_one_does_not_count() -> None:
    with pytest.raises(ValueError, match="outcome='unknown'"):
        MemoryBroker().fail_transactions("_TIMED_OUT", committed=True)


def test_one_that_ends_fenced_has_to_be_opened_again(broker: MemoryBroker, transactor: Transactor) -> None:
    broker.fail_transactions(FENCED, retriable=False)

    fenced = transactor.run(Work([paid(b"1")]))
    not_opened = transactor.run(Work([paid(b"2")]))
    transactor.open()
    ended = transactor.run(Work([paid(b"3")]))

    assert (code(fenced), code(not_opened), ended) == (("aborted", FENCED), ("aborted", "_STATE"), COMMITTED)
    assert values(broker) == [b"3"]


def test_an_open_fails_as_often_as_asked_and_nothing_runs_meanwhile(broker: MemoryBroker, transactor: Transactor) -> None:
    broker.fail_opens("_TIMED_OUT", times=2)

    for _ in range(2):
        with pytest.raises(BrokerError, match="_TIMED_OUT") as failed:
            transactor.open()
        assert failed.value.retriable
        assert code(transactor.run(Work([paid(b"1")]))) == ("aborted", "_STATE")
    transactor.open()

    assert transactor.run(Work([paid(b"2")])) == COMMITTED
    assert values(broker) == [b"2"]


def test_all_is_well_after_heal(broker: MemoryBroker, transactor: Transactor) -> None:
    broker.fail_transactions("_TIMED_OUT", times=9)
    broker.fail_opens("_TIMED_OUT", times=9)
    broker.hold_transactions()

    broker.heal()
    transactor.open()

    assert transactor.run(Work([paid(b"1")])) == COMMITTED


# ---- holds --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", [MemoryBroker.release_transactions, MemoryBroker.heal])
def test_what_is_held_is_seen_when_it_goes_on(
    broker: MemoryBroker, transactor: Transactor, release: Callable[[MemoryBroker], None]
) -> None:
    member = member_of(broker)

    with held(broker, transactor, work(member, b"1", 1)) as ended:
        broker.write(Outgoing("paid", None, b"a producer's"))
        during = (values(broker), broker.committed(GROUP))
        release(broker)

    assert during == ([], {}), "an open transaction holds up what stands behind its records"
    assert (ended, values(broker), broker.committed(GROUP)) == ([COMMITTED], [b"1", b"a producer's"], {P0: 1})


def test_a_member_that_was_moved_while_its_transaction_was_held_is_refused(broker: MemoryBroker, transactor: Transactor) -> None:
    first = member_of(broker)

    with held(broker, transactor, work(first, b"1", 1)) as ended:
        second = member_of(broker)
        wait_until(lambda: len(first.owned) == len(second.owned) == 1, first, second)
        broker.release_transactions()
    again = transactor.run(work(first, b"2", 2))

    assert [code(one) for one in ended] == [("aborted", "ILLEGAL_GENERATION")]
    assert (again, values(broker), broker.committed(GROUP)) == (COMMITTED, [b"2"], {P0: 2})


def test_a_member_that_did_not_give_back_yet_is_not_refused(broker: MemoryBroker, transactor: Transactor) -> None:
    first = member_of(broker)

    with held(broker, transactor, work(first, b"1", 1)) as ended:
        second = member_of(broker)
        broker.release_transactions()
    wait_until(lambda: len(first.owned) == len(second.owned) == 1, first, second)

    assert (ended, values(broker)) == ([COMMITTED], [b"1"])


def test_one_that_is_held_is_aborted_at_once_where_another_opens_its_id(broker: MemoryBroker, transactor: Transactor) -> None:
    heir = broker.transactor("id-1")

    with held(broker, transactor, Work([paid(b"1")])) as ended:
        broker.write(Outgoing("paid", None, b"a producer's"))
        heir.open()
        during = values(broker)
        broker.release_transactions()
    after = heir.run(Work([paid(b"2")]))

    assert during == [b"a producer's"]
    assert [code(one) for one in ended] == [("aborted", FENCED)]
    assert (after, values(broker)) == (COMMITTED, [b"a producer's", b"2"])


def test_one_that_is_held_ends_when_it_is_closed(broker: MemoryBroker, transactor: Transactor) -> None:
    with held(broker, transactor, Work([paid(b"1")])) as ended:
        transactor.close()

    assert [code(one) for one in ended] == [("aborted", "_STATE")]
    assert values(broker) == []


# ---- what follows -------------------------------------------------------------------------------------------------------


def test_what_then_raises_comes_out_and_nothing_is_there(broker: MemoryBroker, transactor: Transactor) -> None:
    def fail(_: Sequence[Report]) -> Sequence[Outgoing]:
        raise LookupError("not so")

    with pytest.raises(LookupError, match="not so"):
        transactor.run(Work([paid(b"1"), paid(b"2", fail)]))
    ended = transactor.run(Work([paid(b"3")]))

    assert (ended, values(broker)) == (COMMITTED, [b"3"])


def test_others_may_write_while_then_is_asked(broker: MemoryBroker, transactor: Transactor) -> None:
    def another_thread_writes(_: Sequence[Report]) -> Sequence[Outgoing]:
        thread = threading.Thread(target=broker.write, args=[Outgoing("paid", None, b"between")], daemon=True)
        thread.start()
        thread.join(DEADLINE_S)
        return [Outgoing("paid", None, b"said further")]

    ended = transactor.run(Work([paid(b"1", another_thread_writes)]))

    assert (ended, values(broker)) == (COMMITTED, [b"1", b"between", b"said further"])


# ---- who may commit -----------------------------------------------------------------------------------------------------


def test_a_lost_member_has_no_identity_until_it_was_told_and_then_another(broker: MemoryBroker, transactor: Transactor) -> None:
    told: list[bytes | None] = []

    class Watcher(Member):
        def lost(self, partitions: Sequence[TopicPartition]) -> None:
            told.append(self.consumer.identity())

    member = Watcher(broker.consumer(GROUP), ["orders"])
    before_poll = member.consumer.identity()
    member.step(timeout_s=0)
    former = work(member, b"1", 1)

    broker.lose(memory_consumer(member))
    while_lost = (member.consumer.identity(), code(transactor.run(former)))
    member.step(timeout_s=0)
    back = code(transactor.run(former))

    assert before_poll is None
    assert (while_lost, told) == ((None, ("aborted", "UNKNOWN_MEMBER_ID")), [None])
    assert back == ("aborted", "ILLEGAL_GENERATION")
    assert transactor.run(work(member, b"2", 2)) == COMMITTED


def test_who_is_dead_or_has_left_is_nobody(broker: MemoryBroker, transactor: Transactor) -> None:
    dead, leaver = member_of(broker), member_of(broker)
    wait_until(lambda: len(dead.owned) == len(leaver.owned) == 1, dead, leaver)
    works = [work(member, b"x", 1) for member in (dead, leaver)]

    broker.kill(memory_consumer(dead))
    leaver.consumer.close()

    assert [member.consumer.identity() for member in (dead, leaver)] == [None, None]
    assert [code(transactor.run(one)) for one in works] == [("aborted", "UNKNOWN_MEMBER_ID")] * 2


@pytest.mark.parametrize("identity", [b"", b"x", b"1", b"1/x", b"99/1"])
def test_an_identity_that_nobody_has_is_refused(broker: MemoryBroker, transactor: Transactor, identity: bytes) -> None:
    member_of(broker)

    ended = transactor.run(Work([paid(b"1")], {P0: Committed(1)}, GROUP, identity))

    assert ended.outcome == "aborted"
    assert values(broker) == []


def test_an_identity_is_good_for_its_own_group(broker: MemoryBroker, transactor: Transactor) -> None:
    member = member_of(broker)

    ended = transactor.run(Work([paid(b"1")], {P0: Committed(1)}, "another", member.consumer.identity() or b""))

    assert code(ended) == ("aborted", "UNKNOWN_MEMBER_ID")


@pytest.mark.parametrize("partition", [TopicPartition("orders", 2), TopicPartition("missing", 0)])
def test_offsets_of_a_partition_that_is_not_there_are_refused(
    broker: MemoryBroker, transactor: Transactor, partition: TopicPartition
) -> None:
    member = member_of(broker)

    ended = transactor.run(Work([paid(b"1")], {P0: Committed(1), partition: Committed(1)}, GROUP, member.consumer.identity() or b""))

    assert code(ended) == ("aborted", "UNKNOWN_TOPIC_OR_PART")
    assert (values(broker), broker.committed(GROUP)) == ([], {})


def test_many_at_once_are_each_there_once_and_in_their_order(broker: MemoryBroker) -> None:
    problems: list[object] = []

    def run(name: str) -> None:
        transactor = broker.transactor(name)
        transactor.open()
        for number in range(100):
            further = [Outgoing("paid", None, f"{name}-{number}-b".encode())]
            ended = transactor.run(Work([paid(f"{name}-{number}-a".encode(), lambda _, further=further: further)]))  # type: ignore[misc]
            if ended != COMMITTED:
                problems.append(ended)

    threads = [threading.Thread(target=run, args=[name], daemon=True) for name in ("x", "y", "z")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert problems == []
    found = [(value or b"").decode() for value in values(broker)]
    for name in ("x", "y", "z"):
        assert [value for value in found if value[0] == name] == [f"{name}-{number}-{half}" for number in range(100) for half in "ab"]
