"""Looking at brokers, making topics, and reading logs by position: the `Cluster` and `LogReader` ports."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from choreo.broker import TopicInfo
from choreo.errors import BrokerError
from choreo.kafka.errors import broker_error
from choreo.kafka.records import record_of
from choreo.record import Record, TopicPartition

_log = logging.getLogger("choreo.kafka")
_ASK_S = 10.0
_LOOK_S = 1.0
_IDS_S = 2.0
"""A rebalance, and a stop, wait for it."""
_DYNAMIC_TOPIC_CONFIG = 1
_LEADER_MOVES = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.FENCED_LEADER_EPOCH)
_NO_TOPIC_IDS = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNSUPPORTED_FEATURE, KafkaError.UNSUPPORTED_VERSION)
_LEADER_MOVES_S = 0.1
_HOPELESS = frozenset({"_ALL_BROKERS_DOWN", "_AUTHENTICATION", "_SSL", "SASL_AUTHENTICATION_FAILED"})


def _not_defaults(entries: Sequence[Any]) -> dict[str, str]:
    return {entry.name: entry.value for entry in entries if entry.source == _DYNAMIC_TOPIC_CONFIG and entry.value is not None}


def _retention_ms(entries: Sequence[Any]) -> int | None:
    values = {entry.name: entry.value or "" for entry in entries}
    if "retention.ms" not in values:
        return None
    return int(values["retention.ms"]) if "delete" in values.get("cleanup.policy", "delete").split(",") else -1


class KafkaCluster:
    """See `choreo.broker.Cluster`."""

    def __init__(self, properties: Mapping[str, Any], logger: logging.Logger) -> None:
        self._errors: deque[KafkaError] = deque(maxlen=50)
        self._bootstrap = str(properties["bootstrap.servers"])
        self._login = login(properties)
        # Not the log's connection errors: what matters of them is told by `_problem`.
        self._client = AdminClient({"log_level": 2, **properties, "error_cb": self._errors.append}, logger=logger)  # type: ignore[dict-item]

    def _problem(self, error: KafkaException, what: str) -> BrokerError:
        # "Timed out" says little; the connection's own errors say why (wrong password, refused).
        self._client.poll(0)
        told = [broker_error(e, what) for e in self._errors]
        serious = next((p for p in told if not p.retriable), None)
        # "0/2 brokers are down" comes beside it at times and says less.
        telling = next((p for p in reversed(told) if p.code != "_ALL_BROKERS_DOWN"), None)
        return serious or telling or (told[-1] if told else broker_error(error, what))

    def _metadata(self) -> Any:
        """What the brokers say of themselves and their topics; waits for them up to `_ASK_S`, but not for those that refuse."""
        what = f"Kafka at {self._bootstrap}"
        until = time.monotonic() + _ASK_S
        self._client.poll(0)
        self._errors.clear()
        while True:
            try:
                return self._client.list_topics(timeout=_LOOK_S)
            except KafkaException as error:
                # librdkafka waits out the whole timeout even where every broker has refused; its error_cb knows at once.
                self._client.poll(0)
                if time.monotonic() >= until or any(broker_error(e, what).code in _HOPELESS for e in list(self._errors)):
                    raise self._problem(error, what) from error

    def topics(self) -> Mapping[str, TopicInfo]:
        metadata = self._metadata()
        found = {name: t for name, t in metadata.topics.items() if t.error is None}
        configs = self._configs(list(found))
        return {
            name: TopicInfo(
                name,
                len(t.partitions),
                min((len(p.replicas) for p in t.partitions.values()), default=0),
                _not_defaults(configs.get(name, ())),
                _retention_ms(configs.get(name, ())),
            )
            for name, t in found.items()
        }

    def _configs(self, names: list[str]) -> dict[str, Sequence[Any]]:
        wanted = [name for name in names if not name.startswith("__")]
        if not wanted:
            return {}
        answers = self._client.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in wanted], request_timeout=_ASK_S)
        configs: dict[str, Sequence[Any]] = {}
        for resource, future in answers.items():
            try:
                entries = future.result(timeout=_ASK_S + 5)
            except KafkaException:
                continue  # DESCRIBE_CONFIGS is a right of its own; a topic's settings are then unknown, not wrong
            configs[resource.name] = list(entries.values())
        return configs

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        found: dict[str, bytes] = {}
        if not topics:
            return found
        for topic, future in self._client.describe_topics(TopicCollection(list(topics)), request_timeout=_IDS_S).items():
            try:
                topic_id = future.result(timeout=_IDS_S + 5).topic_id
            except KafkaException as error:
                if error.args[0].code() in _NO_TOPIC_IDS:
                    continue
                if error.args[0].code() == KafkaError._TIMED_OUT:
                    # The group works, so the brokers do: some (librdkafka's own) don't answer this.
                    _log.warning("%s: the brokers don't say its id within %.0f s: offset maps are not used", topic, _IDS_S)
                    continue
                raise self._problem(error, f"topic {topic}") from error
            halves = (topic_id.get_most_significant_bits(), topic_id.get_least_significant_bits())
            raw = b"".join((half & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big") for half in halves)
            if any(raw):
                found[topic] = raw
        return found

    def create(self, topics: Sequence[TopicInfo]) -> None:
        new = [NewTopic(t.name, t.partitions, t.replication, config=dict(t.config)) for t in topics]
        self._wait(self._client.create_topics(new, operation_timeout=_ASK_S, request_timeout=_ASK_S), "creating")

    def add_partitions(self, topic: str, total: int) -> None:
        self._wait(
            self._client.create_partitions([NewPartitions(topic, total)], operation_timeout=_ASK_S, request_timeout=_ASK_S), "extending"
        )

    def _wait(self, answers: Mapping[str, Any], doing: str) -> None:
        for topic, future in answers.items():
            try:
                future.result(timeout=_ASK_S * 2)
            except KafkaException as error:
                raise self._problem(error, f"{doing} topic {topic}") from error

    def offers_consumer_protocol(self) -> bool:
        """Whether the brokers speak KIP-848; False when they don't or one may not ask."""
        try:
            broker = str(next(iter(self._client.list_topics(timeout=_ASK_S).brokers)))
            resource = ConfigResource(ResourceType.BROKER, broker)
            entries = self._client.describe_configs([resource], request_timeout=_ASK_S)[resource].result(timeout=_ASK_S + 5)
        except (KafkaException, StopIteration):
            return False
        offered = entries.get("group.coordinator.rebalance.protocols")
        return offered is not None and "consumer" in (offered.value or "")

    def configure(self, topic: str, config: Mapping[str, str]) -> None:
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in config.items()]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        answers = self._client.incremental_alter_configs([resource], request_timeout=_ASK_S)
        self._wait({resource.name: future for resource, future in answers.items()}, "setting up")

    def brokers(self) -> int:
        return len(self._metadata().brokers)

    def describe(self) -> str:
        count = self.brokers()
        return f"{self._bootstrap}, {count} broker{'s' if count != 1 else ''}{self._login}"

    def close(self) -> None:
        # AdminClient has nothing to close: dropping it ends its threads, and does so now, not when the interpreter goes.
        self.__dict__.pop("_client", None)


def login(properties: Mapping[str, Any]) -> str:
    """``, SASL_SSL as payments``: how one gets in, and as whom where that is a name; nothing where anybody may."""
    security = str(properties.get("security.protocol", "plaintext")).upper()
    if security == "PLAINTEXT":
        return ""
    user = properties.get("sasl.username") if security.startswith("SASL") else None
    return f", {security} as {user}" if user else f", {security}"


def first_and_end(client: Consumer, place: Place) -> tuple[int, int]:
    """The first offset and the end of a partition. While its leader moves it is asked again, up to `_ASK_S`: librdkafka
    does not. Raises KafkaException."""
    until = time.monotonic() + _ASK_S
    while True:
        try:
            return client.get_watermark_offsets(place, timeout=_ASK_S)
        except KafkaException as error:
            if error.args[0].code() not in _LEADER_MOVES or time.monotonic() >= until:
                raise
            time.sleep(_LEADER_MOVES_S)


class KafkaLogReader:
    """See `choreo.broker.LogReader`. Owner: the thread that reads."""

    def __init__(self, properties: Mapping[str, Any], logger: logging.Logger) -> None:
        self._properties = {**properties, "auto.offset.reset": "earliest"}
        self._logger = logger
        self._client = Consumer(self._properties, logger=logger)
        self._asking: Consumer | None = None
        self._assigned: list[TopicPartition] = []
        self._starts: dict[TopicPartition, int] = {}
        self._closed = False

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        client = self._asker()
        try:
            metadata = client.list_topics(topic, timeout=_ASK_S).topics[topic]
            if metadata.error is not None:
                raise broker_error(metadata.error, f"topic {topic}")
            return {TopicPartition(topic, number): first_and_end(client, Place(topic, number)) for number in metadata.partitions}
        except KafkaException as error:
            raise broker_error(error, f"topic {topic}") from error

    def _asker(self) -> Consumer:
        # A broker answers a connection's requests in order: a question behind a fetch waits as long as that may
        # (fetch.wait.max.ms, for each partition). So a client that fetches leaves asking to another one.
        if not self._assigned:
            return self._client
        if self._asking is None:
            self._asking = Consumer(self._properties, logger=self._logger)
        return self._asking

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        self._assigned = list(starts)
        self._starts = dict(starts)
        self._client.assign([Place(p.topic, p.partition, offset) for p, offset in starts.items()])

    def read(self, timeout_s: float) -> list[Record]:
        if not self._assigned:
            return []
        first = self._client.poll(timeout_s)
        if first is None:
            return []
        records: list[Record] = []
        for message in [first, *self._client.consume(499, 0)]:
            error = message.error()
            if error is not None:
                problem = broker_error(error, f"reading {message.topic() or 'a log'}")
                # It is in no group: librdkafka looks for the group's coordinator all the same, and may be refused.
                if problem.retriable or problem.code == "GROUP_AUTHORIZATION_FAILED":
                    continue
                raise problem
            records.append(record_of(message))
        return records

    def position(self) -> Mapping[TopicPartition, int]:
        places = self._client.position([Place(*p) for p in self._assigned])
        return {
            TopicPartition(p.topic, p.partition): p.offset if p.offset >= 0 else self._starts[TopicPartition(p.topic, p.partition)]
            for p in places
        }

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._client.close()
            if self._asking is not None:
                self._asking.close()
