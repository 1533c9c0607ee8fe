"""P7: what becomes of events of a type that nobody here handles, and who owns a type?"""

from __future__ import annotations

import pytest

from choreo import AnyEvent, ConfigurationError, Context, Envelope, Event, Handler, Service
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Book, Placed, envelope, placed

pytestmark = pytest.mark.kafka

STRANGE = envelope({"x": 1}, event_type="order.painted")


class PlacedElsewhere(Event, type="order.placed", topic="archive", key="order_id"):
    order_id: str


class Archive(Handler[PlacedElsewhere]):
    async def handle(self, event: Envelope[PlacedElsewhere], context: Context) -> None: ...


class Emboss(Handler[Placed]):
    async def handle(self, event: Envelope[Placed], context: Context) -> PlacedElsewhere | None:
        return None


class Audit(Handler[AnyEvent]):
    topics = ("orders",)

    def __init__(self) -> None:
        self.seen: list[tuple[str, object]] = []

    async def handle(self, event: Envelope[AnyEvent], context: Context) -> None:
        self.seen.append((event.type, dict(event.payload.fields)))


async def test_events_of_an_unknown_type_are_skipped_and_counted(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(STRANGE), Sent(placed()), Sent(STRANGE), Sent(placed()))
    book = Book()

    worker = await ground.run(ground.service(book))

    assert ground.committed("orders") == 4
    assert (len(book.seen), worker.counters.skipped_type, worker.counters.handled) == (2, 2, 2)
    assert ground.dead() == []


async def test_a_strict_service_writes_a_letter_for_an_unknown_type(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()), Sent(STRANGE, headers=[("choreo-source", b"orders/paint")]), Sent(placed()))
    book = Book()

    worker = await ground.run(ground.service(book, strict=True))

    (letter,) = ground.dead()
    assert (letter.value, letter.why["handler"], letter.why["event-type"]) == (STRANGE, "*", "order.painted")
    assert letter.why["error-message"] == (
        f"{ground.topic('orders')}[0]@1: type: 'order.painted' has no handler here, and strict=True; "
        "fix the producer orders/paint, then replay"
    )
    assert (len(book.seen), worker.counters.skipped_type) == (2, 0)


async def test_a_handler_of_any_event_gets_unknown_types_and_known_ones(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(STRANGE), Sent(placed("o-1", 5)))
    book, audit = Book(), Audit()

    worker = await ground.run(ground.service(book, audit, strict=True))

    assert audit.seen == [("order.painted", {"x": 1}), ("order.placed", {"order_id": "o-1", "total_cents": 5})]
    assert (book.orders, worker.counters.skipped_type) == (["o-1"], 0)


@pytest.mark.parametrize("handlers", [[Book(), Archive()], [Emboss()]], ids=["two handled", "handled and emitted"])
def test_a_service_with_one_type_on_two_topics_is_refused_before_it_opens_anything(handlers: list[Handler[Placed]]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Service("payments", handlers=handlers)

    assert str(refused.value) in (
        "service payments: order.placed is on topic orders in Placed and on archive in PlacedElsewhere",
        "service payments: order.placed is on topic archive in PlacedElsewhere and on orders in Placed",
    )
