"""What does a partition hold? Records in offset order, gaps, open transactions and a beginning that moves, as in a Kafka log.

Nothing here is thread-safe: choreo.testing.memory guards it with its one lock.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from datetime import datetime
from operator import attrgetter
from typing import Literal
from uuid import uuid4

from choreo.broker import Edge, Start, TopicInfo
from choreo.record import Outgoing, Record, TopicPartition

_OFFSET = attrgetter("offset")


class PartitionLog:
    """One partition's records. `first` is the lowest offset that can be read, `end` one past the last that was given out."""

    def __init__(self, partition: TopicPartition) -> None:
        self.partition = partition
        self.first = 0
        self.end = 0
        self._records: list[Record] = []
        self._undecided: dict[Undecided, int] = {}
        """Where the records of each transaction that is open begin."""

    @property
    def stable(self) -> int:
        """Up to where one can read: a transaction that is open holds up whatever stands behind its first record."""
        return min(self._undecided.values(), default=self.end)

    def append(self, outgoing: Outgoing, timestamp_ms: int) -> Record:
        """The record as it now stands in the log."""
        record = self._given_out(outgoing, timestamp_ms)
        self._records.append(record)
        return record

    def _given_out(self, outgoing: Outgoing, timestamp_ms: int) -> Record:
        topic, number = self.partition
        record = Record(topic, number, self.end, timestamp_ms, outgoing.key, outgoing.value, tuple(outgoing.headers))
        self.end += 1
        return record

    def begin(self, transaction: Undecided, outgoing: Outgoing, timestamp_ms: int) -> Record:
        """Where the record will stand, if its transaction is committed; until that is decided nobody reads it."""
        self._undecided.setdefault(transaction, self.end)
        return self._given_out(outgoing, timestamp_ms)

    def decide(self, transaction: Undecided, committed: Sequence[Record]) -> None:
        """It is over, and these of its records stay. A marker says so, as on Kafka: one offset."""
        del self._undecided[transaction]
        for record in committed:
            insort(self._records, record, key=_OFFSET)
        self.skip(1)

    def skip(self, count: int) -> None:
        """A gap of `count` offsets, as compaction and transaction markers leave them."""
        self.end += count

    def trim(self, before: int) -> None:
        """Forgets the records below the offset `before`, as retention does."""
        self.first = max(self.first, min(before, self.end))
        del self._records[: bisect_left(self._records, self.first, key=_OFFSET)]

    def read(self, position: int, max_records: int) -> tuple[list[Record], int]:
        """At most `max_records` (from 1) records from `position` on, and the position after them; a gap at the end is passed."""
        stable = self.stable
        at = bisect_left(self._records, position, key=_OFFSET)
        readable = max(at, bisect_left(self._records, stable, key=_OFFSET))
        found = self._records[at : min(at + max_records, readable)]
        if at + len(found) == readable:
            return found, max(position, stable)
        return found, found[-1].offset + 1

    def offset_of(self, start: Start) -> int:
        """The offset a start means now. A time after the last record means the end."""
        if isinstance(start, datetime):
            wanted_ms = int(start.timestamp() * 1000)
            return next((record.offset for record in self._records if record.timestamp_ms >= wanted_ms), self.stable)
        if isinstance(start, Edge):
            return self.first if start is Edge.BEGINNING else self.stable
        return start

    def holds(self, position: int) -> bool:
        """Whether one can read from there: neither before the first record nor past the end."""
        return self.first <= position <= self.end

    def records(self) -> list[Record]:
        """All that can be read, in offset order."""
        stable = self.stable
        return [record for record in self._records if record.offset < stable]


class Undecided:
    """A transaction's records, from the first that was written until it is committed or aborted. `over`: which of the two, when it is."""

    def __init__(self) -> None:
        self.over: Literal["committed", "aborted"] | None = None
        self._records: dict[PartitionLog, list[Record]] = {}

    def add(self, log: PartitionLog, outgoing: Outgoing, timestamp_ms: int) -> Record:
        record = log.begin(self, outgoing, timestamp_ms)
        self._records.setdefault(log, []).append(record)
        return record

    def commit(self) -> None:
        self.over = "committed"
        for log, records in self._records.items():
            log.decide(self, records)

    def abort(self) -> None:
        """Leaves their offsets behind. Does nothing when it is over."""
        if self.over is None:
            self.over = "aborted"
            for log in self._records:
                log.decide(self, ())


class TopicLog:
    """A topic: its settings and the logs of its partitions."""

    def __init__(self, info: TopicInfo) -> None:
        self.info = info
        self.topic_id = uuid4().bytes
        self.logs = [PartitionLog(TopicPartition(info.name, number)) for number in range(info.partitions)]

    def grow(self, total: int) -> None:
        """More partitions, empty ones."""
        name = self.info.name
        self.logs += [PartitionLog(TopicPartition(name, number)) for number in range(len(self.logs), total)]
        self.info = TopicInfo(name, total, self.info.replication, self.info.config)
