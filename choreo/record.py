"""What did Kafka give us? Records as bytes, before anybody has decided what they mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import msgspec

Headers: TypeAlias = Sequence[tuple[str, bytes | None]]
"""Header list as Kafka has it: in order, names may repeat, values may be None. Never a dict (TRAPS 25)."""


class TopicPartition(NamedTuple):
    """One partition of one topic. Prints as ``orders[3]``."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]"


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record as Kafka gave it. `value` None is a tombstone; an empty value is ``b""`` and not the same thing.

    `timestamp_ms` is the record's own timestamp in epoch milliseconds, UTC; -1 where the topic has none.
    """

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()

    @property
    def origin(self) -> str:
        """Where it stands, as every message of choreo writes it: ``orders[3]@1842``."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


class Committed(msgspec.Struct, frozen=True, gc=False):
    """What a group has, or is to have, committed for a partition: where to read on, and the text beside it.

    `stamp` is the committer's own and never leaves the process: the higher, the later.
    """

    offset: int
    metadata: str = ""
    stamp: int = 0


class Outgoing(msgspec.Struct, frozen=True, gc=False):
    """One record to be written. `partition` None leaves it to the partitioner (murmur2 of the key, as Java does)."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Batch(msgspec.Struct, frozen=True, gc=False):
    """Records of one partition, in offset order, handed over together."""

    partition: TopicPartition
    records: list[Record]
