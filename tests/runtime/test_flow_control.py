"""Is no more taken in than may be, and does reading go on when the loop takes events again, whatever happened meanwhile?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence

import pytest

from choreo.errors import BrokerError
from choreo.handler import Context
from choreo.record import Batch, Committed, TopicPartition
from choreo.runtime import claims, intake
from choreo.storage.memory import MemoryStore
from choreo.store import Claim
from choreo.testing.memory_consumer import MemoryConsumer
from tests.runtime.shop import (
    DEADLINE_S,
    P0,
    SHOP,
    Book,
    File,
    GuardedStore,
    becomes,
    committed,
    numbered,
    place,
    shop,
    shop_broker,
)
from tests.support.waiting import wait_for

Poll = Callable[[int, float], list[Batch]]


class Stall:
    """A store that answers no look-up before everything is paused for it; then, within the next poll, `meanwhile` happens, and
    the loop takes events again before that poll is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[Poll], list[Batch]]) -> None:
        self.book = Book()
        self.store = GuardedStore(self._wait)
        self._paused, self._over = threading.Event(), threading.Event()
        self._meanwhile = meanwhile
        monkeypatch.setattr(intake, "STALLED_S", 0.02)
        monkeypatch.setattr(intake, "AHEAD", 10)
        monkeypatch.setattr(intake, "BATCH", 5)
        self._pause, self._poll = MemoryConsumer.pause, MemoryConsumer.poll
        monkeypatch.setattr(MemoryConsumer, "pause", lambda consumer, partitions: self._paused_all(consumer, partitions))
        monkeypatch.setattr(MemoryConsumer, "poll", lambda consumer, most, timeout_s: self._polled(consumer, most, timeout_s))

    def _wait(self, _: Collection[Claim]) -> None:
        self._over.wait(DEADLINE_S)

    def _paused_all(self, consumer: MemoryConsumer, partitions: Sequence[TopicPartition]) -> None:
        self._pause(consumer, partitions)
        self._paused.set()

    def _polled(self, consumer: MemoryConsumer, most: int, timeout_s: float) -> list[Batch]:
        if not self._paused.is_set() or self._over.is_set():
            return self._poll(consumer, most, timeout_s)
        try:
            return self._meanwhile(lambda most, timeout_s: self._poll(consumer, most, timeout_s))
        finally:
            self._over.set()
            wait_for(lambda: len(self.book.calls) >= 10, "the loop takes events again", deadline_s=DEADLINE_S, every_s=0.001)


async def test_reading_goes_on_after_a_stall_that_ended_in_a_poll_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Poll) -> list[Batch]:
        raise BrokerError("all brokers are down, as the test asked", code="_ALL_BROKERS_DOWN")

    broker, stall = shop_broker(), Stall(monkeypatch, fails)
    place(broker, *numbered(30))

    async with shop(broker, stall.book, store=stall.store).worker() as worker:
        await becomes(lambda: committed(broker) == 30, "all are settled", worker)

    assert (worker.counters.broker_errors, sorted(stall.book.done)) == (1, sorted(numbered(30)))


async def test_reading_goes_on_after_a_stall_during_which_a_partition_was_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    def a_partition_comes(poll: Poll) -> list[Batch]:
        broker.cluster().add_partitions("orders", 2)
        return poll(5, 0.0)

    broker = shop_broker()
    stall = Stall(monkeypatch, a_partition_comes)
    place(broker, *numbered(30))

    async with shop(broker, stall.book, store=stall.store).worker() as worker:
        await becomes(lambda: committed(broker) == 30, "all are settled", worker)

    assert sorted(stall.book.done) == sorted(numbered(30))


# ---- no more than may be --------------------------------------------------------------------------------------------------


async def test_no_more_is_polled_while_the_loop_is_behind_however_many_orders_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "AHEAD", 10)
    monkeypatch.setattr(intake, "URGENT_AHEAD", 10)
    monkeypatch.setattr(intake, "BATCH", 5)
    monkeypatch.setattr(intake, "STALLED_S", 10 * DEADLINE_S)
    carried_out: list[Mapping[TopicPartition, Committed]] = []
    commit = MemoryConsumer.commit

    def notes(consumer: MemoryConsumer, offsets: Mapping[TopicPartition, Committed]) -> None:
        carried_out.extend([offsets] if offsets == {P0: Committed(0)} else [])  # the worker's own have something to say
        commit(consumer, offsets)

    monkeypatch.setattr(MemoryConsumer, "commit", notes)
    gate = threading.Event()

    def waits(_: Collection[Claim]) -> None:
        gate.wait(DEADLINE_S)

    broker, book = shop_broker(), Book()
    place(broker, *numbered(100))

    async with shop(broker, book, store=GuardedStore(waits)).worker() as worker:
        # The first batch was accepted and waits for its look-up; ten records more are all that may wait behind it.
        await becomes(lambda: worker.intake.ahead == 10, "the loop is behind", worker)
        for number in range(10):
            worker.intake.commit({P0: Committed(0)})
            await becomes(lambda number=number: len(carried_out) == number + 1, "the order is carried out", worker)  # type: ignore[misc]
        behind = worker.intake.ahead
        gate.set()
        await becomes(lambda: committed(broker) == 100, "all are settled", worker)

    assert (behind, len(book.done)) == (10, 100)


async def test_no_more_is_handed_to_the_threads_than_may_wait_for_them_when_all_has_to_be_looked_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "FRESH_S", 0.0)
    gate = threading.Event()

    def waits(context: Context) -> None:
        gate.wait(DEADLINE_S)

    broker, file = shop_broker(), File(waits)
    place(broker, *numbered(40))

    async with shop(broker, file, threads=2).worker() as worker:
        await becomes(lambda: len(file.calls) == 2, "both threads are busy", worker)
        begun = worker.engine.running()
        gate.set()
        await becomes(lambda: committed(broker) == 40, "all are settled", worker)

    assert (begun, sorted(file.calls)) == (2 * 4, sorted(numbered(40)))


async def test_what_turns_out_to_be_handled_on_its_way_to_a_thread_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "FRESH_S", 0.0)
    broker, store, file = shop_broker(), MemoryStore(), File()
    store.open(SHOP)
    store.claim([Claim("file", event_id) for event_id in numbered(30)])
    place(broker, *numbered(40))

    async with shop(broker, file, store=MemoryStore(shared_with=store), threads=1).worker() as worker:
        await becomes(lambda: committed(broker) == 40, "all are settled", worker)

    assert (worker.counters.duplicates, sorted(file.calls)) == (30, sorted(numbered(40)[30:]))
