"""What do the clients of one memory broker share? Topics, groups, and the faults a test asked for, under one lock."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from choreo.errors import BrokerError
from choreo.record import Outgoing, Record, TopicPartition
from choreo.testing.memory_group import Group
from choreo.testing.memory_log import PartitionLog, TopicLog, Undecided
from choreo.testing.murmur2 import partition_of

FaultKind: TypeAlias = Literal["send", "commit", "poll", "open"]
# What Kafka counts beside key, value and headers: the batch's and the record's own overhead.
_OVERHEAD_BYTES = 70


@dataclass(slots=True)
class _Fault:
    error: BrokerError
    left: int


@dataclass(frozen=True, slots=True)
class BadEnd:
    """How a test wants a transaction to end; `committed`: whether it counts all the same."""

    error: BrokerError
    outcome: Literal["aborted", "unknown"]
    committed: bool


class MemoryState:
    """Owned by MemoryBroker. Everything is read and written with `changed` held; `changed` is notified after every change."""

    def __init__(self, *, max_message_bytes: int, queue_records: int, clock: Callable[[], float]) -> None:
        self.changed = threading.Condition()
        self.topics: dict[str, TopicLog] = {}
        self.groups: dict[str, Group] = {}
        self.held_topics: set[str] = set()
        self.undecided: dict[str, Undecided] = {}
        """The transaction that is open, by transactional id."""
        self.openings: dict[str, int] = {}
        """How often a transactional id was opened: only who did so last may use it."""
        self.bad_ends: deque[BadEnd] = deque()
        self.hold_transactions = False
        self.held_transactions = 0
        self.queue_records = queue_records
        self._max_message_bytes = max_message_bytes
        self._clock = clock
        self._faults: dict[tuple[FaultKind, str], deque[_Fault]] = {}

    def topic(self, name: str) -> TopicLog:
        found = self.topics.get(name)
        if found is None:
            raise unknown_topic(name)
        return found

    def log(self, partition: TopicPartition) -> PartitionLog:
        logs = self.topic(partition.topic).logs
        if not 0 <= partition.partition < len(logs):
            raise BrokerError(
                f"{partition}: {partition.topic} has {len(logs)} partitions; use 0 to {len(logs) - 1}, or add_partitions",
                code="_UNKNOWN_PARTITION",
                retriable=False,
            )
        return logs[partition.partition]

    def log_for(self, record: Outgoing, keyless_turn: int) -> PartitionLog:
        """Where it belongs: its partition, else its key's, else the `keyless_turn`-th in turn. Raises what `send` raises."""
        topic = self.topic(record.topic)
        limit = int(topic.info.config.get("max.message.bytes", self._max_message_bytes))
        size = _size_bytes(record)
        if size > limit:
            raise BrokerError(
                f"{record.topic}: a record of {size} bytes, more than max.message.bytes={limit}; raise the topic's limit or send less",
                code="MSG_SIZE_TOO_LARGE",
                retriable=False,
            )
        if record.partition is not None:
            return self.log(TopicPartition(record.topic, record.partition))
        count = len(topic.logs)
        return topic.logs[keyless_turn % count if record.key is None else partition_of(record.key, count)]

    def append(self, log: PartitionLog, record: Outgoing, timestamp_ms: int | None = None) -> Record:
        """Writes it and wakes whoever waits for it."""
        written = log.append(record, self.now_ms() if timestamp_ms is None else timestamp_ms)
        self.changed.notify_all()
        return written

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    def group(self, name: str) -> Group:
        return self.groups.setdefault(name, Group())

    def rebalance(self, group: Group) -> None:
        group.rebalance(self.partition_counts())
        self.changed.notify_all()

    def partition_counts(self) -> Mapping[str, int]:
        return {name: topic.info.partitions for name, topic in self.topics.items()}

    def add_fault(self, kind: FaultKind, name: str, error: BrokerError, times: int) -> None:
        """The next `times` calls of that kind on that topic or group end in `error`."""
        if times > 0:
            self._faults.setdefault((kind, name), deque()).append(_Fault(error, times))
        self.changed.notify_all()

    def take_fault(self, kind: FaultKind, name: str) -> BrokerError | None:
        waiting = self._faults.get((kind, name))
        if not waiting:
            return None
        fault = waiting[0]
        fault.left -= 1
        if fault.left == 0:
            waiting.popleft()
        return fault.error

    def clear_faults(self) -> None:
        self._faults.clear()
        self.bad_ends.clear()
        self.held_topics.clear()
        self.hold_transactions = False
        self.changed.notify_all()


def unknown_topic(name: str) -> BrokerError:
    return BrokerError(f"{name}: no such topic; make it first: broker.create_topic", code="UNKNOWN_TOPIC_OR_PART", retriable=False)


def _size_bytes(record: Outgoing) -> int:
    headers = sum(len(name.encode()) + len(value or b"") for name, value in record.headers)
    return _OVERHEAD_BYTES + len(record.key or b"") + len(record.value or b"") + headers
