"""A service as a user composes, publishes from, and runs it: the names of the package's root only."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import assert_type

import httpx
from psycopg_pool import ConnectionPool

from choreo import (
    Batcher,
    Context,
    Emit,
    Envelope,
    Event,
    Handler,
    KafkaSettings,
    MemoryStore,
    PostgresStore,
    Published,
    Service,
    ServiceSettings,
    SqliteStore,
    derived_id,
)


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class ChargeCard(Handler[OrderPlaced]):
    def __init__(self, gateway: httpx.AsyncClient) -> None:
        self._gateway = gateway
        self._charges = Batcher(self._charge, max_items=100, max_wait_s=0.01)

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived:
        assert_type(await self._charges.add(event.payload.order_id), bool)
        return PaymentReceived(order_id=event.payload.order_id)

    async def _charge(self, orders: list[str]) -> list[bool]:
        answer = await self._gateway.post("/charges", json=orders)
        return [answer.is_success for _ in orders]


class WriteDown(Handler[PaymentReceived]):
    def __init__(self) -> None:
        self._lines = Batcher(self._write)

    async def handle(self, event: Envelope[PaymentReceived], context: Context) -> None:
        await self._lines.add(event.payload.order_id)

    def _write(self, lines: list[str]) -> None:
        print(*lines, sep="\n")


def payments() -> Service:
    gateway = httpx.AsyncClient(base_url="http://gateway")
    kafka = KafkaSettings(bootstrap="kafka:9092", properties={"linger.ms": 5, "security.protocol": "SASL_SSL"}, group_protocol="consumer")
    settings = ServiceSettings(
        kafka=kafka, start=datetime(2026, 11, 22, tzinfo=UTC), effects="claims", drain_s=20, topic_names={"orders": "shop.orders"}
    )
    return Service(
        "payments",
        handlers=[ChargeCard(gateway), WriteDown()],
        publishes=[OrderPlaced],
        store=SqliteStore(".choreo/payments.db"),
        resources=[gateway],
        settings=settings,
        version="2.3.1",
    )


async def place(service: Service, order_id: str) -> str:
    async with service.publisher() as publisher:
        published = await publisher.publish(OrderPlaced(order_id=order_id), event_id=derived_id("checkout", order_id))
        assert_type(published, Published)
        await publisher.publish(Emit(OrderPlaced(order_id=order_id), key="k"))
    return published.flow_id


def place_plainly(service: Service, order_id: str) -> str:
    with service.publisher() as publisher:
        assert_type(publisher.publish(OrderPlaced(order_id=order_id)), Published)
        event_id, flow_id = publisher.publish(OrderPlaced(order_id=order_id))
    return f"{event_id} of {flow_id}"


@asynccontextmanager
async def lifespan(app: object) -> AsyncGenerator[None]:
    async with payments().running(consume=False):
        yield


in_tests = Service("payments", store=MemoryStore(), settings=ServiceSettings(effects="claims"))
by_conninfo = Service("payments", store=PostgresStore("host=db dbname=shop", schema="claims", lock_timeout_s=2.0))
pool = ConnectionPool("host=db dbname=shop", open=False)
by_pool = Service("payments", store=PostgresStore(pool), resources=[pool])
