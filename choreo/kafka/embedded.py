"""A Kafka inside this process, for demos and quick tries: librdkafka's in-process cluster behind the `Broker` port.

``embedded://`` as bootstrap starts it; all services of the process share it. It forgets everything when the process ends,
drops a partition's oldest records past about 5 MB, gives every topic `PARTITIONS` partitions and no settings, refuses no
record for its size, and can't look up offsets by time. tests/conformance/test_embedded_broker.py has what it can.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from confluent_kafka import KafkaException, Producer

from choreo.broker import TopicInfo
from choreo.errors import BrokerError, ConfigurationError
from choreo.kafka.broker import KafkaBroker
from choreo.kafka.cluster import KafkaLogReader
from choreo.kafka.consumer import KafkaConsumer
from choreo.kafka.errors import broker_error
from choreo.kafka.producer import KafkaProducer
from choreo.kafka.settings import CLASSIC_ONLY, EMBEDDED, KafkaSettings
from choreo.kafka.transactions import KafkaTransactor

PARTITIONS = 4
"""Of every topic: librdkafka's own number, which no property changes."""

_ASK_S = 10.0
_LOGIN = ("security.", "sasl.", "ssl.")
_log = logging.getLogger("choreo.kafka")


class _Running(NamedTuple):
    """The client that holds the cluster (it ends with it), and where the cluster listens, on loopback."""

    client: Producer
    address: str

    def topics(self) -> dict[str, int]:
        """The number of partitions of each."""
        try:
            found = self.client.list_topics(timeout=_ASK_S).topics
        except KafkaException as error:
            raise broker_error(error, EMBEDDED) from error
        return {name: len(topic.partitions) for name, topic in found.items()}

    def make(self, topics: Sequence[str]) -> None:
        """Makes those that aren't there: the cluster makes what it is asked about, and knows no other way."""
        for name in topics:
            try:
                error = self.client.list_topics(name, timeout=_ASK_S).topics[name].error
            except KafkaException as problem:
                raise broker_error(problem, f"creating topic {name}") from problem
            if error is not None:
                raise broker_error(error, f"creating topic {name}")


class _Host:
    """The one cluster of this process; any thread may ask for it. Owner of `_running`: whoever has `_lock`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, _Running] = {}

    def cluster(self) -> _Running:
        """Starts it when it doesn't run yet. Raises BrokerError."""
        with self._lock:
            # A forked child has the parent's client without its threads, and starts a cluster of its own.
            running = self._running.get(os.getpid())
            if running is None:
                running = self._running[os.getpid()] = _start()
                atexit.register(self.end)
                _log.warning("Kafka runs inside this process (%s): for demos only, it forgets everything at the end", running.address)
            return running

    def end(self) -> None:
        """Ends it, with this process: not when the interpreter is half gone already."""
        with self._lock:
            running = self._running.pop(os.getpid(), None)
        if running is not None:
            running.client.close()


def _start() -> _Running:
    client = Producer({"bootstrap.servers": "127.0.0.1:1", "test.mock.num.brokers": 1}, logger=_log)
    try:
        (broker,) = client.list_topics(timeout=_ASK_S).brokers.values()
    except KafkaException as error:
        raise broker_error(error, EMBEDDED) from error
    return _Running(client, f"{broker.host}:{broker.port}")


HOST = _Host()


class EmbeddedBroker:
    """See `choreo.broker.Broker`. No other process can make topics on it, so it comes with `topics`.

    Of the properties those for logging in and for the classic group protocol are left out: the cluster knows no logins, and
    its classic protocol loses members (17 of 44 conformance cases fail; with KIP-848 5, all for the limits above).
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[str] = ()) -> None:
        self._settings = settings
        self._topics = tuple(topics)
        self._kafka: KafkaBroker | None = None

    def consumer(self, group: str) -> KafkaConsumer:
        return self._ready().consumer(group)

    def producer(self) -> KafkaProducer:
        return self._ready().producer()

    def transactor(self, transactional_id: str) -> KafkaTransactor:
        raise ConfigurationError(f"{EMBEDDED} does not keep the offsets of a transaction; for effects=kafka run a Kafka: make kafka")

    def reader(self) -> KafkaLogReader:
        return self._ready().reader()

    def cluster(self) -> EmbeddedCluster:
        self._ready()
        return EmbeddedCluster(HOST.cluster())

    def _ready(self) -> KafkaBroker:
        if self._kafka is None:
            running = HOST.cluster()
            running.make(self._topics)
            kept = {n: v for n, v in self._settings.properties.items() if not n.startswith(_LOGIN) and n not in CLASSIC_ONLY}
            self._kafka = KafkaBroker(replace(self._settings, bootstrap=running.address, properties=kept, group_protocol="consumer"))
        return self._kafka


class EmbeddedCluster:
    """See `choreo.broker.Cluster`. A topic that is made has `PARTITIONS` partitions, whatever was asked for, and no `config`."""

    def __init__(self, running: _Running) -> None:
        self._running = running

    def topics(self) -> Mapping[str, TopicInfo]:
        return {name: TopicInfo(name, partitions, 1) for name, partitions in self._running.topics().items()}

    def create(self, topics: Sequence[TopicInfo]) -> None:
        there = self._running.topics()
        for topic in topics:
            if topic.name in there:
                raise BrokerError(f"creating topic {topic.name}: it is there already", code="TOPIC_ALREADY_EXISTS", retriable=False)
        self._running.make([topic.name for topic in topics])

    def add_partitions(self, topic: str, total: int) -> None:
        raise BrokerError(
            f"extending topic {topic} to {total} partitions: {EMBEDDED} has {PARTITIONS} a topic; use a real Kafka",
            code="INVALID_PARTITIONS",
            retriable=False,
        )

    def configure(self, topic: str, config: Mapping[str, str]) -> None:
        raise BrokerError(
            f"setting {', '.join(config)} of topic {topic}: {EMBEDDED} has no settings of topics; use a real Kafka",
            code="INVALID_CONFIG",
            retriable=False,
        )

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        return {}  # librdkafka's cluster has none, and forgets on exit anyway

    def brokers(self) -> int:
        return 1

    def describe(self) -> str:
        return f"inside this process ({self._running.address}): for demos only, it forgets everything at the end"

    def close(self) -> None:
        """Nothing to close: the cluster ends with the process."""
