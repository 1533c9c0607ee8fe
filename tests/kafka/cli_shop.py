"""The service that the tests of the command line run: one handler fails until a file appears."""

from __future__ import annotations

import os
import time
from pathlib import Path

from choreo import Context, Envelope, Event, Handler, PermanentError, RetryPolicy, Service


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class ChargeCard(Handler[OrderPlaced]):
    """Charges, once the gateway's people have mended it: when the file CLI_SHOP_MENDED is there."""

    retry = RetryPolicy(max_attempts=2, base_delay_s=0.01)
    timeout_s = 20.0

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived:
        if event.payload.total_cents > 1_000 and not Path(os.environ["CLI_SHOP_MENDED"]).exists():
            self.post(event.payload)
        return PaymentReceived(order_id=event.payload.order_id)

    def post(self, order: OrderPlaced) -> None:
        raise PermanentError(f"the gateway does not know the card of {order.order_id}")


class WriteDown(Handler[PaymentReceived]):
    """A plain function, on a thread; a slow one where CLI_SHOP_SLOW_S says so."""

    def handle(self, event: Envelope[PaymentReceived], context: Context) -> None:
        time.sleep(float(os.environ.get("CLI_SHOP_SLOW_S", "0")))


def shop() -> Service:
    """Its store is in the working directory."""
    return Service("shop", version="2.3.1", handlers=[ChargeCard(), WriteDown()], publishes=[OrderPlaced])
