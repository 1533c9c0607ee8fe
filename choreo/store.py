"""The ports to a store: claims (has this handler already succeeded with this event?), the transactions that handlers write in,
the outbox of events that wait to be published, and who makes the tables.

A claim is the row (group, handler, event id, run): one handler's success with one event. `run` is ``""`` but for a forced
replay, whose run id it is. Beside it stands the hash of the payload that succeeded: the same id with another payload is a
handler that emits differently when it runs again. choreo/testing/conformance.py holds what every store must do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol, runtime_checkable
from zlib import crc32

import msgspec

from choreo.record import Outgoing


class Claim(NamedTuple):
    """One success of one handler with one event."""

    handler: str
    event_id: str
    run: str = ""


class Store(Protocol):
    """Where claims are kept. All methods block; choreo calls them from one thread of its own, never two at once.

    Every method raises StoreError: `retriable` when waiting may help (locked, disk full), else the store is unusable.
    """

    def open(self, group: str) -> None:
        """Connects, makes or checks the schema, for the claims of a consumer group. A second call does nothing."""

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        """Those of `claims` that are there already. Reads what was committed."""

    def claim(self, claims: Sequence[Claim], payloads: Sequence[bytes] = ()) -> set[Claim]:
        """Writes all of `claims` in one transaction, durable when it returns; the set of those that were there already, which
        stay as they are. `payloads`: a hash for each claim, of at most 32 bytes; none: not known."""

    def payloads(self, claims: Collection[Claim]) -> dict[Claim, bytes]:
        """The hashes that stand beside those of `claims` that are there; ``b""`` where none is known."""

    def delete_older(self, age_s: float, limit: int) -> int:
        """Deletes claims of the group that were made `age_s` seconds ago or earlier, the oldest first, at most `limit`, in one
        transaction; how many. Fewer than `limit`: no more are so old, or another member is at it. The clock that dated the
        claims tells their age: where members share a store, no member's own clock."""

    def describe(self) -> str:
        """One line for the start-up screen: ``SQLite .choreo/payments.db``."""

    def close(self) -> None:
        """Releases everything. A second call does nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    """One numbered step of a schema. What was released is never changed: what comes later is another number."""

    version: int
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class SchemaPlan:
    """What stands between the schema that is there and the one this choreo needs. `found` is 0 where there is none;
    `script` is what the store itself would run, transaction and all, and ``""`` where there is nothing to run."""

    where: str
    found: int
    needed: int
    steps: tuple[Migration, ...] = ()
    script: str = ""


@runtime_checkable
class Migrating(Protocol):
    """A store whose tables somebody makes before a service starts, with ``choreo store apply``. Its `open` refuses any schema
    but the one it needs. Both methods block, work on a store that is not open, leave it so, and raise StoreError."""

    def plan_schema(self) -> SchemaPlan:
        """Looks, and writes nothing."""

    def apply_schema(self) -> SchemaPlan:
        """Runs what is missing, all or nothing; `steps` are those that it ran. Of two at once the second waits, and finds
        nothing left to do. A schema that is newer than needed is left alone."""


# ---- transactions ---------------------------------------------------------------------------------------------------


class OutboxRow(msgspec.Struct, frozen=True):
    """An event that is to be published once the transaction that it stands in is committed.

    `record.topic` is the broker's name. `due`: None for at once; a time (aware), or how long after the transaction, by the database's
    clock: a timer, which takes its place among the rows of its key when it falls due.
    """

    record: Outgoing
    event_type: str
    event_id: str
    due: datetime | timedelta | None = None


class Transaction(Protocol):
    """One burst's transaction, on a connection of its own: claims are looked up first, handlers write one after the other, and the
    claims of those that succeeded are inserted last, with the rows of their events, just before COMMIT.

    Its methods are coroutines. Those of a store whose connections block never suspend: they are run to their end on a thread, all of
    one transaction on the same one. Each raises TransactionLostError when the transaction can't go on (a deadlock, a lock that was
    waited for too long, a lost connection): nothing of it will be there, but after a COMMIT without an answer; the caller then calls
    `end`, and runs its deliveries again, each in a transaction of its own.
    """

    async def look_up(self, claims: Collection[Claim]) -> Mapping[Claim, bytes]:
        """Those of `claims` that are committed already, each with its payload's hash."""

    async def begin_delivery(self) -> Any:
        """What a handler gets as ``context.transaction``: the connection, guarded, good until `keep` or `undo`. What ends or would end
        the transaction (commit, rollback, close, BEGIN, autocommit) raises PermanentError in the handler that tries it."""

    async def keep(self) -> None:
        """The handler is through: what it wrote will be committed. Raises TransientError, when a statement had failed and the handler
        went on as if it had not, which PostgreSQL doesn't do: then what it wrote is undone."""

    async def undo(self, error: BaseException) -> None:
        """The handler raised `error`: what it wrote is undone, and what others of the burst wrote stays. Raises TransactionLostError where
        `error` is no fault of the handler's (a deadlock) or the whole transaction is gone."""

    async def commit(self, claims: Sequence[Claim], payloads: Sequence[bytes], rows: Sequence[OutboxRow]) -> None:
        """Inserts `rows`, in this order, and `claims`, and commits; durable when it returns. Raises TransactionLostError also when another
        member has made one of `claims` meanwhile."""

    async def end(self) -> None:
        """Rolls back what was not committed, and gives the connection back. Called once, last, whatever happened; doesn't raise."""


class Transactions(Protocol):
    """Where the bursts of one kind of connection get their transactions. Several threads, or tasks, may call it at once."""

    blocking: bool
    """Whether its connections block: then its handlers are plain `def`, and whole bursts run on threads."""
    most: int
    """How many transactions it has at once, at most; one more waits for a connection."""
    largest: int
    """How many deliveries a burst should have at most."""

    async def begin(self, *, quiet_s: float) -> Transaction:
        """A transaction on a connection that is free. A handler in it may be silent for `quiet_s` seconds between two statements;
        when it is longer (a stopped process), the database may end the transaction, so that its locks hold nobody. Raises StoreError,
        `retriable` when the database may come back."""

    async def close(self) -> None:
        """Closes what is its own. A second call does nothing."""


@runtime_checkable
class Transactional(Protocol):
    """A store whose database handlers may write in: ``Handler[E, Connection]``. Its `open` has been called when these are used."""

    def transactions(self, connection: type) -> Transactions | None:
        """For handlers that ask for `connection`, the class; None where it has none of that class. Does no I/O."""

    def add(self, connection: Any, group: str, rows: Sequence[OutboxRow]) -> Any:
        """Inserts `rows` in the transaction of a connection of the caller's own, which commits or doesn't. On an async connection: an
        awaitable. Raises ConfigurationError for a connection of another kind, or one in autocommit, whose row would be there before what
        belongs to it."""

    def outbox(self, group: str) -> Outbox:
        """The group's rows, for whoever publishes them. Has a connection of its own; does no I/O yet."""


# ---- the outbox -----------------------------------------------------------------------------------------------------

SHARDS = 16
"""The rows of a group are divided among so many; one relay has a shard at a time, so that the order of its keys is kept."""


def shard_of(topic: str, key: bytes | None, event_id: str) -> int:
    """The shard of a row. All rows of a key are in one; those without a key are anywhere. Stored: never changes."""
    return crc32(event_id.encode("utf-8", "surrogatepass") if key is None else b"%b\0%b" % (topic.encode(), key)) % SHARDS


class StoredRow(msgspec.Struct, frozen=True):
    """A row as it stands in the outbox. `seq`: its place; of two rows of one key the one that was committed first has the lower one."""

    seq: int
    record: Outgoing
    event_type: str
    event_id: str
    created_at: datetime
    due_at: datetime | None = None
    reason: str | None = None
    """Why it was set aside; None: it waits to be published."""


class OutboxState(msgspec.Struct, frozen=True):
    """How an outbox is doing: rows that are due, the age of the oldest (0.0 for none), timers that are not due, rows set aside."""

    due: int
    oldest_s: float
    timers: int
    aside: int


class Outbox(Protocol):
    """The rows of one group that wait to be published. All methods block; they are called from one thread, not two at once, and
    connect when they have to. Times are the database's. Each raises StoreError, `retriable` when waiting may help."""

    def lease(self, relay: str, lasts_s: float) -> Collection[int]:
        """The shards that `relay` may publish from for the next `lasts_s` seconds: it keeps those it has, and takes free ones up to its share
        among the relays that are there; above its share it lets go. With 0.0 it leaves, and has none."""

    def due(self, shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        """The rows of `shards` that are to be published now, in the order of `seq`, at most `limit`. Timers that fell due have got their
        place in it. Left out are rows of a key that has one set aside: they wait behind it; and those of the keys (topic, key)
        and whole topics (topic, None) of `beside`, which are few."""

    def published(self, seqs: Collection[int]) -> None:
        """They are acknowledged by Kafka: deletes them."""

    def set_aside(self, seq: int, reason: str) -> None:
        """It can never be published as it is: it waits for an operator, and the later rows of its key behind it."""

    def state(self) -> OutboxState:
        """How it is doing, all shards together."""

    def close(self) -> None:
        """Releases everything. A second call does nothing."""


@runtime_checkable
class OutboxDesk(Protocol):
    """What an operator does with rows that were set aside; an `Outbox` has these as well. Raises StoreError."""

    def waiting(self, limit: int, *, aside_only: bool = False) -> Sequence[StoredRow]:
        """Rows, those set aside first, then by `seq`; timers last."""

    def retry(self, seqs: Collection[int]) -> int:
        """Puts rows that were set aside back in their place; how many."""

    def discard(self, seqs: Collection[int]) -> int:
        """Deletes rows that were set aside; how many."""
