"""Is the order paid for? Decided once for each order, and taken back when there is nothing to send.

Payments keeps no state of its own: the gateway knows what was charged, and only it can settle a race between a charge
and a refund of the same order.
"""

from __future__ import annotations

from typing import assert_never

from choreo import Context, Envelope, Handler, RetryPolicy
from services_example.payments.events import OrderPlaced, PaymentReceived, PaymentRefunded, PaymentRefused, StockShort
from services_example.payments.gateway import Approved, CardGateway, Declined

PATIENT = RetryPolicy(max_attempts=4, base_delay_s=0.25)


class ChargeCard(Handler[OrderPlaced]):
    """Charges the card once, however often it has to ask."""

    retry = PATIENT
    timeout_s = 10.0

    def __init__(self, gateway: CardGateway) -> None:
        self._gateway = gateway

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived | PaymentRefused:
        order = event.payload
        answer = await self._gateway.charge(order.order_id, order.total_cents, order.card_token, idempotency_key=context.idempotency_key())
        match answer:
            case Approved(cents):
                return PaymentReceived(order_id=order.order_id, paid_cents=cents)
            case Declined(reason):
                return PaymentRefused(order_id=order.order_id, reason=reason)
            case never:
                assert_never(never)


class RefundPayment(Handler[StockShort]):
    """Nothing to send, so nothing to pay: gives the money back, or keeps a charge that is yet to come from being made."""

    retry = PATIENT
    timeout_s = 10.0

    def __init__(self, gateway: CardGateway) -> None:
        self._gateway = gateway

    async def handle(self, event: Envelope[StockShort], context: Context) -> PaymentRefunded:
        short = event.payload
        cents = await self._gateway.reverse(short.order_id)
        return PaymentRefunded(order_id=short.order_id, refunded_cents=cents, reason=short.reason)
