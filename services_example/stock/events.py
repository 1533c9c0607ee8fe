"""What does stock say, and what does it listen to?"""

from __future__ import annotations

from choreo import Event

# Its own events.


class StockReserved(Event, type="stock.reserved", topic="stock", key="order_id"):
    """It is off the shelf and waits for the parcel."""

    order_id: str
    sku: str
    quantity: int


class StockShort(Event, type="stock.short", topic="stock", key="order_id"):
    """The order can't be sent, now or later."""

    order_id: str
    reason: str


# Its view of what others say: prices and cards are not its business.


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    sku: str
    quantity: int


class OrderCancelled(Event, type="order.cancelled", topic="orders", key="order_id"):
    order_id: str
