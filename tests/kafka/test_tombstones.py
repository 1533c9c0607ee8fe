"""P6: who gets a null value?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from choreo import Context, Envelope, Handler, Tombstone
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Book, Placed, placed

pytestmark = pytest.mark.kafka


class Forget(Handler[Tombstone[Placed]]):
    def __init__(self) -> None:
        self.seen: list[tuple[Envelope[Tombstone[Placed]], Context]] = []

    async def handle(self, event: Envelope[Tombstone[Placed]], context: Context) -> None:
        self.seen.append((event, context))


class Mirror(Handler[Placed | Tombstone[Placed]]):
    def __init__(self) -> None:
        self.state: dict[str, list[int | None]] = {}

    async def handle(self, event: Envelope[Placed | Tombstone[Placed]], context: Context) -> None:
        match event.payload:
            case Placed(order_id=order_id, total_cents=total_cents):
                self.state.setdefault(order_id, []).append(total_cents)
            case Tombstone(key=key):
                self.state.setdefault(key, []).append(None)


class Erase(Handler[Placed]):
    async def handle(self, event: Envelope[Placed], context: Context) -> Tombstone[Placed]:
        return Tombstone(of=Placed, key=event.payload.order_id)


async def test_a_null_value_goes_to_the_handler_that_names_it_and_to_no_other(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(None, b"o-7"), Sent(placed()))
    book, forget = Book(), Forget()

    worker = await ground.run(ground.service(book, forget))

    ((event, context),) = forget.seen
    assert (event.type, event.payload) == ("order.placed", Tombstone(of=Placed, key="o-7"))
    assert (context.key, context.origin.timestamp) == ("o-7", event.timestamp)
    assert abs((datetime.now(UTC) - event.timestamp).total_seconds()) < 60
    assert book.orders == ["o-1"]
    assert (worker.counters.handled, worker.counters.skipped_tombstone) == (2, 0)


async def test_a_null_value_that_nobody_names_is_skipped_and_counted_and_never_a_letter(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(None, b"o-1"), Sent(placed()), Sent(None, None))
    book = Book()

    worker = await ground.run(ground.service(book, strict=True))

    assert ground.committed("orders") == 3
    assert (worker.counters.skipped_tombstone, worker.counters.handled, worker.counters.dead_lettered) == (2, 1, 0)
    assert ground.dead() == []


async def test_a_null_value_keeps_its_place_in_its_key(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("o-1", 1)), Sent(placed("o-1", 2)), Sent(None), Sent(placed("o-1", 3)))
    mirror = Mirror()

    await ground.run(ground.service(mirror))

    assert mirror.state == {"o-1": [1, 2, None, 3]}


async def test_a_null_value_that_dies_is_a_letter_with_a_null_value(ground: Ground) -> None:
    class Refuse(Handler[Tombstone[Placed]]):
        async def handle(self, event: Envelope[Tombstone[Placed]], context: Context) -> None:
            raise ValueError(f"{event.payload.key} must stay")

    Refuse.retry = Book.retry
    ground.make(orders=1)
    ground.put("orders", Sent(None, b"o-9", [("a", b"1")]))

    await ground.run(ground.service(Refuse()))

    (letter,) = ground.dead()
    assert (letter.key, letter.value, letter.headers) == (b"o-9", None, [("a", b"1")])
    assert (letter.why["kind"], letter.why["handler"], letter.why["attempts"]) == ("failed", "refuse", "3")


async def test_a_handler_that_emits_a_tombstone_writes_a_null_value_under_that_key(ground: Ground) -> None:
    ground.make(orders=1)
    (source,) = ground.put("orders", Sent(placed("o-5"), b"o-5", [("choreo-id", b"e-1")]))

    await ground.run(ground.service(Erase()))

    _, erased = ground.records("orders")
    assert (erased.key, erased.value) == (source.key, None)
    assert dict(erased.headers)["choreo-causation-id"] == b"e-1"
