"""What does orders say, and what does it listen to?"""

from __future__ import annotations

from choreo import Event

# Its own events.


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    """A customer wants this. `card_token` stands for the card; its number never leaves the browser."""

    order_id: str
    sku: str
    quantity: int
    total_cents: int
    card_token: str


class OrderCancelled(Event, type="order.cancelled", topic="orders", key="order_id"):
    """The order ends here; whoever holds something for it lets go."""

    order_id: str
    reason: str


# Its view of what others say: only the fields it reads.


class PaymentRefused(Event, type="payment.refused", topic="payments", key="order_id"):
    order_id: str
    reason: str


class PaymentRefunded(Event, type="payment.refunded", topic="payments", key="order_id"):
    order_id: str
    reason: str


class OrderShipped(Event, type="order.shipped", topic="shipping", key="order_id"):
    order_id: str
