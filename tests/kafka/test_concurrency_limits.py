"""How many calls of a handler run at once?"""

from __future__ import annotations

import asyncio
import threading

import pytest

from choreo import Context, Envelope, Handler
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import QUICK, Placed, placed

pytestmark = pytest.mark.kafka

EVENTS = 60


class Counted(Handler[Placed]):
    """Says how many of its calls ran at once at most; fails now and then, which must not cost it a place."""

    retry = QUICK

    def __init__(self, limit: int | None) -> None:
        self.max_concurrency = limit
        self.most = self.calls = 0
        self._running = 0

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.calls += 1
        self._running += 1
        self.most = max(self.most, self._running)
        try:
            for _ in range(3):
                await asyncio.sleep(0.001)
            if event.payload.total_cents % 5 == 0 and context.attempt == 1:
                raise ValueError("now and then")
        finally:
            self._running -= 1


class CountedOnThreads(Handler[Placed]):
    def __init__(self, limit: int) -> None:
        self.max_concurrency = limit
        self.most = 0
        self._running = 0
        self._lock = threading.Lock()

    def handle(self, event: Envelope[Placed], context: Context) -> None:
        with self._lock:
            self._running += 1
            self.most = max(self.most, self._running)
        threading.Event().wait(0.005)
        with self._lock:
            self._running -= 1


def fill(ground: Ground) -> None:
    ground.make(orders=2)
    ground.put("orders", *(Sent(placed("o", number), b"k-%d" % number, partition=number % 2) for number in range(EVENTS)))


async def test_a_handler_with_a_limit_never_exceeds_it_and_one_beside_it_does(ground: Ground) -> None:
    fill(ground)
    limited, free = Counted(3), Counted(None)
    limited.name, free.name = "limited", "free"

    worker = await ground.run(ground.service(limited, free))

    assert (limited.most, limited.calls) == (3, EVENTS + EVENTS // 5)
    assert free.most > 3
    assert worker.counters.handled == 2 * EVENTS


async def test_a_plain_handler_with_a_limit_never_exceeds_it(ground: Ground) -> None:
    fill(ground)
    limited = CountedOnThreads(2)

    worker = await ground.run(ground.service(limited, threads=8))

    assert (limited.most, worker.counters.handled) == (2, EVENTS)


async def test_a_service_never_runs_more_async_calls_than_its_concurrency(ground: Ground) -> None:
    fill(ground)
    counted = Counted(None)

    worker = await ground.run(ground.service(counted, concurrency=4))

    assert (counted.most, worker.counters.handled) == (4, EVENTS)
