"""Events that wait in PostgreSQL to be published: how they get into the outbox, who may publish which of them, and in which order.

Rows of one key are numbered in the order in which their transactions commit: each locks its keys, in sorted order, before it takes its
numbers, and holds the locks to its end. Imported when a PostgresStore is made, for it needs psycopg.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import orjson
import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from choreo.envelope import BAGGAGE, CAUSATION_ID, CONTENT_TYPE, CORRELATION_ID, ID, SOURCE, TRACEPARENT, TRACESTATE, VERSION
from choreo.errors import ConfigurationError
from choreo.record import Outgoing
from choreo.storage.leases import divided
from choreo.storage.postgres_sessions import Sessions, Statement
from choreo.store import OutboxRow, OutboxState, StoredRow, shard_of

TIMERS_S = 0.1
"""Timers are looked at so often at most."""

# The header of each column, in the order in which a record has them again; all others are in `headers`.
_HEADERS = {
    ID: "id",
    CAUSATION_ID: "causation_id",
    CORRELATION_ID: "correlation_id",
    SOURCE: "source",
    TRACEPARENT: "traceparent",
    CONTENT_TYPE: "content_type",
    BAGGAGE: "baggage",
    TRACESTATE: "tracestate",
    VERSION: "version",
}
_TEXTS = ("aggregatetype", "aggregateid", "type", *_HEADERS.values())
# The locks first, each once; the aggregate is there before any row is, and a row takes its number last.
_ADD = f"""
WITH held AS MATERIALIZED (SELECT count(pg_advisory_xact_lock(number)) AS locks FROM unnest(%b::bigint[]) AS number)
INSERT INTO {{schema}}.choreo_outbox ({", ".join(_TEXTS)}, payload, key, headers, consumer_group, shard, state, due_at)
SELECT {", ".join(f"new.{name}" for name in _TEXTS)}, new.payload, new.key, new.headers, %b::text, new.shard,
    CASE WHEN new.due_at IS NULL AND new.due_in_s IS NULL THEN 'due' ELSE 'timer' END,
    coalesce(new.due_at, now() + make_interval(secs => new.due_in_s))
FROM held CROSS JOIN ROWS FROM (
    json_to_recordset(%b::json) AS ({", ".join(f"{name} text" for name in _TEXTS)}, shard smallint, due_at timestamptz, due_in_s float8),
    unnest(%b::bytea[]), unnest(%b::bytea[]), unnest(%b::bytea[])
) WITH ORDINALITY AS new ({", ".join(_TEXTS)}, shard, due_at, due_in_s, payload, key, headers, number)
WHERE held.locks >= 0 ORDER BY new.number
"""  # noqa: S608 - names of columns
_COLUMNS = f"seq, created_at, due_at, reason, {', '.join(_TEXTS)}, payload, key, headers"
_DUE = f"""
SELECT {_COLUMNS} FROM {{schema}}.choreo_outbox AS waits
WHERE consumer_group = %b AND state = 'due' AND shard = ANY (%b::smallint[])
AND aggregatetype <> ALL (%b::text[])
AND (key IS NULL OR (aggregatetype, key) NOT IN (SELECT * FROM unnest(%b::text[], %b::bytea[])))
AND NOT EXISTS (
    SELECT FROM {{schema}}.choreo_outbox AS first
    WHERE first.consumer_group = waits.consumer_group AND first.state = 'aside'
    AND first.aggregatetype = waits.aggregatetype AND first.key = waits.key AND first.seq < waits.seq
)
ORDER BY seq LIMIT %b::bigint
"""  # noqa: S608
# A timer that fell due goes to the end: it is made anew, and numbered as any row.
_KEPT = f"{', '.join(_TEXTS)}, payload, key, headers, consumer_group, shard, due_at, created_at"
_FALL_DUE = f"""
WITH fell AS (
    DELETE FROM {{schema}}.choreo_outbox WHERE seq = ANY (ARRAY (
        SELECT seq FROM {{schema}}.choreo_outbox
        WHERE consumer_group = %b AND state = 'timer' AND shard = ANY (%b::smallint[]) AND due_at <= now() ORDER BY due_at, seq LIMIT 1000
    )) RETURNING *
)
INSERT INTO {{schema}}.choreo_outbox ({_KEPT}, state) SELECT {_KEPT}, 'due' FROM fell ORDER BY due_at, seq
"""  # noqa: S608
_PUBLISHED = "DELETE FROM {schema}.choreo_outbox WHERE consumer_group = %b AND seq = ANY (%b::bigint[])"
_SET_ASIDE = "UPDATE {schema}.choreo_outbox SET state = 'aside', reason = %b WHERE consumer_group = %b AND seq = %b AND state = 'due'"
_STATE = """
SELECT count(*) FILTER (WHERE state = 'due'), count(*) FILTER (WHERE state = 'timer'), count(*) FILTER (WHERE state = 'aside'),
    coalesce(extract(epoch FROM now() - min(coalesce(due_at, created_at)) FILTER (WHERE state = 'due')), 0)::float8
FROM {schema}.choreo_outbox WHERE consumer_group = %b
"""
_WAITING = f"""
SELECT {_COLUMNS} FROM {{schema}}.choreo_outbox WHERE consumer_group = %b AND (state = 'aside' OR NOT %b::bool)
ORDER BY CASE state WHEN 'aside' THEN 0 WHEN 'due' THEN 1 ELSE 2 END, CASE WHEN state = 'timer' THEN due_at END, seq LIMIT %b::bigint
"""  # noqa: S608
_RETRY = """
UPDATE {schema}.choreo_outbox SET state = 'due', reason = NULL WHERE consumer_group = %b AND state = 'aside' AND seq = ANY (%b::bigint[])
RETURNING 1
"""
_DISCARD = """
DELETE FROM {schema}.choreo_outbox WHERE consumer_group = %b AND state = 'aside' AND seq = ANY (%b::bigint[]) RETURNING 1
"""
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended(%b, 0))"
_HERE = """
INSERT INTO {schema}.choreo_outbox_relays VALUES (%b, %b, clock_timestamp() + make_interval(secs => %b::float8))
ON CONFLICT (consumer_group, relay) DO UPDATE SET ends_at = excluded.ends_at
"""
_GONE = "DELETE FROM {schema}.choreo_outbox_relays WHERE consumer_group = %b AND (relay = %b OR ends_at < clock_timestamp())"
_RELAYS = "SELECT count(*) FROM {schema}.choreo_outbox_relays WHERE consumer_group = %b"
_HOLDERS = """
SELECT shard, relay FROM {schema}.choreo_outbox_leases WHERE consumer_group = %b AND ends_at >= clock_timestamp()
"""
_LET_GO = "DELETE FROM {schema}.choreo_outbox_leases WHERE consumer_group = %b AND relay = %b AND shard <> ALL (%b::smallint[])"
_TAKE = """
INSERT INTO {schema}.choreo_outbox_leases
SELECT %b, shard, %b, clock_timestamp() + make_interval(secs => %b::float8) FROM unnest(%b::smallint[]) AS shard
ON CONFLICT (consumer_group, shard) DO UPDATE SET relay = excluded.relay, ends_at = excluded.ends_at
"""


def insertion(group: str, rows: Sequence[OutboxRow]) -> Statement:
    """The statement that writes `rows`, in their order; ``{schema}`` stands for the schema."""
    texts: list[dict[str, Any]] = []
    payloads: list[bytes | None] = []
    keys: list[bytes | None] = []
    rests: list[bytes | None] = []
    locks: set[int] = set()
    for row in rows:
        record = row.record
        columns, rest = _divided(record)
        columns["id"] = _plain(row.event_id)
        columns["aggregatetype"], columns["type"] = record.topic, row.event_type
        columns["shard"] = shard_of(record.topic, record.key, row.event_id)
        if record.key is not None:
            columns["aggregateid"] = _plain(record.key.decode("utf-8", "backslashreplace"))
            locks.add(_lock(group, record.topic, record.key))
        if isinstance(row.due, timedelta):
            columns["due_in_s"] = row.due.total_seconds()
        elif row.due is not None:
            columns["due_at"] = row.due.astimezone(UTC).isoformat()
        texts.append(columns)
        payloads.append(record.value)
        keys.append(record.key)
        rests.append(msgspec.msgpack.encode(rest) if rest else None)
    return _ADD, [sorted(locks), group, orjson.dumps(texts).decode(), payloads, keys, rests]


def _divided(record: Outgoing) -> tuple[dict[str, Any], list[tuple[str, bytes | None]]]:
    """Headers that have a column, by its name, and the others."""
    columns: dict[str, Any] = {}
    rest: list[tuple[str, bytes | None]] = []
    for name, value in record.headers:
        column = _HEADERS.get(name)
        if column is None or column in columns or value is None or b"\0" in value:
            rest.append((name, value))
            continue
        try:
            columns[column] = value.decode()
        except UnicodeDecodeError:
            rest.append((name, value))
    return columns, rest


def _plain(text: str) -> str:
    """As PostgreSQL's text can hold it, which has no NUL: to be found by, the exact bytes stand elsewhere."""
    return text.replace("\0", "\\0")


def _lock(group: str, topic: str, key: bytes) -> int:
    """Same for all that write to an outbox at the same time: never changes."""
    name = b"choreo outbox\0%b\0%b\0%b" % (group.encode(), topic.encode(), key)
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)


def add(connection: Any, statement: Statement) -> Any:
    """Runs it on a connection of the caller's; on an async one: an awaitable. Raises ConfigurationError for any other, or in autocommit."""
    if not isinstance(connection, psycopg.Connection | psycopg.AsyncConnection):
        raise ConfigurationError(
            f"outbox.add takes a psycopg Connection or AsyncConnection, not {type(connection).__name__}; of a framework's session, give what "
            "it has underneath"
        )
    if connection.autocommit and connection.info.transaction_status is TransactionStatus.IDLE:
        raise ConfigurationError(
            "outbox.add: this connection is in autocommit, so the event would be there before what belongs to it; begin a transaction first: "
            "'with connection.transaction():'"
        )
    query, parameters = statement
    if isinstance(connection, psycopg.AsyncConnection):
        return psycopg.AsyncCursor(connection, row_factory=tuple_row).execute(query.encode(), parameters, prepare=False)
    psycopg.Cursor(connection, row_factory=tuple_row).execute(query.encode(), parameters, prepare=False)
    return None


class PostgresOutbox:
    """See `choreo.store.Outbox` and `OutboxDesk`. `sessions` are its own."""

    def __init__(self, sessions: Sessions, schema: str, group: str) -> None:
        self._sessions = sessions
        self._schema = schema
        self._group = group
        self._timers_at_s = 0.0

    def lease(self, relay: str, lasts_s: float) -> Collection[int]:
        with self._sessions.transaction("leasing the outbox") as execute:
            execute(_ONE_AT_A_TIME, [f"choreo leases the outbox of {self._group} in {self._schema}"])
            execute(self._sql(_GONE), [self._group, relay])
            mine: frozenset[int] = frozenset()
            if lasts_s > 0:
                execute(self._sql(_HERE), [self._group, relay, lasts_s])
                ((relays,),) = execute(self._sql(_RELAYS), [self._group])
                mine = divided(relay, dict(execute(self._sql(_HOLDERS), [self._group])), relays)
            execute(self._sql(_LET_GO), [self._group, relay, sorted(mine)])
            execute(self._sql(_TAKE), [self._group, relay, lasts_s, sorted(mine)])
        return mine

    def due(self, shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        numbers = sorted(shards)
        now_s = time.monotonic()
        if now_s - self._timers_at_s >= TIMERS_S:
            self._sessions.write("looking at timers", [(self._sql(_FALL_DUE), [self._group, numbers])])
            self._timers_at_s = now_s
        topics = [topic for topic, key in beside if key is None]
        keys = [(topic, key) for topic, key in beside if key is not None]
        parameters = [self._group, numbers, topics, [topic for topic, _ in keys], [key for _, key in keys], limit]
        return [_stored(row) for row in self._sessions.read("reading the outbox", (self._sql(_DUE), parameters))]

    def published(self, seqs: Collection[int]) -> None:
        self._write("deleting what was published", _PUBLISHED, self._group, sorted(seqs))

    def set_aside(self, seq: int, reason: str) -> None:
        self._write("setting an event aside", _SET_ASIDE, _plain(reason), self._group, seq)

    def state(self) -> OutboxState:
        ((due, timers, aside, oldest_s),) = self._sessions.read("looking at the outbox", (self._sql(_STATE), [self._group]))
        return OutboxState(due, max(0.0, oldest_s), timers, aside)

    def waiting(self, limit: int, *, aside_only: bool = False) -> Sequence[StoredRow]:
        return [_stored(row) for row in self._sessions.read("reading the outbox", (self._sql(_WAITING), [self._group, aside_only, limit]))]

    def retry(self, seqs: Collection[int]) -> int:
        return len(self._write("putting events back", _RETRY, self._group, sorted(seqs)))

    def discard(self, seqs: Collection[int]) -> int:
        return len(self._write("discarding events", _DISCARD, self._group, sorted(seqs)))

    def close(self) -> None:
        self._sessions.close()

    def _write(self, doing: str, text: str, *parameters: object) -> list[Any]:
        (found,) = self._sessions.write(doing, [(self._sql(text), parameters)])
        return found

    def _sql(self, text: str) -> str:
        return text.replace("{schema}", f'"{self._schema}"')


def _stored(row: tuple[Any, ...]) -> StoredRow:
    seq, created_at, due_at, reason, *texts, payload, key, rest = row
    columns = dict(zip(_TEXTS, texts, strict=True))
    others: list[tuple[str, bytes | None]] = [] if rest is None else msgspec.msgpack.decode(rest, type=list[tuple[str, bytes | None]])
    exact = {name for name, _ in others}
    headers = [
        (name, columns[column].encode())
        for name, column in _HEADERS.items()
        if columns[column] is not None and not (name == ID and ID in exact)
    ]
    record = Outgoing(columns["aggregatetype"], key, payload, [*headers, *others])
    return StoredRow(seq, record, columns["type"], columns["id"], _utc(created_at), None if due_at is None else _utc(due_at), reason)


def _utc(time_: datetime) -> datetime:
    return time_.astimezone(UTC)
