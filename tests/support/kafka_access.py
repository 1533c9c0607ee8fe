"""What does Kafka hold, and where? Looking at a cluster from outside: topics, ends, committed offsets, everything of a topic.

None of it goes through choreo, so that a test's last word does not come from the code it judges.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from choreo.record import Record, TopicPartition
from tests.support.waiting import wait_for

REQUEST_S = 10.0
NO_OFFSET = -1

_LEADER_MOVES = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
)

# A test's client meets brokers that were killed and come back: it must not back off for 10 s, nor fill the screen.
PATIENT = {"reconnect.backoff.ms": 50, "reconnect.backoff.max.ms": 250, "log_level": 1, "socket.timeout.ms": 10_000}


class KafkaAccess:
    """One cluster as one user sees it. `origin` says where it came from: CHOREO_TEST_BOOTSTRAP, docker or jars."""

    def __init__(self, bootstrap: str, origin: str, security: Mapping[str, str] | None = None) -> None:
        self.bootstrap = bootstrap
        self.origin = origin
        self.security = dict(security or {})
        self._admin: AdminClient | None = None
        self._groups: dict[str, Consumer] = {}

    def config(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A configuration for any client of confluent_kafka: where, who, patience, and `settings` over them."""
        return {"bootstrap.servers": self.bootstrap, "error_cb": _ignore, **PATIENT, **self.security, **(settings or {})}

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient(self.config())
        return self._admin

    def close(self) -> None:
        """Ends its clients; whoever looks again gets new ones."""
        while self._groups:
            self._groups.popitem()[1].close()
        self._admin = None

    # ---- topics ---------------------------------------------------------------------------------------------------

    def create_topic(self, name: str, *, partitions: int = 1, replication: int = -1, config: Mapping[str, str] | None = None) -> str:
        """Makes a topic and returns its name once every partition of it has a leader that serves."""
        new = NewTopic(name, num_partitions=partitions, replication_factor=replication, config=dict(config or {}))
        self.admin.create_topics([new], request_timeout=REQUEST_S)[name].result(REQUEST_S * 2)
        wait_for(lambda: self._serves(name, partitions), f"{partitions} partitions of {name} that serve", deadline_s=30)
        return name

    def delete_topics(self, names: Sequence[str]) -> None:
        """Deletes them; those that are gone already are no error."""
        for asked in self.admin.delete_topics(list(names), request_timeout=REQUEST_S).values() if names else ():
            try:
                asked.result(REQUEST_S * 2)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise

    def partitions(self, topic: str) -> list[TopicPartition]:
        """Its partitions; none when it does not exist."""
        found = self.admin.list_topics(topic, timeout=REQUEST_S).topics[topic]
        return [] if found.error is not None else [TopicPartition(topic, number) for number in sorted(found.partitions)]

    def leader(self, topic: str, partition: int = 0) -> int:
        """The node that leads a partition; -1 for none, and while nobody answers."""
        try:
            return int(self.admin.list_topics(topic, timeout=REQUEST_S).topics[topic].partitions[partition].leader)
        except KafkaException as error:
            if error.args[0].code() not in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
                raise
            return -1

    def coordinator(self, group: str) -> int:
        """The node that coordinates a group."""
        description = self.admin.describe_consumer_groups([group], request_timeout=REQUEST_S)[group].result(REQUEST_S * 2)
        return int(description.coordinator.id)

    def _serves(self, topic: str, partitions: int) -> bool:
        # Brokers hear of it one after the other, and each look may ask another: so some for each. A leader in the metadata may
        # still answer NOT_LEADER for some milliseconds: ask it something.
        looks = 4 * len(self.admin.list_topics(topic, timeout=REQUEST_S).brokers)
        try:
            return all(self._led(topic, partitions) for _ in range(looks)) and len(self.ends(topic)) == partitions
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            return False

    def _led(self, topic: str, partitions: int) -> bool:
        found = self.admin.list_topics(topic, timeout=REQUEST_S).topics[topic]
        return found.error is None and len(found.partitions) == partitions and all(p.leader >= 0 for p in found.partitions.values())

    # ---- offsets --------------------------------------------------------------------------------------------------

    def ends(self, topic: str) -> dict[TopicPartition, tuple[int, int]]:
        """First offset and end (one past the last record, of open transactions too) of each partition."""
        partitions = self.partitions(topic)
        firsts, ends = (self._offsets(partitions, spec) for spec in (OffsetSpec.earliest(), OffsetSpec.latest()))  # type: ignore[no-untyped-call]
        return {partition: (firsts[partition], end) for partition, end in ends.items()}

    def _offsets(self, partitions: Sequence[TopicPartition], spec: OffsetSpec) -> dict[TopicPartition, int]:
        asked = {ClientPartition(p.topic, p.partition): spec for p in partitions}

        def answers() -> dict[TopicPartition, int] | None:
            futures = self.admin.list_offsets(asked, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=REQUEST_S)
            try:
                return {TopicPartition(p.topic, p.partition): future.result(REQUEST_S * 2).offset for p, future in futures.items()}
            except KafkaException as error:
                if error.args[0].code() not in _LEADER_MOVES:
                    raise
                return None

        return (wait_for(answers, f"the offsets of {partitions}", deadline_s=30) if asked else None) or {}

    def committed(self, group: str, topics: Iterable[str]) -> dict[TopicPartition, int | None]:
        """The group's committed offset of each partition; None where there is none."""
        return {partition: offset for partition, (offset, _) in self.committed_with_metadata(group, topics).items()}

    def committed_with_metadata(self, group: str, topics: Iterable[str]) -> dict[TopicPartition, tuple[int | None, str | None]]:
        """The same with the metadata beside each offset."""
        # Not by list_consumer_group_offsets: while brokers come and go, librdkafka 2.16.1 then ends the process (SIGSEGV when the
        # answer is NOT_COORDINATOR, rd_kafka_cgrp_op) or never destroys the admin client (seen, both).
        if group not in self._groups:
            self._groups[group] = Consumer(self.config({"group.id": group, "enable.auto.commit": False}))
        asked = [ClientPartition(p.topic, p.partition) for topic in topics for p in self.partitions(topic)]
        found = self._groups[group].committed(asked, timeout=REQUEST_S) if asked else []
        for partition in found:
            if partition.error is not None:
                raise KafkaException(partition.error)
        return {TopicPartition(p.topic, p.partition): (p.offset if p.offset >= 0 else None, p.metadata) for p in found}

    def lag(self, group: str, topics: Sequence[str]) -> int:
        """Records between the committed offsets (the first offset where there is none) and the ends, over all partitions."""
        committed = self.committed(group, topics)
        total = 0
        for topic in topics:
            for partition, (first, end) in self.ends(topic).items():
                offset = committed[partition]
                total += end - (first if offset is None else max(first, offset))
        return total

    def wait_for_no_lag(self, group: str, topics: Sequence[str], *, deadline_s: float) -> None:
        """Returns when the group has committed everything; TimeoutError with what is left. Brokers may come and go meanwhile."""
        left: list[object] = []

        def caught_up() -> bool:
            try:
                left[:] = [self.lag(group, topics)]
            except KafkaException as error:
                left[:] = [error]
            return left == [0]

        try:
            wait_for(caught_up, f"no lag of {group} on {', '.join(topics)}", deadline_s=deadline_s, every_s=0.1)
        except TimeoutError as error:
            raise TimeoutError(f"{group} did not catch up on {', '.join(topics)} within {deadline_s:g} s: lag {left}") from error

    def set_session(self, group: str, *, session_ms: int, heartbeat_ms: int) -> None:
        """How long a silent member of the group is waited for, under the consumer protocol, where the broker decides it."""
        wanted = {"consumer.session.timeout.ms": session_ms, "consumer.heartbeat.interval.ms": heartbeat_ms}
        entries = [ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET) for name, value in wanted.items()]
        resource = ConfigResource(ResourceType.GROUP, group, incremental_configs=entries)
        for changed in self.admin.incremental_alter_configs([resource], request_timeout=REQUEST_S).values():
            changed.result(REQUEST_S * 2)

    # ---- records --------------------------------------------------------------------------------------------------

    def read_all(self, topic: str, *, isolation: str = "read_committed", deadline_s: float = 60.0) -> list[Record]:
        """Everything that is in the topic now, by partition and offset; outside of any group, nothing is committed."""
        remaining = set(self.partitions(topic))
        settings = {
            "group.id": f"read-all-{uuid.uuid4().hex}",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": isolation,
            "auto.offset.reset": "earliest",
            # The broker holds the answer that says "end" back for so long; 500 by default.
            "fetch.wait.max.ms": 10,
        }
        consumer = Consumer(self.config(settings))
        records: list[Record] = []

        def read() -> bool:
            for message in consumer.consume(1000, 0.1):
                _take(message, records, remaining)
            return not remaining

        try:
            consumer.assign([ClientPartition(p.topic, p.partition, 0) for p in remaining])
            wait_for(read, f"the end of {topic}", deadline_s=deadline_s, every_s=0)
        finally:
            consumer.close()
        return sorted(records, key=lambda record: (record.partition, record.offset))


def group_settings(group: str, protocol: str, *, session_ms: int = 6000) -> dict[str, Any]:
    """A raw consumer's settings for one of the two group protocols; `session_ms` is classic's, see `KafkaAccess.set_session`."""
    settings: dict[str, Any] = {"group.id": group, "group.protocol": protocol, "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    if protocol == "classic":
        settings |= {"session.timeout.ms": session_ms, "heartbeat.interval.ms": session_ms // 6}
        settings["partition.assignment.strategy"] = "cooperative-sticky"
    return settings


def _take(message: Message, records: list[Record], remaining: set[TopicPartition]) -> None:
    error = message.error()
    if error is None:
        records.append(as_record(message))
    elif error.code() == KafkaError._PARTITION_EOF:
        remaining.discard(TopicPartition(message.topic() or "", _number(message.partition())))
    elif not error.retriable():
        raise KafkaException(error)


def as_record(message: Message) -> Record:
    """A client's message as choreo's Record. Not for messages that carry an error."""
    return Record(
        topic=message.topic() or "",
        partition=_number(message.partition()),
        offset=_number(message.offset()),
        timestamp_ms=message.timestamp()[1],
        key=_bytes(message.key()),
        value=_bytes(message.value()),
        headers=[(header[0], _bytes(header[1])) for header in message.headers() or ()],
    )


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _number(value: int | None) -> int:
    return NO_OFFSET if value is None else value


def _ignore(_error: KafkaError) -> None:
    """Broker gone, broker back: what these tests do on purpose."""
