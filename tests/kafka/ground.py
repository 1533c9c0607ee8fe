"""One service on one Kafka in one test: its topics, what went in, and what came out of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from choreo import Handler, KafkaSettings, Service, ServiceSettings
from choreo.letter import LetterState, dlq_headers, dlq_topic, letters_topic, read_state, replay_topic, without_dlq_headers
from choreo.operations.topics import LETTERS_CONFIG, dlq_config
from choreo.record import Headers, Record, TopicPartition
from choreo.runtime.worker import Worker
from tests.support.kafka_access import REQUEST_S, KafkaAccess
from tests.support.names import Names
from tests.support.producer import SETTINGS
from tests.support.waiting import wait_for

T = TypeVar("T")
SERVICE = "payments"
CATCH_UP_S = 30.0
LOOK_AGAIN_S = 0.01
MAX_REQUEST_BYTES = 20_000_000


class Ground:
    """Owns the topics of the service `payments`: those of choreo, as ``choreo topics apply`` makes them, and those a test asks for.

    Logical names get the test's own prefix, as does the group. `protocol` is the group's.
    """

    def __init__(self, kafka: KafkaAccess, names: Names, protocol: str = "consumer") -> None:
        self.kafka = kafka
        self.protocol = protocol
        self.prefix = f"{names.prefix}."
        self.group = self.prefix + SERVICE
        self.dlq, self.letters, self.replays = (self.prefix + topic(SERVICE) for topic in (dlq_topic, letters_topic, replay_topic))
        self._made: list[str] = []

    # ---- topics -------------------------------------------------------------------------------------------------------

    def make(self, **topics: int) -> None:
        """Makes choreo's own topics and these, each with so many partitions."""
        wanted = [NewTopic(self.prefix + name, count) for name, count in topics.items()]
        wanted.append(NewTopic(self.dlq, 1, config=dict(dlq_config(0))))
        wanted.append(NewTopic(self.letters, 1, config=dict(LETTERS_CONFIG)))
        wanted.append(NewTopic(self.replays, 1))
        for topic, made in self.kafka.admin.create_topics(wanted, request_timeout=REQUEST_S).items():
            made.result(REQUEST_S * 2)
            self._made.append(topic)
        for topic in self._made:
            wait_for(lambda topic=topic: self._serves(topic), f"{topic} serves", deadline_s=30)  # type: ignore[misc]

    def topic(self, name: str) -> str:
        """The broker's name of a logical topic."""
        return self.prefix + name

    def delete(self) -> None:
        """Deletes what it made."""
        self.kafka.delete_topics(self._made)

    def _serves(self, topic: str) -> bool:
        found = self.kafka.admin.list_topics(topic, timeout=REQUEST_S).topics[topic]
        return found.error is None and all(partition.leader >= 0 for partition in found.partitions.values())
