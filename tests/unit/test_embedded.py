"""Is the embedded Kafka one for all services of a process, and does it say what it can't do?"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from choreo.broker import TopicInfo
from choreo.envelope import Envelope
from choreo.errors import BrokerError, ConfigurationError
from choreo.events import Event
from choreo.handler import Context, Handler
from choreo.kafka.embedded import HOST, PARTITIONS, EmbeddedBroker, _Host
from choreo.kafka.settings import EMBEDDED, KafkaSettings
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.storage.memory import MemoryStore
from choreo.testing import MemoryBroker


class Greeted(Event, type="greeted", topic="greetings", key="name"):
    name: str


class Greet(Handler[Greeted]):
    def __init__(self) -> None:
        self.greeted: list[str] = []

    async def handle(self, event: Envelope[Greeted], context: Context) -> None:
        self.greeted.append(event.payload.name)


def settings(**kafka: object) -> ServiceSettings:
    """On the embedded Kafka, with topics of this test alone."""
    return ServiceSettings(kafka=KafkaSettings(bootstrap=EMBEDDED, **kafka), topic_prefix=f"{uuid4().hex[:8]}.")  # type: ignore[arg-type]


def broker(*topics: str) -> EmbeddedBroker:
    return EmbeddedBroker(KafkaSettings(bootstrap=EMBEDDED), topics)


# ---- a service on it ------------------------------------------------------------------------------------------------


async def test_a_service_runs_on_it_and_has_the_topics_it_needs() -> None:
    handler = Greet()
    service = Service("greeter", handlers=[handler], publishes=[Greeted], store=MemoryStore(), settings=settings())

    async with service.running():
        async with service.publisher() as publisher:
            for name in ("ana", "bo", "cy"):
                await publisher.publish(Greeted(name=name))
        async with asyncio.timeout(30):
            while len(handler.greeted) < 3:
                await asyncio.sleep(0.01)

    assert sorted(handler.greeted) == ["ana", "bo", "cy"]


def test_its_topics_are_there_before_anybody_asks() -> None:
    service = Service("greeter", handlers=[Greet()], store=MemoryStore(), settings=settings())
    prefix = service.settings.topic_prefix

    topics = service.broker(service.settings).cluster().topics()

    assert {f"{prefix}{name}" for name in ("greetings", "greeter.dlq", "greeter.letters", "greeter.replay")} <= topics.keys()
    assert topics[f"{prefix}greetings"] == TopicInfo(f"{prefix}greetings", PARTITIONS, 1)


def test_a_broker_that_is_named_goes_before_it() -> None:
    named = MemoryBroker()
    service = Service("greeter", handlers=[Greet()])

    found = service.broker(ServiceSettings(kafka=KafkaSettings(bootstrap=EMBEDDED), broker=named))

    assert found is named


def test_what_real_brokers_need_for_a_login_does_not_hinder_it() -> None:
    properties: dict[str, str | int] = {
        "security.protocol": "SASL_SSL",
        "sasl.username": "ana",
        "sasl.password": "x",
        "session.timeout.ms": 6000,
    }
    topic = f"topic-{uuid4().hex}"

    reader = EmbeddedBroker(KafkaSettings(bootstrap=EMBEDDED, properties=properties), [topic]).reader()

    assert len(reader.ends(topic)) == PARTITIONS
    reader.close()


def test_a_start_by_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="can't find offsets by time; use earliest or latest"):
        ServiceSettings(kafka=KafkaSettings(bootstrap=EMBEDDED), start=datetime(2026, 11, 22, tzinfo=UTC))


# ---- the cluster ----------------------------------------------------------------------------------------------------


def test_all_services_of_a_process_share_one() -> None:
    mine, yours = (f"topic-{uuid4().hex}" for _ in range(2))

    clusters = [broker(mine).cluster(), broker(yours).cluster()]

    assert all({mine, yours} <= cluster.topics().keys() for cluster in clusters)


def test_whoever_asks_first_starts_it_and_it_says_once_that_it_forgets(caplog: pytest.LogCaptureFixture) -> None:
    host = _Host()

    with ThreadPoolExecutor(8) as threads:
        addresses = {running.address for running in threads.map(lambda _: host.cluster(), range(8))}

    assert len(addresses) == 1
    assert addresses != {HOST.cluster().address}
    said = [
        record.getMessage() for record in caplog.records if addresses & set(record.getMessage().replace("(", " ").replace(")", " ").split())
    ]
    assert [text for text in said if "for demos only, it forgets everything at the end" in text] == said[:1]
    assert len(said) == 1


def test_it_describes_itself_as_what_it_is() -> None:
    line = broker().cluster().describe()

    assert line == f"inside this process ({HOST.cluster().address}): for demos only, it forgets everything at the end"
    assert broker().cluster().brokers() == 1


def test_a_topic_is_made_once() -> None:
    cluster = broker().cluster()
    wanted = TopicInfo(f"topic-{uuid4().hex}", 6, 3, {"cleanup.policy": "compact"})

    cluster.create([wanted])
    with pytest.raises(BrokerError) as refused:
        cluster.create([wanted])

    assert cluster.topics()[wanted.name] == TopicInfo(wanted.name, PARTITIONS, 1)
    assert (refused.value.code, refused.value.retriable) == ("TOPIC_ALREADY_EXISTS", False)
    cluster.close()


def test_what_it_cannot_do_is_refused_for_good() -> None:
    cluster = broker("any").cluster()

    with pytest.raises(BrokerError, match="has 4 a topic; use a real Kafka") as grown:
        cluster.add_partitions("any", 6)
    with pytest.raises(BrokerError, match="no settings of topics; use a real Kafka") as configured:
        cluster.configure("any", {"retention.ms": "1"})

    assert not grown.value.retriable
    assert not configured.value.retriable


def test_making_a_broker_starts_nothing(tmp_path: Path) -> None:
    host_before = dict(HOST._running)

    EmbeddedBroker(KafkaSettings(bootstrap=EMBEDDED), ["never-made"])

    assert host_before == HOST._running
    assert "never-made" not in broker().cluster().topics()
