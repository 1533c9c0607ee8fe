"""A service as a user composes, publishes from, and runs it: the names of the package's root only."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from sqlite3 import Connection as SqliteConnection
from typing import Any, assert_type

import httpx
from psycopg import AsyncConnection, Connection
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


def place_with_the_row(service: Service, connection: Connection[Any], file: SqliteConnection) -> None:
    connection.execute("insert into orders values ('o-1')")
    assert_type(service.outbox.add(connection, OrderPlaced(order_id="o-1")), Published)
    assert_type(service.outbox.add(file, OrderPlaced(order_id="o-1"), event_id=derived_id("place", 1)), Published)
    service.outbox.add(connection, Emit(PaymentReceived(order_id="o-1"), after=timedelta(hours=1)))
    service.outbox.add(connection, Emit(PaymentReceived(order_id="o-1"), at=datetime(2026, 12, 24, tzinfo=UTC)))


async def place_with_the_row_async(service: Service, connection: AsyncConnection[Any]) -> str:
    published = await service.outbox.add(connection, OrderPlaced(order_id="o-1"))
    assert_type(published, Published)
    return published.flow_id


class Remind(Handler[OrderPlaced, AsyncConnection[Any]]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context[AsyncConnection[Any]]) -> list[Emit[PaymentReceived]]:
        await context.transaction.execute("insert into reminders values (%s)", [event.payload.order_id])
        return [Emit(PaymentReceived(order_id=event.payload.order_id), after=timedelta(minutes=5))]
