"""What does payments say, and what does it listen to?"""

from __future__ import annotations

from choreo import Event

# Its own events.


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    """The card was charged."""

    order_id: str
    paid_cents: int


class PaymentRefused(Event, type="payment.refused", topic="payments", key="order_id"):
    """The card was not charged, and won't be."""

    order_id: str
    reason: str


class PaymentRefunded(Event, type="payment.refunded", topic="payments", key="order_id"):
    """We hold no money for the order any more, and never will; 0 when the card had not been charged."""

    order_id: str
    refunded_cents: int
    reason: str


# Its view of what others say: what is in the parcel is not its business.


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int
    card_token: str


class StockShort(Event, type="stock.short", topic="stock", key="order_id"):
    order_id: str
    reason: str
