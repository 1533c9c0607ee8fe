from __future__ import annotations

from collections.abc import Iterator

import pytest

from choreo import PermanentError
from choreo.testing import delivery
from services_example.orders.book import OrderBook, Status
from services_example.orders.events import OrderCancelled, OrderPlaced, OrderShipped, PaymentRefunded, PaymentRefused
from services_example.orders.handlers import CancelOrder, CompleteOrder, TrackOrder

PLACED = OrderPlaced(order_id="o-1", sku="mug", quantity=2, total_cents=1800, card_token="tok_visa_4242")
REFUSED = PaymentRefused(order_id="o-1", reason="over the card's limit")
REFUNDED = PaymentRefunded(order_id="o-1", reason="out of stock: lamp")
CANCELLED = OrderCancelled(order_id="o-1", reason="over the card's limit")
SHIPPED = OrderShipped(order_id="o-1")


@pytest.fixture
def book() -> Iterator[OrderBook]:
    with OrderBook(":memory:") as book:
        yield book


def test_a_refused_payment_cancels_the_order(book: OrderBook) -> None:
    TrackOrder(book).handle(*delivery(PLACED))

    emitted = CancelOrder(book).handle(*delivery(REFUSED))

    assert emitted == CANCELLED
    assert [order.status for order in book.orders()] == [Status.CANCELLING]


def test_an_order_is_cancelled_once_when_its_payment_is_refused_and_refunded(book: OrderBook) -> None:
    CancelOrder(book).handle(*delivery(REFUSED))

    emitted = CancelOrder(book).handle(*delivery(REFUNDED))

    assert emitted is None


def test_the_event_that_cancelled_an_order_says_so_again_when_it_is_handled_again(book: OrderBook) -> None:
    CancelOrder(book).handle(*delivery(REFUSED, event_id="refused-1"))

    emitted = CancelOrder(book).handle(*delivery(REFUSED, event_id="refused-1"))

    assert emitted == CANCELLED


def test_an_order_is_cancelled_when_its_own_event_has_come_round(book: OrderBook) -> None:
    CancelOrder(book).handle(*delivery(REFUSED))

    TrackOrder(book).handle(*delivery(CANCELLED))

    assert [order.status for order in book.orders()] == [Status.CANCELLED]


def test_a_shipped_order_is_shipped_even_if_shipping_was_faster_than_our_own_event(book: OrderBook) -> None:
    CompleteOrder(book).handle(*delivery(SHIPPED))

    TrackOrder(book).handle(*delivery(PLACED))

    assert [(order.status, order.total_cents) for order in book.orders()] == [(Status.SHIPPED, 1800)]


def test_a_cancelled_order_that_is_shipped_is_a_matter_for_people(book: OrderBook) -> None:
    CancelOrder(book).handle(*delivery(REFUSED))

    with pytest.raises(PermanentError, match="o-1 is cancelling, and it was shipped"):
        CompleteOrder(book).handle(*delivery(SHIPPED))


def test_a_shipped_order_that_is_cancelled_is_a_matter_for_people(book: OrderBook) -> None:
    CompleteOrder(book).handle(*delivery(SHIPPED))

    with pytest.raises(PermanentError, match="o-1 was shipped"):
        CancelOrder(book).handle(*delivery(REFUSED))
