"""The ports to Kafka: consume, produce, commit both as one, look. Their docstrings are the contract; choreo/testing/conformance.py checks it.

Adapters: choreo.kafka (the real thing) and choreo.testing.memory (for tests).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Literal, Protocol, TypeAlias

import msgspec

from choreo.errors import BrokerError
from choreo.record import Batch, Committed, Outgoing, Record, TopicPartition


class Edge(Enum):
    """A symbolic place in a partition."""

    BEGINNING = "beginning"
    END = "end"


Start: TypeAlias = int | Edge | datetime
"""Where to read on: an offset, an edge, or the first record at or after a time."""


METADATA_TOO_LARGE = "OFFSET_METADATA_TOO_LARGE"
"""The code of the error of a commit whose text is longer than the broker takes (4,095 characters unless it was told otherwise)."""
REBALANCE_FAILED = "_REBALANCE_FAILED"
"""The code of the error that `poll` raises when `Rebalanced` could not answer for now: only a new consumer mends it."""


class Rebalanced(Protocol):
    """Told of a group's decisions, in the thread that polls, from within `poll` or `close`.

    What it raises comes out of `poll`, not retriable: a BrokerError that was has the code REBALANCE_FAILED then. Nothing that
    such a `poll` had taken is handed over; a new consumer reads it again.
    """

    def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
        """New partitions with what is committed for them; answers where to start each. Reading begins when it returns.

        A partition that comes back is not paused any more; `pause` within this call counts."""

    def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        """They are being taken; answers what to commit before they go. May block within its budget."""

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        """They are gone already; nothing can be committed."""


class CommitResult(msgspec.Struct, frozen=True):
    """How a commit ended; `error` None is success. An error that is `retriable` is committed again by the next one; for one with
    the code METADATA_TOO_LARGE the text must be shorter."""

    offsets: Mapping[TopicPartition, Committed]
    error: BrokerError | None


class Consumer(Protocol):
    """A member of a consumer group. Not thread-safe: one thread makes every call, also `close`."""

    def subscribe(self, topics: Sequence[str], listener: Rebalanced) -> None:
        """Joins the group. Returns at once; assignments come through `poll`."""

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        """At most `max_records` records, waiting at most `timeout_s` for the first. Raises BrokerError; `fatal`: build anew.

        Offsets within a partition rise but may have gaps. Partitions that were revoked meanwhile are left out.
        """

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """No records of them until `resume`. Partitions that aren't assigned are ignored."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """The contrary. Reading goes on where it stopped: nothing is lost, nothing comes twice."""

    def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Begins to commit; at most one commit is under way, the newest of a partition wins. The offset never goes back; the text
        beside the same offset may change. Results: `commit_results`."""

    def commit_results(self) -> list[CommitResult]:
        """What became of commits since the last call."""

    def identity(self) -> bytes | None:
        """Who this member is to its group just now (KIP-447): goes into a `Work` and is nobody else's business. None while the group
        doesn't know it: before it has joined, after a loss until `lost` has returned, and when it is closed. Good within `revoked`, too."""

    def close(self) -> None:
        """Leaves the group, through `revoked`. A second call does nothing."""


class Report(msgspec.Struct, frozen=True, gc=False):
    """What became of one record that was sent. `error` None: acknowledged by all in-sync replicas, at `offset`; -1 where Kafka
    didn't say, for a retry found it written already."""

    partition: int
    offset: int
    error: BrokerError | None


class Producer(Protocol):
    """Writes records, idempotently and acknowledged by all in-sync replicas; the order of a key is the order of sends.

    `send` and `poll` are called by one thread at a time.
    """

    def send(self, record: Outgoing, report: Callable[[Report], None]) -> None:
        """Takes the record; `report` is called exactly once, from `poll` or `flush`. Raises BufferError when the local queue is
        full (poll, then try again) and BrokerError when the record can never be written (too large, unknown topic)."""

    def poll(self, timeout_s: float) -> int:
        """Calls the reports that have come, waiting at most `timeout_s` for the first; how many."""

    def flush(self, timeout_s: float) -> int:
        """Waits for all reports; how many are still out."""

    def close(self, timeout_s: float) -> int:
        """Flushes within `timeout_s`, then drops and reports what is left; how many those were. A second call does nothing."""


class Part(msgspec.Struct, eq=False):
    """Records of a transaction that belong together. `then`: is given their reports, in their order, when all of them are on their
    way, and answers what else is to be written in the same transaction; called by the thread that runs it, and once more where a batch
    was too large. What it raises aborts the transaction and comes out of `run`."""

    records: Sequence[Outgoing] = ()
    then: Callable[[Sequence[Report]], Sequence[Outgoing]] | None = None


class Work(msgspec.Struct, frozen=True):
    """One transaction: what is written, what the group has read, and who says so (`Consumer.identity`). Without offsets nobody need
    say so."""

    parts: Sequence[Part] = ()
    offsets: Mapping[TopicPartition, Committed] = {}
    group: str = ""
    identity: bytes = b""


class Ended(msgspec.Struct, frozen=True):
    """How a transaction ended. `aborted`: nothing of it is there, nor ever will be. `unknown`: all of it is, or nothing; `open` waits
    until that is decided, and what the group has committed then tells. `refused`: which parts (by index) are to blame, and why, where
    it is the record's own fault, and no other try can help."""

    outcome: Literal["committed", "aborted", "unknown"]
    error: BrokerError | None = None
    refused: Mapping[int, BrokerError] = {}
    hindered: Mapping[int, BrokerError] = {}


FENCED = "_FENCED"
"""The code of the error of a transaction that ended because another transactor with its id was opened, or because it took too long."""


class Transactor(Protocol):
    """Writes records and commits a group's offsets, all of it or nothing. Every call blocks; one is made at a time, by any thread.

    Of two with one id the one that was opened last counts: what the other has under way is aborted, and it can do no more.
    """

    def open(self) -> None:
        """Ends what an earlier one with this id has left, then is ready. Needed before the first `run`, and again after one that ended
        `unknown`, or with FENCED; may always be called. Raises BrokerError; where that is retriable, call it again."""

    def run(self, work: Work) -> Ended:
        """One transaction. The records of one key of a topic stand in the order of the parts. Offsets are not checked against what is
        committed, nor whose partitions they are: whoever calls must not go back. Never raises BrokerError."""

    def close(self) -> None:
        """Aborts what is under way and releases it. A second call does nothing."""


class TopicInfo(msgspec.Struct, frozen=True):
    """A topic as the broker has it. `config` holds the settings that were not defaults, as text. `retention_ms`: for how long its
    records are kept, whoever said so; -1: for ever, at least the last of each key; None where one may not know."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str] = {}
    retention_ms: int | None = None


class LogReader(Protocol):
    """Reads partitions by position, outside of any group. Not thread-safe."""

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """First offset and end (one past the last) of each partition. Raises BrokerError, `code` UNKNOWN_TOPIC_OR_PART."""

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        """Reads these partitions from these offsets from now on, and no others. An offset below the first reads from the first."""

    def read(self, timeout_s: float) -> list[Record]:
        """What has come, waiting at most `timeout_s` for the first record."""

    def position(self) -> Mapping[TopicPartition, int]:
        """One past the last offset that was read or, on a log with gaps, skipped."""

    def close(self) -> None:
        """Releases it. A second call does nothing."""


class Cluster(Protocol):
    """Looks at the brokers and makes topics. Every call blocks and raises BrokerError."""

    def topics(self) -> Mapping[str, TopicInfo]:
        """All topics one may see."""

    def create(self, topics: Sequence[TopicInfo]) -> None:
        """Makes topics; one that is there already is an error."""

    def add_partitions(self, topic: str, total: int) -> None:
        """Raises a topic's number of partitions to `total`."""

    def configure(self, topic: str, config: Mapping[str, str]) -> None:
        """Sets these settings of a topic; its others stay as they are."""

    def topic_ids(self, topics: Sequence[str]) -> Mapping[str, bytes]:
        """16 bytes for each topic that tell it from one that was made before or after it under its name; left out where the
        broker has none."""

    def brokers(self) -> int:
        """How many there are: what a replication factor can be at most."""

    def describe(self) -> str:
        """One line: ``127.0.0.1:9092, 3 brokers``."""

    def close(self) -> None:
        """Releases it."""


class Broker(Protocol):
    """Makes the clients of one cluster; what a Service is wired with."""

    def consumer(self, group: str) -> Consumer: ...

    def producer(self) -> Producer: ...

    def transactor(self, transactional_id: str) -> Transactor:
        """Nothing is opened yet. Raises ConfigurationError where there are no transactions."""
        ...

    def reader(self) -> LogReader: ...

    def cluster(self) -> Cluster: ...
