"""Does what belongs to one assignment of a partition stay out of the next one, and of its next owner's way?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime

import pytest

from choreo.broker import REBALANCE_FAILED
from choreo.envelope import Envelope
from choreo.errors import BrokerError, TransientError
from choreo.handler import Context, Failure, Handler
from choreo.letter import dlq_headers
from choreo.record import Batch, Committed, Record, TopicPartition
from choreo.runtime import feeding, intake
from choreo.runtime.worker import Worker
from choreo.storage.memory import MemoryStore
from choreo.store import Claim
from choreo.testing import MemoryBroker
from choreo.testing.members import Member
from choreo.testing.memory_consumer import MemoryConsumer
from tests.runtime.shop import (
    DEADLINE_S,
    ONCE,
    P0,
    P1,
    SHOP,
    TWICE,
    Book,
    GuardedStore,
    Paid,
    Placed,
    Refused,
    answers,
    becomes,
    committed,
    numbered,
    place,
    placed,
    shop,
    shop_broker,
)

# ---- orders of an assignment that is over ---------------------------------------------------------------------------------


async def test_a_pause_that_was_ordered_for_a_lost_assignment_does_not_reach_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "PAUSE_AFTER_S", 0.0)
    gate = asyncio.Event()

    async def waits(context: Context) -> None:
        await gate.wait()

    broker, book = shop_broker(), Book(waits)
    place(broker, *numbered(1200))  # more than may be under way at once

    async with shop(broker, book, concurrency=1000).worker() as worker:
        order_pause = worker.intake.pause
        ordered: list[TopicPartition] = []

        def loses_it_first(partition: TopicPartition) -> None:
            if not ordered:
                (consumer,) = broker.consumers(SHOP)
                broker.lose(consumer)
            ordered.append(partition)
            order_pause(partition)

        monkeypatch.setattr(worker.intake, "pause", loses_it_first)
        await becomes(lambda: ordered and worker.counters.rebalances >= 3, "it was lost and assigned again", worker)
        gate.set()
        await becomes(lambda: committed(broker) == 1200, "all are settled", worker)

    assert set(book.done) == set(numbered(1200))


async def test_a_commit_that_was_ordered_for_a_lost_assignment_does_not_reach_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    commit = MemoryConsumer.commit

    def notes(consumer: MemoryConsumer, offsets: Mapping[TopicPartition, Committed]) -> None:
        asked.extend(wanted.offset for wanted in offsets.values())
        commit(consumer, offsets)

    monkeypatch.setattr(MemoryConsumer, "commit", notes)
    broker, book = shop_broker(), Book()

    async with shop(broker, book).worker() as worker:
        order_commit = worker.intake.commit
        ordered: list[int] = []

        def loses_it_first(offsets: Mapping[TopicPartition, Committed]) -> None:
            moved = [wanted.offset for wanted in offsets.values() if wanted.offset]
            if moved and not ordered:
                handled_elsewhere(broker, up_to=5)
            ordered.extend(moved)
            order_commit(offsets)

        monkeypatch.setattr(worker.intake, "commit", loses_it_first)
        place(broker, "e0")
        await becomes(lambda: committed(broker) == 7, "what the other left is settled", worker)

    assert ordered[0] == 1
    assert 1 not in asked


def handled_elsewhere(broker: MemoryBroker, *, up_to: int) -> None:
    """The only member is thrown out; another takes its partition, commits, and leaves. Two events more are there by then."""
    (consumer,) = broker.consumers(SHOP)
    other = Member(broker.consumer(SHOP), ["orders"])
    broker.lose(consumer)
    place(broker, *numbered(up_to + 2)[1:])
    other.step(timeout_s=0)
    other.consumer.commit({P0: Committed(up_to)})
    other.consumer.close()


async def test_what_is_taken_away_while_its_claims_are_looked_up_is_accepted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held_up, gate = threading.Event(), threading.Event()
    looked_up: list[int] = []

    def the_second_waits(batch: Collection[Claim]) -> None:
        looked_up.append(len(batch))
        if len(looked_up) == 2:
            held_up.set()
            gate.wait(DEADLINE_S)

    broker = shop_broker(partitions=2)
    service = shop(broker, Book(), store=GuardedStore(the_second_waits))
    worker = Worker(service.plan(service.settings), broker)
    await worker.start(consume=False)
    accepted: list[int] = []
    monkeypatch.setattr(worker.intake, "accept", accepted.append)
    partition, other = worker.engine.assign(P0), worker.engine.assign(P1)
    feeding_on = asyncio.create_task(worker.feeding.run())

    # The first batch fills the partition; the other two are held, until there is room.
    worker.intake.inbox.extend([batch_of(P0, 0, 600), batch_of(P0, 600, 600), batch_of(P0, 1200, 300)])
    worker.feeding.arrived()
    await becomes(lambda: partition.in_flight == 600 and not worker.intake.inbox, "two are held")
    while (delivery := worker.engine.take()) is not None:
        worker.engine.settle(delivery)
    worker.feeding.room(partition)
    await becomes(held_up.is_set, "the second is looked up")
    worker.feeding.forget([P0])
    worker.engine.forget(worker.engine.stop([P0]))
    gate.set()
    worker.intake.inbox.append(batch_of(P1, 0, 1))
    worker.feeding.arrived()
    await becomes(lambda: other.in_flight == 1, "what came last was fed")
    feeding_on.cancel()
    await worker.stop()

    assert (sum(accepted), looked_up) == (600 + 600 + 300 + 1, [600, 600, 1])


def batch_of(partition: TopicPartition, first: int, count: int) -> Batch:
    def record(offset: int) -> Record:
        key = f"o-{offset}"
        return Record(partition.topic, partition.partition, offset, 0, key.encode(), placed(key), [])

    return Batch(partition, [record(first + number) for number in range(count)])


# ---- what runs while its partition goes -----------------------------------------------------------------------------------


class Compensates(Handler[Placed]):
    """Its first call fails, later ones answer Paid. `recover` waits to be let go on, then answers Refused; it swallows its
    cancellation when it is `stubborn`."""

    name = "pay"
    retry = ONCE

    def __init__(self, *, stubborn: bool = False) -> None:
        self.go_on = asyncio.Event()
        self.log: list[str] = []
        self._stubborn = stubborn

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid | Refused:
        self.log.append("called")
        if len(self.log) == 1:
            raise RuntimeError("the first call fails")
        return Paid(order_id="o-1")

    async def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> Paid | Refused:
        self.log.append("recover begins")
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.log.append("recover is cancelled")
            if not self._stubborn:
                raise
        return Refused(order_id="o-1")


class Pays(Handler[Placed]):
    """The same, on a member where all goes well."""

    name = "pay"

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid | Refused:
        return Paid(order_id="o-1")


async def test_a_recovery_that_outlives_a_revoke_is_cut_short_and_the_next_owner_decides_alone() -> None:
    broker, store, compensates = shop_broker(partitions=2), MemoryStore(), Compensates()
    place(broker, "e0", partition=1)

    async with shop(broker, compensates, store=MemoryStore(shared_with=store), revoke_s=0.05).worker() as worker:
        await becomes(lambda: compensates.log == ["called", "recover begins"], "the recovery has begun", worker)
        async with shop(broker, Pays(), store=MemoryStore(shared_with=store)).worker() as other:
            await becomes(lambda: committed(broker, P1) == 1, "the next owner has handled it", worker, other)
            compensates.go_on.set()

    assert compensates.log == ["called", "recover begins", "recover is cancelled"]
    assert (answers(broker), worker.counters.recovered, other.counters.handled) == (["order.paid"], 0, 1)


async def test_what_a_recovery_answers_after_its_partition_was_lost_is_not_emitted() -> None:
    broker, compensates = shop_broker(), Compensates(stubborn=True)
    place(broker, "e0")

    async with shop(broker, compensates).worker() as worker:
        await becomes(lambda: compensates.log == ["called", "recover begins"], "the recovery has begun", worker)
        (consumer,) = broker.consumers(SHOP)
        broker.lose(consumer)
        await becomes(lambda: committed(broker) == 1, "it was handled anew", worker)
        compensates.go_on.set()

    assert answers(broker) == ["order.paid"]
    assert (worker.counters.recovered, worker.counters.late) == (0, 1)


async def test_a_letter_tells_when_its_own_delivery_failed_first_not_one_that_was_lost() -> None:
    patient = True

    async def fails(context: Context) -> None:
        raise TransientError("not yet", retry_after_s=30.0 if patient else 0.0)

    broker, book = shop_broker(), Book(fails, retry=TWICE)
    place(broker, *numbered(200))

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: worker.engine.waiting() == 200, "all have failed once", worker)
        patient, lost_at = False, datetime.now(UTC)
        (consumer,) = broker.consumers(SHOP)
        broker.lose(consumer)
        await becomes(lambda: worker.counters.dead_lettered == 200, "all have failed for good", worker)

    failed_at = [datetime.fromisoformat(dlq_headers(letter)["first-failed-at"]) for letter in broker.records(f"{SHOP}.dlq")]
    assert [at for at in failed_at if at < lost_at] == []


# ---- when the group's decision can't be answered --------------------------------------------------------------------------


async def test_a_rebalance_that_could_not_be_answered_for_now_is_answered_by_a_new_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "REBUILD_MOST_S", 0.0)
    broker, book = shop_broker(), Book()
    place(broker, *numbered(3))
    made: list[MemoryConsumer] = []
    make = broker.consumer

    def the_first_fails(group: str) -> MemoryConsumer:
        made.append(make(group))
        if len(made) == 1:
            monkeypatch.setattr(made[0], "poll", fails)
        return made[-1]

    def fails(max_records: int, timeout_s: float) -> list[Batch]:
        raise BrokerError("committed offsets: _TIMED_OUT", code=REBALANCE_FAILED, retriable=False)

    monkeypatch.setattr(broker, "consumer", the_first_fails)

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: committed(broker) == 3, "all are settled", worker)

    assert (book.calls, len(made), worker.counters.broker_errors) == (numbered(3), 2, 1)


class JustTooLate(Future[object]):
    """An answer that comes between the end of the first wait for it and the look at whether it has come."""

    waited = False

    def result(self, timeout: float | None = None) -> object:
        answer = super().result(DEADLINE_S)
        if not self.waited:
            self.waited = True
            raise TimeoutError
        return answer


async def test_an_answer_that_comes_when_the_wait_for_it_has_just_ended_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "Future", JustTooLate)
    broker, book = shop_broker(), Book()
    place(broker, *numbered(3))

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: committed(broker) == 3, "all are settled", worker)

    assert (book.done, worker.counters.rebalances, worker.clean) == (numbered(3), 2, True)
