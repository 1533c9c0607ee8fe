"""Tests of handlers that ask for what a handler can't answer."""

from psycopg import AsyncConnection

from choreo.envelope import Envelope
from choreo.events import Event
from choreo.handler import Context, Handler
from choreo.testing import delivery


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class PaymentRefused(Event, type="payment.refused", topic="payments", key="order_id"):
    order_id: str
    reason: str


class ChargeCard(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived | PaymentRefused:
        return PaymentReceived(order_id=event.payload.order_id)


class BookPayment(Handler[PaymentReceived, AsyncConnection]):
    async def handle(self, event: Envelope[PaymentReceived], context: Context[AsyncConnection]) -> None:
        return None


async def test_charge_card() -> None:
    event, context = delivery(OrderPlaced(order_id="o-1"))

    refused: PaymentRefused = await ChargeCard().handle(event, context)  # error
    answer = await ChargeCard().handle(event, context)

    print(refused)
    print(answer.reason)  # error
    print(ChargeCard().handle(event, context).order_id)  # error


async def test_book_payment() -> None:
    placed, _ = delivery(OrderPlaced(order_id="o-1"))
    event, context = delivery(PaymentReceived(order_id="o-1"))

    await BookPayment().handle(event, context)  # error
    await ChargeCard().handle(event, context)  # error
    await ChargeCard().handle(placed)  # error
    delivery("o-1")  # error
