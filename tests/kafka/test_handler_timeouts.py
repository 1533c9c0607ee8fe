"""What becomes of an `async def` handler that takes too long?"""

from __future__ import annotations

import asyncio

import pytest

from choreo import Context, Envelope, Handler
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import QUICK, Placed, placed

pytestmark = pytest.mark.kafka


class Waits(Handler[Placed]):
    """Waits for ever at its first `times` attempts."""

    timeout_s = 0.1
    retry = QUICK

    def __init__(self, times: int) -> None:
        self.attempts: list[int] = []
        self.cancelled = 0
        self._times = times

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        if event.payload.order_id != "slow":
            return
        self.attempts.append(context.attempt)
        if context.attempt <= self._times:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise


async def test_a_handler_that_takes_too_long_is_cancelled_and_tried_again(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("slow")), Sent(placed("after")))
    waits = Waits(1)

    worker = await ground.run(ground.service(waits))

    assert (waits.attempts, waits.cancelled) == ([1, 2], 1)
    assert (worker.counters.handled, worker.counters.retried, worker.counters.dead_lettered) == (2, 1, 0)


async def test_a_handler_that_always_takes_too_long_is_a_letter_after_its_attempts(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("slow")), Sent(placed("after"), b"other"))
    waits = Waits(99)

    worker = await ground.run(ground.service(waits))

    (letter,) = ground.dead()
    assert (letter.value, letter.why["attempts"], letter.why["error-type"]) == (placed("slow"), "3", "HandlerTimeoutError")
    assert letter.why["error-message"] == f"{ground.topic('orders')}[0]@0: cancelled after timeout_s=0.1"
    assert (waits.attempts, worker.counters.handled) == ([1, 2, 3], 1)


async def test_a_handler_that_swallows_its_cancellation_and_answers_has_answered(ground: Ground) -> None:
    class Stubborn(Handler[Placed]):
        timeout_s = 0.1

        def __init__(self) -> None:
            self.orders: list[str] = []

        async def handle(self, event: Envelope[Placed], context: Context) -> None:
            self.orders.append(event.payload.order_id)
            if event.payload.order_id == "slow":
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    pass

    ground.make(orders=1)
    ground.put("orders", Sent(placed("slow")), *(Sent(placed(f"o-{number}")) for number in range(5)))
    stubborn = Stubborn()

    worker = await ground.run(ground.service(stubborn, concurrency=1))

    assert stubborn.orders == ["slow", "o-0", "o-1", "o-2", "o-3", "o-4"]
    assert (worker.counters.handled, worker.counters.retried) == (6, 0)


async def test_a_handler_that_raises_a_cancellation_of_its_own_is_tried_again_and_the_worker_goes_on(ground: Ground) -> None:
    class Cancels(Handler[Placed]):
        retry = QUICK

        async def handle(self, event: Envelope[Placed], context: Context) -> None:
            if context.attempt < 3:
                raise asyncio.CancelledError

    ground.make(orders=1)
    ground.put("orders", Sent(placed()), Sent(placed("o-2")))

    worker = await ground.run(ground.service(Cancels()))

    assert (worker.counters.handled, worker.counters.retried, worker.counters.dead_lettered) == (2, 4, 0)
