"""P6: what is the difference between empty and nothing?"""

from __future__ import annotations

import asyncio

import pytest

from choreo import Context, Envelope, Handler
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Book, Placed, fails, placed

pytestmark = pytest.mark.kafka


class Together(Handler[Placed]):
    """Ends a call only when `count` have begun, and says how many ran at once at most."""

    def __init__(self, count: int) -> None:
        self.most = 0
        self._running = 0
        self._all = asyncio.Event()
        self._count = count

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self._running += 1
        self.most = max(self.most, self._running)
        if self._running == self._count:
            self._all.set()
        await self._all.wait()
        self._running -= 1


async def test_an_empty_value_is_a_letter_and_no_tombstone(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(b""), Sent(placed()))
    book = Book()

    worker = await ground.run(ground.service(book))

    (letter,) = ground.dead()
    assert (letter.key, letter.value) == (b"o-1", b"")
    assert "value: empty; a tombstone is null, not empty" in letter.why["error-message"]
    assert (worker.counters.skipped_tombstone, book.orders) == (0, ["o-1"])


async def test_events_without_a_key_have_no_order_and_run_at_the_same_time(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *(Sent(placed(), None) for _ in range(5)))
    together = Together(5)

    await ground.run(ground.service(together))

    assert together.most == 5


async def test_events_with_an_empty_key_are_one_key_in_order(ground: Ground) -> None:
    class Slow(Handler[Placed]):
        def __init__(self) -> None:
            self.steps: list[tuple[str, str]] = []

        async def handle(self, event: Envelope[Placed], context: Context) -> None:
            self.steps.append(("begin", event.payload.order_id))
            await asyncio.sleep(0)
            self.steps.append(("end", event.payload.order_id))

    ground.make(orders=1)
    ground.put("orders", *(Sent(placed(f"o-{number}"), b"") for number in range(3)))
    slow = Slow()

    await ground.run(ground.service(slow))

    assert slow.steps == [(step, f"o-{number}") for number in range(3) for step in ("begin", "end")]


async def test_a_letter_keeps_the_difference_between_an_empty_key_and_none(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed(), b""), Sent(placed(), None))

    await ground.run(ground.service(Book(fails)))

    assert sorted((letter.why["offset"], letter.key) for letter in ground.dead()) == [("0", b""), ("1", None)]
    assert {(state.origin.offset, state.key) for state in ground.states()} == {(0, ""), (1, None)}


async def test_a_handler_is_told_its_key_or_that_there_is_none(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed(), b""), Sent(placed(), None), Sent(placed(), b"\xff\x00"))
    book = Book()

    await ground.run(ground.service(book))

    assert {seen.context.origin.offset: seen.context.key for seen in book.seen} == {0: "", 1: None, 2: "�\x00"}
