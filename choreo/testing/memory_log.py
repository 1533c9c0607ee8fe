"""What does a partition hold? Records in offset order, gaps and a beginning that moves, as in a Kafka log.

Nothing here is thread-safe: choreo.testing.memory guards it with its one lock.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import datetime
from operator import attrgetter
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

    def append(self, outgoing: Outgoing, timestamp_ms: int) -> Record:
        """The record as it now stands in the log."""
        topic, number = self.partition
        record = Record(topic, number, self.end, timestamp_ms, outgoing.key, outgoing.value, tuple(outgoing.headers))
        self._records.append(record)
        self.end += 1
        return record

    def skip(self, count: int) -> None:
        """A gap of `count` offsets, as compaction and transaction markers leave them."""
        self.end += count

    def trim(self, before: int) -> None:
        """Forgets the records below the offset `before`, as retention does."""
        self.first = max(self.first, min(before, self.end))
        del self._records[: bisect_left(self._records, self.first, key=_OFFSET)]

    def read(self, position: int, max_records: int) -> tuple[list[Record], int]:
        """At most `max_records` (from 1) records from `position` on, and the position after them; a gap at the end is passed."""
        at = bisect_left(self._records, position, key=_OFFSET)
        found = self._records[at : at + max_records]
        if at + len(found) == len(self._records):
            return found, max(position, self.end)
        return found, found[-1].offset + 1

    def offset_of(self, start: Start) -> int:
        """The offset a start means now. A time after the last record means the end."""
        if isinstance(start, datetime):
            wanted_ms = int(start.timestamp() * 1000)
            return next((record.offset for record in self._records if record.timestamp_ms >= wanted_ms), self.end)
        if isinstance(start, Edge):
            return self.first if start is Edge.BEGINNING else self.end
        return start

    def holds(self, position: int) -> bool:
        """Whether one can read from there: neither before the first record nor past the end."""
        return self.first <= position <= self.end

    def records(self) -> list[Record]:
        """All that can be read, in offset order."""
        return list(self._records)


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
