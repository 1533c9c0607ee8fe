"""Does one bulk call serve many, and each of them alone?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

import pytest

from choreo import (
    Batcher,
    ConfigurationError,
    Context,
    Envelope,
    Event,
    Handler,
    MemoryStore,
    PermanentError,
    RetryPolicy,
    Service,
    ServiceSettings,
)
from choreo.errors import TransientError
from choreo.testing import MemoryBroker

DEADLINE_S = 20.0
LONG_S = 60.0
"""So long does no test wait: what comes in time came for another reason."""


class Bulk:
    """Doubles what it is given; `calls` are its lists. Waits for `may_end` where that is not set."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.began = asyncio.Event()
        self.may_end = asyncio.Event()
        self.may_end.set()

    async def double(self, items: list[int]) -> list[int]:
        self.calls.append(items)
        self.began.set()
        await self.may_end.wait()
        return [2 * item for item in items]


async def added(batcher: Batcher[int, Any], items: Iterable[int]) -> list[Any]:
    """What each got, errors too."""
    async with asyncio.timeout(DEADLINE_S):
        return await asyncio.gather(*(batcher.add(item) for item in items), return_exceptions=True)


# ---- when it calls --------------------------------------------------------------------------------------------------


async def test_a_full_batch_goes_at_once_and_each_gets_its_own_result() -> None:
    bulk = Bulk()
    batcher = Batcher(bulk.double, max_items=3, max_wait_s=LONG_S)

    actual = await added(batcher, range(6))

    assert actual == [0, 2, 4, 6, 8, 10]
    assert bulk.calls == [[0, 1, 2], [3, 4, 5]]


async def test_one_that_waits_alone_goes_when_its_time_is_over() -> None:
    bulk = Bulk()
    batcher = Batcher(bulk.double, max_items=3, max_wait_s=0.01)

    actual = await added(batcher, [21])

    assert (actual, bulk.calls) == ([42], [[21]])


async def test_what_was_added_meanwhile_goes_along() -> None:
    bulk = Bulk()
    batcher = Batcher(bulk.double, max_items=500, max_wait_s=0.05)

    actual = await added(batcher, range(7))

    assert (actual, bulk.calls) == ([0, 2, 4, 6, 8, 10, 12], [[0, 1, 2, 3, 4, 5, 6]])


async def test_a_call_that_is_under_way_holds_nobody_up() -> None:
    bulk = Bulk()
    bulk.may_end.clear()
    batcher = Batcher(bulk.double, max_items=1, max_wait_s=LONG_S)
    first = asyncio.create_task(batcher.add(1))
    async with asyncio.timeout(DEADLINE_S):
        await bulk.began.wait()
        bulk.may_end.set()

        assert await batcher.add(2) == 4
        assert await first == 2


async def test_the_time_to_wait_begins_with_the_first_of_each_batch() -> None:
    bulk = Bulk()
    batcher = Batcher(bulk.double, max_items=2, max_wait_s=0.01)

    actual = [*await added(batcher, [1, 2]), *await added(batcher, [3])]

    assert (actual, bulk.calls) == ([2, 4, 6], [[1, 2], [3]])


@pytest.mark.parametrize(
    ("numbers", "why"),
    [
        ({"max_items": 0}, "max_items=0; use 1 to 100000"),
        ({"max_items": 100_001}, "max_items=100001; use 1 to 100000"),
        ({"max_wait_s": -0.1}, "max_wait_s=-0.1; use 0 to 60"),
        ({"max_wait_s": 61.0}, "max_wait_s=61.0; use 0 to 60"),
        ({"max_wait_s": float("nan")}, "max_wait_s=nan; use 0 to 60"),
    ],
)
async def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Batcher: {why}"):
        Batcher(Bulk().double, **numbers)


# ---- what it calls --------------------------------------------------------------------------------------------------


async def test_a_plain_function_runs_on_a_thread() -> None:
    threads: list[int] = []

    def double(items: list[int]) -> list[int]:
        threads.append(threading.get_ident())
        return [2 * item for item in items]

    actual = await added(Batcher(double, max_items=2), [1, 2])

    assert actual == [2, 4]
    assert threads != [threading.get_ident()]


async def test_an_object_with_an_async_call_is_awaited() -> None:
    class Double:
        async def __call__(self, items: list[int]) -> list[int]:
            return [2 * item for item in items]

    assert await added(Batcher(Double(), max_items=2), [1, 2]) == [2, 4]


async def test_none_is_everybodys_result() -> None:
    written: list[int] = []

    async def write(items: list[int]) -> None:
        written.extend(items)

    actual = await added(Batcher(write, max_items=2), [1, 2])

    assert (actual, written) == ([None, None], [1, 2])


async def test_a_batcher_made_without_a_loop_serves_one_loop_after_another() -> None:
    def double(items: list[int]) -> list[int]:
        return [2 * item for item in items]

    async def left_waiting() -> None:
        waiting = asyncio.create_task(made.add(0))
        await asyncio.sleep(0)
        assert not waiting.done()

    made = Batcher(double, max_wait_s=0.05)
    await asyncio.to_thread(asyncio.run, left_waiting())

    actual = [await asyncio.to_thread(asyncio.run, added(made, [item])) for item in (1, 2)]

    assert actual == [[2], [4]]


async def test_a_call_belongs_to_none_of_its_items() -> None:
    step: ContextVar[str] = ContextVar("step", default="nobody's")
    seen: list[str] = []

    async def look(items: list[int]) -> None:
        seen.append(step.get())

    batcher = Batcher(look, max_items=2)

    async def handler(item: int) -> None:
        step.set(f"of {item}")
        await batcher.add(item)

    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(handler(1), handler(2), handler(3))

    assert seen == ["nobody's", "nobody's"]


# ---- when it goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_thread", [False, True])
async def test_what_a_call_raises_is_raised_for_each_of_that_call_and_for_no_other(on_thread: bool) -> None:
    def fail_on_one(items: list[int]) -> list[int]:
        if 1 in items:
            raise ConnectionError("the gateway is away")
        return items

    async def awaited(items: list[int]) -> list[int]:
        return fail_on_one(items)

    actual = await added(Batcher(fail_on_one if on_thread else awaited, max_items=2), [0, 1, 2, 3])

    assert [str(each) for each in actual] == ["the gateway is away", "the gateway is away", "2", "3"]
    assert [type(each) for each in actual] == [ConnectionError, ConnectionError, int, int]


@pytest.mark.parametrize("error", [StopIteration("x"), SystemExit("x")])
@pytest.mark.parametrize("on_thread", [False, True])
async def test_what_no_handler_may_raise_becomes_what_it_may(error: BaseException, on_thread: bool) -> None:
    def stop(items: list[int]) -> list[int]:
        raise error

    async def stop_awaited(items: list[int]) -> list[int]:
        raise error

    (actual,) = await added(Batcher(stop if on_thread else stop_awaited, max_items=1), [1])

    assert isinstance(actual, TransientError | RuntimeError)
    assert type(error).__name__ in str(actual)


@pytest.mark.parametrize(
    ("results", "why"),
    [
        ([1], "was given 2 items and returned 1 results; return one for each, in order, or None"),
        ([1, 2, 3], "was given 2 items and returned 3 results"),
        ([], "was given 2 items and returned 0 results"),
        ({1: 1, 2: 2}, "returned dict; return a list with a result for each item, or None"),
        ("12", "returned str; return a list"),
    ],
)
async def test_an_answer_that_does_not_fit_the_items_is_an_error_for_all_that_names_the_function(results: Any, why: str) -> None:
    async def charge(items: list[int]) -> Any:
        return results

    first, second = await added(Batcher(charge, max_items=2), [1, 2])

    assert isinstance(first, PermanentError)
    assert first is second
    assert f"charge {why}" in str(first)


async def test_who_is_cancelled_before_the_call_is_left_out_of_it() -> None:
    bulk = Bulk()
    batcher = Batcher(bulk.double, max_items=3, max_wait_s=LONG_S)
    gone = asyncio.create_task(batcher.add(1))
    await asyncio.sleep(0)
    gone.cancel()

    actual = await added(batcher, [2, 3])

    assert (actual, bulk.calls) == ([4, 6], [[2, 3]])
    assert gone.cancelled()


async def test_who_is_cancelled_during_the_call_breaks_it_for_nobody() -> None:
    bulk = Bulk()
    bulk.may_end.clear()
    batcher = Batcher(bulk.double, max_items=2, max_wait_s=LONG_S)
    gone, stays = asyncio.create_task(batcher.add(1)), asyncio.create_task(batcher.add(2))
    async with asyncio.timeout(DEADLINE_S):
        await bulk.began.wait()

        gone.cancel()
        await asyncio.wait([gone])
        bulk.may_end.set()

        assert await stays == 4
    assert gone.cancelled()


async def test_when_everybody_has_gone_there_is_no_call() -> None:
    bulk = Bulk()
    batcher = Batcher(bulk.double, max_items=2, max_wait_s=0.01)
    gone = asyncio.create_task(batcher.add(1))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])

    actual = await added(batcher, [2])

    assert (actual, bulk.calls) == ([4], [[2]])


# ---- in a service ---------------------------------------------------------------------------------------------------


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class ChargeCards(Handler[OrderPlaced]):
    """Charges in bulk; the gateway refuses a call with ``bad`` in it, so that order is charged for nobody's sake but its own."""

    retry = RetryPolicy(max_attempts=2, base_delay_s=0.0)

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.charged = asyncio.Event()
        self._charges = Batcher(self._charge, max_items=50, max_wait_s=0.02)

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
        if await self._charges.add(event.payload.order_id) == "refused":
            raise PermanentError(f"{event.payload.order_id}: the gateway refused the card")

    async def _charge(self, orders: list[str]) -> list[str]:
        self.calls.append(orders)
        if len(self.calls) == 1:
            raise ConnectionError("the gateway is away")
        if sum(len(call) for call in self.calls[1:]) == 100:
            self.charged.set()
        return ["refused" if order == "o-7" else "charged" for order in orders]


async def test_events_share_calls_and_keep_their_own_retries_and_letters() -> None:
    broker, handler = MemoryBroker(), ChargeCards()
    settings = ServiceSettings(broker=broker, drain_s=5.0)
    service = Service("payments", handlers=[handler], publishes=[OrderPlaced], store=MemoryStore(), settings=settings)
    for topic in service.topics():
        broker.create_topic(topic)
    with service.publisher() as publisher:
        publisher.publish(*(OrderPlaced(order_id=f"o-{number}") for number in range(100)))

    async with asyncio.timeout(DEADLINE_S), service.worker() as worker:
        await handler.charged.wait()
    counters = worker.counters

    first, *others = handler.calls
    assert (counters.handled, counters.retried, counters.dead_lettered) == (99, len(first), 1)
    assert sorted(order for call in others for order in call) == sorted(f"o-{number}" for number in range(100))
    assert len(handler.calls) < 20
    assert [record.key for record in broker.records("payments.dlq")] == [b"o-7"]
