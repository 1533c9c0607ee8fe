"""Do both publishers say the same on a real Kafka of what can't be written?"""

from __future__ import annotations

import asyncio
import time

import orjson
import pytest

from choreo import BrokerError, KafkaSettings, Service, ServiceSettings
from choreo.runtime import publishing
from tests.kafka.ground import Ground
from tests.kafka.shop import Placed
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names

pytestmark = pytest.mark.kafka

USER = "payments"
DEADLINE_S = 25.0
AWAY = "127.0.0.1:1"


def shop(kafka: KafkaSettings, prefix: str) -> Service:
    return Service("shop", publishes=[Placed], settings=ServiceSettings(kafka=kafka, topic_prefix=prefix))


async def refusals(service: Service) -> list[BrokerError]:
    """What the async publisher says, and the plain one."""
    with pytest.raises(BrokerError) as by_async:
        async with service.publisher() as publisher:
            await asyncio.wait_for(publisher.publish(Placed(order_id="o-1", total_cents=1), event_id="e-1"), DEADLINE_S)

    def plainly() -> None:
        with service.publisher() as publisher:
            publisher.publish(Placed(order_id="o-1", total_cents=1), event_id="e-1")

    with pytest.raises(BrokerError) as by_plain:
        await asyncio.to_thread(plainly)
    return [by_async.value, by_plain.value]


async def test_a_topic_that_is_not_there_is_an_error_of_both(ground: Ground) -> None:
    errors = await refusals(shop(KafkaSettings(bootstrap=ground.kafka.bootstrap), ground.prefix))

    assert {error.code for error in errors} <= {"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC"}
    assert [error.retriable for error in errors] == [False, False]
    assert all(str(error).endswith("; make it with: choreo topics apply") for error in errors)


@pytest.mark.parametrize(
    ("writable", "code"),
    [("paid", "TOPIC_AUTHORIZATION_FAILED"), (None, "CLUSTER_AUTHORIZATION_FAILED")],
    ids=["may write elsewhere", "may write nowhere"],
)
async def test_a_right_that_is_missing_is_an_error_of_both(kafka_sasl: KafkaCluster, names: Names, writable: str | None, code: str) -> None:
    ground = Ground(kafka_sasl.access(), names)
    ground.make(orders=1, paid=1)
    kafka_sasl.permissions.allow(USER, "DESCRIBE", topic=ground.topic("orders"))
    if writable is not None:
        kafka_sasl.permissions.allow(USER, "WRITE", topic=ground.topic(writable))
    kafka = KafkaSettings(bootstrap=kafka_sasl.bootstrap, properties=kafka_sasl.security(USER))

    errors = await refusals(shop(kafka, ground.prefix))
    ground.delete()

    assert [(error.code, error.retriable) for error in errors] == [(code, False)] * 2


async def test_a_kafka_that_is_away_is_an_error_of_both_when_the_delivery_times_out() -> None:
    kafka = KafkaSettings(bootstrap=AWAY, properties={"delivery.timeout.ms": 1000})

    errors = await refusals(shop(kafka, ""))

    assert [(error.code, error.retriable) for error in errors] == [("_MSG_TIMED_OUT", True)] * 2
    assert all(str(error).endswith("publish it again with event_id='e-1'") for error in errors)


async def test_a_block_that_ends_while_kafka_is_away_tells_who_publishes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "FLUSH_S", 0.2)
    began_s = time.monotonic()
    async with shop(KafkaSettings(bootstrap=AWAY), "").publisher() as publisher:
        under_way = asyncio.create_task(publisher.publish(Placed(order_id="o-1", total_cents=1), event_id="e-1"))
        await asyncio.sleep(0)

    with pytest.raises(BrokerError, match=r"closed before it was acknowledged; unknown whether it was written: publish it again"):
        await asyncio.wait_for(under_way, DEADLINE_S)

    assert time.monotonic() - began_s < DEADLINE_S


async def test_events_of_one_call_arrive_in_order(ground: Ground) -> None:
    ground.make(orders=1)
    orders = [Placed(order_id=f"o-{number % 3}", total_cents=number) for number in range(30)]

    async with shop(KafkaSettings(bootstrap=ground.kafka.bootstrap), ground.prefix).publisher() as publisher:
        await publisher.publish(*orders, event_id="e")

    written = [(record.key, orjson.loads(record.value or b"")["payload"]["total_cents"]) for record in ground.records("orders")]
    for which in range(3):
        assert [number for key, number in written if key == f"o-{which}".encode()] == list(range(which, 30, 3))
