from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from choreo import Failure, PermanentError
from choreo.testing import delivery
from services_example.stock.events import OrderCancelled, OrderPlaced, StockReserved, StockShort
from services_example.stock.handlers import ReserveStock
from services_example.stock.shelves import Movement, Shelves

NOW = datetime(2026, 11, 22, tzinfo=UTC)
FAILURE = Failure(error_type="OSError", message="disk full", attempts=3, permanent=False, first_failed_at=NOW, last_failed_at=NOW)


@pytest.fixture
def shelves() -> Iterator[Shelves]:
    with Shelves(":memory:") as shelves:
        yield shelves


def placed(order_id: str = "o-1", quantity: int = 2) -> OrderPlaced:
    return OrderPlaced(order_id=order_id, sku="lamp", quantity=quantity)


def lamps(shelves: Shelves) -> int:
    return next(shelf.on_hand for shelf in shelves.shelves() if shelf.sku == "lamp")


def test_what_was_ordered_is_put_aside(shelves: Shelves) -> None:
    event, context = delivery(placed())

    emitted = ReserveStock(shelves).handle(event, context)

    assert emitted == StockReserved(order_id="o-1", sku="lamp", quantity=2)
    assert lamps(shelves) == 1


def test_an_order_for_more_than_there_is_is_short(shelves: Shelves) -> None:
    ReserveStock(shelves).handle(*delivery(placed("o-1")))

    emitted = ReserveStock(shelves).handle(*delivery(placed("o-2")))

    assert emitted == StockShort(order_id="o-2", reason="out of stock: lamp")
    assert lamps(shelves) == 1


def test_an_order_that_is_handled_twice_takes_once(shelves: Shelves) -> None:
    event, context = delivery(placed())

    emitted = [ReserveStock(shelves).handle(event, context) for _ in range(2)]

    assert emitted == [StockReserved(order_id="o-1", sku="lamp", quantity=2)] * 2
    assert lamps(shelves) == 1


def test_what_was_cancelled_is_put_back_once(shelves: Shelves) -> None:
    handler = ReserveStock(shelves)
    handler.handle(*delivery(placed()))

    emitted = [handler.handle(*delivery(OrderCancelled(order_id="o-1"))) for _ in range(2)]

    assert emitted == [None, None]
    assert shelves.movements() == [Movement("o-1", "lamp", 2), Movement("o-1", "lamp", -2)]


def test_an_order_that_was_short_stays_short(shelves: Shelves) -> None:
    handler = ReserveStock(shelves)
    handler.handle(*delivery(placed("o-1", quantity=3)))
    handler.handle(*delivery(placed("o-2"), event_id="placed-2"))
    handler.handle(*delivery(OrderCancelled(order_id="o-1")))

    emitted = handler.handle(*delivery(placed("o-2"), event_id="placed-2"))

    assert emitted == StockShort(order_id="o-2", reason="out of stock: lamp")


def test_an_order_that_cannot_be_looked_up_is_short(shelves: Shelves) -> None:
    event, context = delivery(placed())

    emitted = ReserveStock(shelves).recover(event, FAILURE, context)

    assert emitted == StockShort(order_id="o-1", reason="stock failed: disk full")


def test_an_order_that_was_reserved_before_it_failed_is_reserved(shelves: Shelves) -> None:
    event, context = delivery(placed())
    ReserveStock(shelves).handle(event, context)

    emitted = ReserveStock(shelves).recover(event, FAILURE, context)

    assert emitted == StockReserved(order_id="o-1", sku="lamp", quantity=2)


def test_goods_that_cannot_be_put_back_are_a_matter_for_people(shelves: Shelves) -> None:
    event, context = delivery(OrderCancelled(order_id="o-1"))

    with pytest.raises(PermanentError, match="disk full"):
        ReserveStock(shelves).recover(event, FAILURE, context)
