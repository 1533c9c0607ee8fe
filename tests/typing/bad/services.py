"""Services, publishers and settings that are put together wrongly."""

from typing import Any

from psycopg import AsyncConnection, Connection

from choreo import Batcher, Context, Emit, Envelope, Event, Handler, KafkaSettings, Service, ServiceSettings


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class ChargeCard(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
        return None


class NoEvent:
    order_id: str


def settings() -> None:
    ServiceSettings(concurrency="64")  # error
    ServiceSettings(start="newest")  # error
    ServiceSettings(effects="transaction")  # error
    ServiceSettings(concurency=64)  # error
    ServiceSettings("kafka:9092")  # error
    KafkaSettings(bootstrap=9092)  # error
    KafkaSettings(group_protocol="modern")  # error
    KafkaSettings(properties={"linger.ms": [5]})  # error
    ServiceSettings().concurrency = 64  # error


def services() -> None:
    Service("payments", [ChargeCard()])  # error
    Service("payments", handlers=[ChargeCard])  # error
    Service("payments", handlers=ChargeCard())  # error
    Service("payments", publishes=[NoEvent])  # error
    Service("payments", publishes=[OrderPlaced(order_id="o-1")])  # error
    Service("payments", store=".choreo/payments.db")  # error
    Service("payments", resources=[object()])  # error
    Service("payments", settings=KafkaSettings())  # error


async def publishing(service: Service) -> None:
    async with service.publisher() as publisher:
        await publisher.publish("o-1")  # error
        await publisher.publish(NoEvent())  # error
        await publisher.publish(OrderPlaced(order_id="o-1"), event_id=1)  # error
        print(publisher.publish(OrderPlaced(order_id="o-1")).flow_id)  # error
    with service.publisher() as plain:
        await plain.publish(OrderPlaced(order_id="o-1"))  # error
        print(plain.publish(OrderPlaced(order_id="o-1")).flow)  # error


async def running(service: Service) -> None:
    async with service.running(False):  # error
        pass
    with service.running():  # error
        pass


async def flush(lines: list[str]) -> list[int]:
    return [len(line) for line in lines]


async def batching() -> None:
    batcher = Batcher(flush)
    await batcher.add(5)  # error
    name: str = await batcher.add("five")  # error
    print(name)
    Batcher(flush, 100)  # error
    Batcher(len)  # error


async def adding(service: Service, connection: AsyncConnection[Any], plain: Connection[Any]) -> None:
    service.outbox.add(5, OrderPlaced(order_id="o-1"))  # error
    service.outbox.add(plain, "order.placed")  # error
    service.outbox.add(plain, OrderPlaced(order_id="o-1"), event_id=7)  # error
    print(service.outbox.add(connection, OrderPlaced(order_id="o-1")).flow_id)  # error
    print((await service.outbox.add(plain, OrderPlaced(order_id="o-1"))).flow_id)  # error
    Emit(OrderPlaced(order_id="o-1"), after=5)  # error
    Emit(OrderPlaced(order_id="o-1"), at="tomorrow")  # error
