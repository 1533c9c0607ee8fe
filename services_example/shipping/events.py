"""What does shipping say, and what does it listen to?"""

from __future__ import annotations

from choreo import Event

# Its own event.


class OrderShipped(Event, type="order.shipped", topic="shipping", key="order_id"):
    """The parcel has left."""

    order_id: str


# Its view of what others say.


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class StockReserved(Event, type="stock.reserved", topic="stock", key="order_id"):
    order_id: str
