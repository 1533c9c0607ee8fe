"""A Kafka inside this process, for demos and quick tries: librdkafka's own in-process cluster behind the `Broker` port.

``embedded://`` as bootstrap starts it; all services of the process share it. It forgets everything when the process ends,
drops a partition's oldest records past about 5 MB, and gives every topic `PARTITIONS` partitions and no settings. It can't
look up offsets by time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from choreo.broker import TopicInfo
from choreo.errors import BrokerError
from choreo.kafka.broker import KafkaBroker
from choreo.kafka.cluster import KafkaLogReader
from choreo.kafka.consumer import KafkaConsumer
from choreo.kafka.errors import broker_error
from choreo.kafka.producer import KafkaProducer
from choreo.kafka.settings import KafkaSettings

EMBEDDED = "embedded://"
PARTITIONS = 4
"""Of every topic: librdkafka's own number, which no property changes."""

_ASK_S = 10.0
_LOGIN = ("security.", "sasl.", "ssl.")
_log = logging.getLogger("choreo.kafka")


class _Host:
    """The one cluster of this process. Owner: itself; any thread may ask. It ends with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started: dict[int, tuple[Producer, str]] = {}

    def address(self) -> str:
        """Where it listens (loopback); starts it when it doesn't run yet. Raises BrokerError."""
        with self._lock:
            # By process: what a fork inherits has no threads, so a child starts its own.
            running = self._started.get(os.getpid())
            if running is None:
                running = self._started[os.getpid()] = _start()
                _log.warning("Kafka runs inside this process, at %s: for demos only, everything is forgotten when it ends", running[1])
            return running[1]


def _start() -> tuple[Producer, str]:
    """The client that holds the cluster, and the cluster's address."""
    holder = Producer({"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 1}, logger=_log)
    try:
        (broker,) = holder.list_topics(timeout=_ASK_S).brokers.values()
    except KafkaException as error:
        raise broker_error(error, EMBEDDED) from error
    return holder, f"{broker.host}:{broker.port}"


_HOST = _Host()


class EmbeddedBroker:
    """See `choreo.broker.Broker`. Nobody else can make topics on it, so it makes `topics`, before the first client."""

    def __init__(self, settings: KafkaSettings, topics: Sequence[str] = ()) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._kafka: KafkaBroker | None = None

    def consumer(self, group: str) -> KafkaConsumer:
        return self._ready().consumer(group)

    def producer(self) -> KafkaProducer:
        return self._ready().producer()

    def reader(self) -> KafkaLogReader:
        return self._ready().reader()

    def cluster(self) -> EmbeddedCluster:
        self._ready()
        return EmbeddedCluster(_HOST.address())

    def _ready(self) -> KafkaBroker:
        if self._kafka is None:
            address = _HOST.address()
            _appear(address, self._topics)
            theirs = {name: value for name, value in self._settings.properties.items() if not name.startswith(_LOGIN)}
            self._kafka = KafkaBroker(replace(self._settings, bootstrap=address, properties=theirs, group_protocol="classic"))
        return self._kafka


class EmbeddedCluster:
    """See `choreo.broker.Cluster`; a topic's `config` is never kept, and its partitions are always `PARTITIONS`."""

    def __init__(self, address: str) -> None:
        self._address = address

    def topics(self) -> Mapping[str, TopicInfo]:
        return {name: TopicInfo(name, partitions, 1) for name, partitions in _partitions(self._address).items()}

    def create(self, topics: Sequence[TopicInfo]) -> None:
        there = _partitions(self._address)
        for topic in topics:
            if topic.name in there:
                raise BrokerError(f"creating topic {topic.name}: it is there already", code="TOPIC_ALREADY_EXISTS", retriable=False)
        _appear(self._address, [topic.name for topic in topics])

    def add_partitions(self, topic: str, total: int) -> None:
        raise BrokerError(
            f"extending topic {topic}: {EMBEDDED} has {PARTITIONS} partitions a topic, not {total}; use a real Kafka",
            code="INVALID_PARTITIONS",
            retriable=False,
        )

    def describe(self) -> str:
        return f"inside this process ({self._address}): for demos only, it forgets everything when it ends"

    def close(self) -> None:
        """Nothing to close."""


def _partitions(address: str) -> dict[str, int]:
    try:
        found = AdminClient({"bootstrap.servers": address}, logger=_log).list_topics(timeout=_ASK_S).topics
    except KafkaException as error:
        raise broker_error(error, EMBEDDED) from error
    return {name: len(topic.partitions) for name, topic in found.items() if topic.error is None}


def _appear(address: str, topics: Sequence[str]) -> None:
    """Makes topics by asking about them: this cluster makes what it is asked for, and knows no other way."""
    client = AdminClient({"bootstrap.servers": address}, logger=_log)
    for name in topics:
        try:
            error = client.list_topics(name, timeout=_ASK_S).topics[name].error
        except KafkaException as problem:
            raise broker_error(problem, f"creating topic {name}") from problem
        if error is not None:
            raise broker_error(error, f"creating topic {name}")
