"""Kafka for tests, in memory: topics, groups that rebalance, committed offsets, and faults on demand. No network, no waiting.

It passes the suites that real Kafka passes (choreo/testing/conformance.py, transactor_conformance.py), so what a test sees here it
sees there. What it leaves out: brokers and replicas, retention by itself (`trim` does it), ACLs, compaction, the time after which
Kafka aborts a transaction that is still open.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Literal

from choreo.broker import TopicInfo
from choreo.errors import BrokerError
from choreo.record import Committed, Outgoing, Record, TopicPartition
from choreo.testing.memory_consumer import MemoryConsumer, MemoryReader
from choreo.testing.memory_log import TopicLog
from choreo.testing.memory_producer import MemoryProducer
from choreo.testing.memory_state import BadEnd, MemoryState, unknown_topic
from choreo.testing.memory_transactor import MemoryTransactor


class MemoryBroker:
    """A cluster in memory. Thread-safe; the clients it makes are not, as their ports say.

    ::

        broker = MemoryBroker()
        broker.create_topic("orders", partitions=6)
        broker.fail_sends("orders", "_MSG_TIMED_OUT", times=2)

    `max_message_bytes` counts a record with its key, headers and overhead, and a topic's own ``max.message.bytes`` goes
    before it; `queue_records` is what a producer holds before `send` raises BufferError; `clock` gives epoch seconds.
    """

    def __init__(self, *, max_message_bytes: int = 1_048_588, queue_records: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        self._state = MemoryState(max_message_bytes=max_message_bytes, queue_records=queue_records, clock=clock)
        self._members = count(1)
        self._consumers: list[MemoryConsumer] = []

    # ---- the port -------------------------------------------------------------------------------------------------------

    def consumer(self, group: str) -> MemoryConsumer:
        with self._state.changed:
            consumer = MemoryConsumer(self._state, group, next(self._members))
            self._consumers.append(consumer)
            return consumer

    def producer(self) -> MemoryProducer:
        return MemoryProducer(self._state)

    def transactor(self, transactional_id: str) -> MemoryTransactor:
        return MemoryTransactor(self._state, transactional_id)

    def reader(self) -> MemoryReader:
        return MemoryReader(self._state)

    def cluster(self) -> MemoryCluster:
        return MemoryCluster(self._state)

    # ---- setting the scene, and looking ---------------------------------------------------------------------------------

    def create_topic(self, name: str, *, partitions: int = 1, config: Mapping[str, str] | None = None) -> None:
        """Makes a topic. Raises BrokerError when it is there already."""
        self.cluster().create([TopicInfo(name, partitions, 1, config or {})])

    def write(self, record: Outgoing, *, timestamp_ms: int | None = None) -> Record:
        """Writes one record without a producer, at a time of one's own choice (epoch milliseconds)."""
        with self._state.changed:
            log = self._state.log_for(record, sum(log.end for log in self._state.topic(record.topic).logs))
            return self._state.append(log, record, timestamp_ms)

    def records(self, topic: str) -> list[Record]:
        """All records of a topic, by partition, then offset."""
        with self._state.changed:
            return [record for log in self._state.topic(topic).logs for record in log.records()]

    def committed(self, group: str) -> Mapping[TopicPartition, int]:
        """The offsets a group has committed."""
        with self._state.changed:
            return {partition: found.offset for partition, found in self._state.group(group).committed.items()}

    def committed_texts(self, group: str) -> Mapping[TopicPartition, str]:
        """What stands beside them."""
        with self._state.changed:
            return {partition: found.metadata for partition, found in self._state.group(group).committed.items()}

    def set_committed(self, group: str, partition: TopicPartition, offset: int, text: str = "") -> None:
        """As another tool does: the offset may go back, whoever owns the partition."""
        with self._state.changed:
            self._state.group(group).committed[partition] = Committed(offset, text)

    def recreate_topic(self, name: str, *records: Outgoing) -> None:
        """Deletes the topic and makes it again under its name, with these records and another id. Members that have it notice
        nothing."""
        with self._state.changed:
            self._state.topics[name] = TopicLog(self._state.topic(name).info)
            for number, record in enumerate(records):
                self._state.append(self._state.log_for(record, number), record)
            self._state.changed.notify_all()

    def consumers(self, group: str) -> list[MemoryConsumer]:
        """The consumers of a group that aren't closed, in the order they were made."""
        with self._state.changed:
            return [consumer for consumer in self._consumers if consumer.group_name == group and not consumer.closed]

    # ---- faults ---------------------------------------------------------------------------------------------------------

    def skip_offsets(self, topic: str, partition: int, count: int) -> None:
        """Makes a gap of `count` offsets, as compaction and transactions do."""
        with self._state.changed:
            self._state.log(TopicPartition(topic, partition)).skip(count)
            self._state.changed.notify_all()

    def trim(self, topic: str, partition: int, *, before: int) -> None:
        """Forgets the records below the offset `before`, as retention does. Who stands there gets _AUTO_OFFSET_RESET."""
        with self._state.changed:
            self._state.log(TopicPartition(topic, partition)).trim(before)
            self._state.changed.notify_all()

    def fail_sends(self, topic: str, code: str, times: int = 1, *, retriable: bool = True) -> None:
        """The next `times` records sent to `topic` are reported with this error and not written."""
        error = BrokerError(f"{topic}: {code}, as the test asked", code=code, retriable=retriable)
        with self._state.changed:
            self._state.add_fault("send", topic, error, times)

    def hold_sends(self, topic: str) -> None:
        """Records sent to `topic` stay on their way, unwritten and unreported, until `release_sends`."""
        with self._state.changed:
            self._state.held_topics.add(topic)

    def release_sends(self, topic: str) -> None:
        """What was held goes on, in order, when its producer polls, flushes or sends."""
        with self._state.changed:
            self._state.held_topics.discard(topic)
            self._state.changed.notify_all()

    def fail_commits(self, group: str, code: str, times: int = 1, *, retriable: bool = True) -> None:
        """The next `times` commits of a group end in this error, those of a revoke included."""
        error = BrokerError(f"group {group}: {code}, as the test asked", code=code, retriable=retriable)
        with self._state.changed:
            self._state.add_fault("commit", group, error, times)

    def fail_polls(self, group: str, code: str, times: int = 1, *, retriable: bool = True, fatal: bool = False) -> None:
        """The next `times` polls of a group's members raise this error."""
        error = BrokerError(f"group {group}: {code}, as the test asked", code=code, retriable=retriable, fatal=fatal)
        with self._state.changed:
            self._state.add_fault("poll", group, error, times)

    def fail_transactions(
        self,
        code: str,
        times: int = 1,
        *,
        outcome: Literal["aborted", "unknown"] = "aborted",
        committed: bool = False,
        retriable: bool = True,
    ) -> None:
        """The next `times` transactions end in this error, whoever runs them. With the outcome `unknown` a transactor has to be opened
        again; `committed`: all of it counts nevertheless, if Kafka would take it at all."""
        if committed and outcome == "aborted":
            raise ValueError("a transaction that was aborted is not committed; say outcome='unknown'")
        error = BrokerError(f"transaction: {code}, as the test asked", code=code, retriable=retriable)
        with self._state.changed:
            self._state.bad_ends.extend([BadEnd(error, outcome, committed)] * times)

    def hold_transactions(self) -> None:
        """Transactions wait, when their records are written and their offsets not sent, until `release_transactions`. Nobody reads past
        those records meanwhile."""
        with self._state.changed:
            self._state.hold_transactions = True

    def held_transactions(self) -> int:
        """How many wait so."""
        with self._state.changed:
            return self._state.held_transactions

    def release_transactions(self) -> None:
        """What was held goes on: the group is asked now whether it knows the member."""
        with self._state.changed:
            self._state.hold_transactions = False
            self._state.changed.notify_all()

    def fail_opens(self, code: str, times: int = 1, *, retriable: bool = True) -> None:
        """The next `times` calls of a transactor's `open` raise this error."""
        error = BrokerError(f"opening a transactor: {code}, as the test asked", code=code, retriable=retriable)
        with self._state.changed:
            self._state.add_fault("open", "", error, times)

    def lose(self, consumer: MemoryConsumer) -> None:
        """Throws a member out of its group, as a session timeout does: others may take its partitions at once; its commits
        are refused; its next poll calls `lost` and joins again."""
        consumer.lose()

    def kill(self, consumer: MemoryConsumer) -> None:
        """Its process dies, as of kill -9: it commits and gives back nothing any more, and its partitions are anybody's."""
        with self._state.changed:
            consumer.die()

    def heal(self) -> None:
        """Ends all faults and holds."""
        with self._state.changed:
            self._state.clear_faults()


_KAFKAS_RETENTION_MS = 7 * 86_400_000


def _with_retention(info: TopicInfo) -> TopicInfo:
    """What Kafka says of it: its own setting, else the default; nothing here is ever deleted."""
    kept = "delete" not in info.config.get("cleanup.policy", "delete").split(",")
    retention_ms = -1 if kept else int(info.config.get("retention.ms", _KAFKAS_RETENTION_MS))
    return TopicInfo(info.name, info.partitions, info.replication, info.config, retention_ms)


class MemoryCluster:
    """See `choreo.broker.Cluster`."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state

    def topics(self) -> Mapping[str, TopicInfo]:
        with self._state.changed:
            return {name: _with_retention(topic.info) for name, topic in self._state.topics.items()}

    def create(self, topics: Sequence[TopicInfo]) -> None:
        """As Kafka does, it makes what it can and then raises for the first that it could not."""
        problems: list[BrokerError] = []
        with self._state.changed:
            for info in topics:
                problem = self._refusal(info)
                if problem is None:
                    self._state.topics[info.name] = TopicLog(info)
                else:
                    problems.append(problem)
            self._rebalance_all()
        if problems:
            raise problems[0]

    def _refusal(self, info: TopicInfo) -> BrokerError | None:
        if info.name in self._state.topics:
            return BrokerError(f"{info.name}: there is such a topic already; choose another", code="TOPIC_ALREADY_EXISTS", retriable=False)
        if info.partitions < 1:
            return BrokerError(f"{info.name}: {info.partitions} partitions; use at least 1", code="INVALID_PARTITIONS", retriable=False)
        return None

    def add_partitions(self, topic: str, total: int) -> None:
        with self._state.changed:
            found = self._state.topics.get(topic)
            if found is None:
                raise unknown_topic(topic)
            if total <= found.info.partitions:
                raise BrokerError(
                    f"{topic}: has {found.info.partitions} partitions, {total} is no more; partitions can't be taken away",
                    code="INVALID_PARTITIONS",
                    retriable=False,
                )
            found.grow(total)
            self._rebalance_all()

    def _rebalance_all(self) -> None:
        for group in self._state.groups.values():
            self._state.rebalance(group)

    def configure(self, topic: str, config: Mapping[str, str]) -> None:
        with self._state.changed:
            found = self._state.topic(topic)
            info = found.info
            found.info = TopicInfo(info.name, info.partitions, info.replication, {**info.config, **config})

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        with self._state.changed:
            return {name: self._state.topics[name].topic_id for name in topics if name in self._state.topics}

    def brokers(self) -> int:
        return 1

    def describe(self) -> str:
        return "in memory, 1 broker"

    def close(self) -> None:
        """Nothing to release."""
