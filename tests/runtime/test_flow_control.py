"""Does reading go on when the loop takes events again, whatever happened while it took none?"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

import pytest

from choreo.errors import BrokerError
from choreo.record import Batch, TopicPartition
from choreo.runtime import intake
from choreo.store import Claim
from choreo.testing.memory_consumer import MemoryConsumer
from tests.runtime.shop import DEADLINE_S, Book, GuardedStore, becomes, committed, numbered, place, shop, shop_broker
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
