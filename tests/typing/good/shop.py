"""The example of DESIGN section 2, but for its Service."""

from typing import assert_type

import httpx
from psycopg import AsyncConnection

from choreo.core.retry import RetryPolicy, http_client_error
from choreo.envelope import Envelope
from choreo.events import Event
from choreo.handler import Context, Handler
from choreo.testing import delivery


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class PaymentRefused(Event, type="payment.refused", topic="payments", key="order_id"):
    order_id: str
    reason: str


class ChargeCard(Handler[OrderPlaced]):
    retry = RetryPolicy(max_attempts=3, permanent=(http_client_error,))

    def __init__(self, gateway: httpx.AsyncClient) -> None:
        self._gateway = gateway

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived | PaymentRefused:
        charge = {"cents": event.payload.total_cents}
        answer = await self._gateway.post("/charges", json=charge, headers={"Idempotency-Key": context.idempotency_key()})
        if answer.status_code == 402:
            return PaymentRefused(order_id=event.payload.order_id, reason="limit")
        answer.raise_for_status()
        return PaymentReceived(order_id=event.payload.order_id)


class BookPayment(Handler[PaymentReceived, AsyncConnection]):
    async def handle(self, event: Envelope[PaymentReceived], context: Context[AsyncConnection]) -> None:
        await context.transaction.execute("insert into payments values (%s)", (event.payload.order_id,))


def refusing(request: httpx.Request) -> httpx.Response:
    return httpx.Response(402)


async def test_a_refused_card_refuses_the_payment() -> None:
    gateway = httpx.AsyncClient(transport=httpx.MockTransport(refusing), base_url="http://gateway")
    event, context = delivery(OrderPlaced(order_id="o-1", total_cents=500))

    actual = await ChargeCard(gateway).handle(event, context)

    assert actual == PaymentRefused(order_id="o-1", reason="limit")


async def test_what_a_handler_answers_is_narrow(connection: AsyncConnection) -> None:
    event, context = delivery(OrderPlaced(order_id="o-1", total_cents=500))
    assert_type(event, Envelope[OrderPlaced])
    assert_type(context, Context[None])
    assert_type(await ChargeCard(httpx.AsyncClient()).handle(event, context), PaymentReceived | PaymentRefused)

    booked, in_transaction = delivery(PaymentReceived(order_id="o-1"), transaction=connection)
    await BookPayment().handle(booked, in_transaction)
