"""How does an order end? Shipped when shipping says so, cancelled when it can't be paid or there is nothing to send."""

from __future__ import annotations

from typing import assert_never

from choreo import Context, Envelope, Handler
from services_example.orders.book import OrderBook
from services_example.orders.events import OrderCancelled, OrderPlaced, OrderShipped, PaymentRefunded, PaymentRefused


class TrackOrder(Handler[OrderPlaced | OrderCancelled]):
    """Writes down what orders itself has said: what stands on the topic is the truth, the book follows it."""

    def __init__(self, book: OrderBook) -> None:
        self._book = book

    def handle(self, event: Envelope[OrderPlaced | OrderCancelled], context: Context) -> None:
        match event.payload:
            case OrderPlaced() as order:
                self._book.place(order.order_id, order.total_cents)
            case OrderCancelled() as order:
                self._book.cancelled(order.order_id)
            case never:
                assert_never(never)


class CancelOrder(Handler[PaymentRefused | PaymentRefunded]):
    """An order that isn't paid for ends. Both events may come; one of them cancels."""

    def __init__(self, book: OrderBook) -> None:
        self._book = book

    def handle(self, event: Envelope[PaymentRefused | PaymentRefunded], context: Context) -> OrderCancelled | None:
        payment = event.payload
        if not self._book.cancel(payment.order_id, decided_by=context.event_id):
            return None
        return OrderCancelled(order_id=payment.order_id, reason=payment.reason)


class CompleteOrder(Handler[OrderShipped]):
    """The happy end."""

    def __init__(self, book: OrderBook) -> None:
        self._book = book

    def handle(self, event: Envelope[OrderShipped], context: Context) -> None:
        self._book.shipped(event.payload.order_id)
