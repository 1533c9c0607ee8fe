"""Events that wait in a SQLite file to be published. Times are this host's, which all processes on the file share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from choreo.errors import ConfigurationError, StoreError
from choreo.record import Outgoing
from choreo.storage.leases import divided
from choreo.storage.sqlite_file import SqliteFile, epoch_ms
from choreo.store import OutboxRow, OutboxState, StoredRow, shard_of

_ADD = (
    "INSERT INTO choreo_outbox (id, aggregatetype, aggregateid, type, payload, headers, consumer_group, shard, state, due_at_ms, created_at_ms)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_COLUMNS = "seq, id, aggregatetype, aggregateid, type, payload, headers, due_at_ms, created_at_ms, reason"
_DUE = (
    f"SELECT {_COLUMNS} FROM choreo_outbox AS waits WHERE consumer_group = ? AND state = 'due' AND (shard = -1 {{}}) {{}} AND NOT EXISTS ("  # noqa: S608
    "SELECT 1 FROM choreo_outbox AS first WHERE first.consumer_group = waits.consumer_group AND first.state = 'aside'"
    " AND first.aggregatetype = waits.aggregatetype AND first.aggregateid = waits.aggregateid AND first.seq < waits.seq"
    ") ORDER BY seq LIMIT ?"
)
_NOT_THE_TOPIC, _NOT_THE_KEY = " AND aggregatetype <> ?", " AND (aggregateid IS NULL OR aggregatetype <> ? OR aggregateid <> ?)"
_FELL_DUE = (
    "SELECT seq FROM choreo_outbox WHERE consumer_group = ? AND state = 'timer' AND due_at_ms <= ? ORDER BY due_at_ms, seq LIMIT 1000"
)
# A timer that fell due goes to the end: its number is the next one, as any row's.
_KEPT = "id, aggregatetype, aggregateid, type, payload, headers, consumer_group, shard, due_at_ms, created_at_ms"
_MADE_ANEW = f"INSERT INTO choreo_outbox ({_KEPT}, state) SELECT {_KEPT}, 'due' FROM choreo_outbox WHERE seq = ?"  # noqa: S608
_DELETE = "DELETE FROM choreo_outbox WHERE seq = ? AND consumer_group = ?"
_SET_ASIDE = "UPDATE choreo_outbox SET state = 'aside', reason = ? WHERE seq = ? AND consumer_group = ? AND state = 'due'"
_STATE = (
    "SELECT count(*) FILTER (WHERE state = 'due'), count(*) FILTER (WHERE state = 'timer'), count(*) FILTER (WHERE state = 'aside'),"
    " min(coalesce(due_at_ms, created_at_ms)) FILTER (WHERE state = 'due') FROM choreo_outbox WHERE consumer_group = ?"
)
_WAITING = (
    f"SELECT {_COLUMNS} FROM choreo_outbox WHERE consumer_group = ? AND (state = 'aside' OR NOT ?)"  # noqa: S608
    " ORDER BY CASE state WHEN 'aside' THEN 0 WHEN 'due' THEN 1 ELSE 2 END, CASE WHEN state = 'timer' THEN due_at_ms END, seq LIMIT ?"
)
_RETRY = "UPDATE choreo_outbox SET state = 'due', reason = NULL WHERE seq = ? AND consumer_group = ? AND state = 'aside'"
_DISCARD = "DELETE FROM choreo_outbox WHERE seq = ? AND consumer_group = ? AND state = 'aside'"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# What a datetime can tell: a timer that is further away (timedelta.max) never comes due anyhow.
_FIRST_MS = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
_LAST_MS = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)


def insert_rows(connection: sqlite3.Connection, group: str, rows: Sequence[OutboxRow]) -> None:
    """Inserts `rows`, in their order, in the connection's transaction. Raises sqlite3.Error."""
    connection.executemany(_ADD, _values(group, rows))


def _values(group: str, rows: Sequence[OutboxRow]) -> Iterator[tuple[object, ...]]:
    now_ms = epoch_ms()
    for row in rows:
        record, due_ms = row.record, None
        if isinstance(row.due, timedelta):
            due_ms = now_ms + _ms(row.due)
        elif row.due is not None:
            due_ms = _ms(row.due - _EPOCH)
        if due_ms is not None:
            due_ms = min(max(due_ms, _FIRST_MS), _LAST_MS)
        headers = msgspec.msgpack.encode(list(record.headers))
        shard = shard_of(record.topic, record.key, row.event_id)
        state = "due" if due_ms is None else "timer"
        yield row.event_id, record.topic, record.key, row.event_type, record.value, headers, group, shard, state, due_ms, now_ms


def add(connection: Any, file: SqliteFile, group: str, rows: Sequence[OutboxRow]) -> None:
    """Inserts `rows` on a connection of the caller's. Raises ConfigurationError for one that is not to `file`, or in autocommit."""
    if not isinstance(connection, sqlite3.Connection):
        raise ConfigurationError(f"outbox.add takes a sqlite3.Connection to {file.path}, not {type(connection).__name__}")
    if _in_autocommit(connection) and not connection.in_transaction:
        raise ConfigurationError(
            "outbox.add: this connection is in autocommit, so the event would be there before what belongs to it; "
            "begin a transaction first: connection.execute('BEGIN IMMEDIATE')"
        )
    _check_file(connection, file)
    try:
        with file.explained("writing to the outbox"):
            insert_rows(connection, group, rows)
    except StoreError as error:
        if "no such table: choreo_outbox" not in str(error):
            raise
        raise StoreError(
            f"{file.describe()}: it has no outbox yet; run the service on it once, or call SqliteStore({os.fspath(file.path)!r}).open({group!r})",
            retriable=False,
        ) from error


def _in_autocommit(connection: sqlite3.Connection) -> bool:
    """Whether an INSERT would begin no transaction. Python 3.12 has `autocommit`; where that is False, `isolation_level` means nothing."""
    return getattr(connection, "autocommit", None) is True or connection.isolation_level is None


def _check_file(connection: sqlite3.Connection, file: SqliteFile) -> None:
    # What the caller made of its rows, texts and cursors means nothing here.
    own = connection.cursor() if getattr(connection, "is_choreos", False) else sqlite3.Cursor(connection)
    text_factory, connection.text_factory = connection.text_factory, bytes
    try:
        with closing(own) as cursor:
            cursor.row_factory = None
            files = {name: path for _, name, path in cursor.execute("PRAGMA database_list")}
    finally:
        connection.text_factory = text_factory
    path = os.fsdecode(files.get(b"main") or b"")
    if not (path and os.path.exists(path) and file.path.exists() and os.path.samefile(path, file.path)):
        raise ConfigurationError(
            f"outbox.add: this connection is to {path or 'a database in memory'}, the service's store is {file.path}: "
            "an event is written to the file whose changes it tells of; open that one, or give the service this one as its store"
        )


class SqliteOutbox:
    """See `choreo.store.Outbox` and `OutboxDesk`. Has a connection of its own."""

    def __init__(self, file: SqliteFile, group: str) -> None:
        self._file = file
        self._group = group
        self._open: sqlite3.Connection | None = None

    def lease(self, relay: str, lasts_s: float) -> Collection[int]:
        connection = self._connection()
        with self._file.writing(connection, "leasing the outbox"):
            self._file.check()  # or it would wait for ever for what others write to another file of this name
            now_ms = epoch_ms()
            ends_ms = now_ms + round(lasts_s * 1000)
            self._run("DELETE FROM choreo_outbox_relays WHERE consumer_group = ? AND (relay = ? OR ends_at_ms < ?)", relay, now_ms)
            mine: frozenset[int] = frozenset()
            if lasts_s > 0:
                self._run("INSERT INTO choreo_outbox_relays VALUES (?, ?, ?)", relay, ends_ms)
                ((relays,),) = self._run("SELECT count(*) FROM choreo_outbox_relays WHERE consumer_group = ?")
                rows = self._run("SELECT shard, relay FROM choreo_outbox_leases WHERE consumer_group = ? AND ends_at_ms >= ?", now_ms)
                mine = divided(relay, dict(rows), relays)
            self._run("DELETE FROM choreo_outbox_leases WHERE consumer_group = ? AND relay = ?", relay)
            for shard in sorted(mine):
                self._run("INSERT OR REPLACE INTO choreo_outbox_leases VALUES (?, ?, ?, ?)", shard, relay, ends_ms)
        return mine

    def _run(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        return self._connection().execute(sql, (self._group, *parameters)).fetchall()

    def due(self, shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        self._let_timers_fall_due()
        if not shards:
            return ()
        of_shards = "".join(f" OR shard = {number:d}" for number in sorted(shards))
        not_beside = "".join(_NOT_THE_TOPIC if key is None else _NOT_THE_KEY for _, key in beside)
        text = _DUE.format(of_shards, not_beside)
        with self._file.explained("reading the outbox"):
            rows = self._connection().execute(text, (self._group, *(part for one in beside for part in one if part is not None), limit))
            return [_stored(row) for row in rows]

    def _let_timers_fall_due(self) -> None:
        connection = self._connection()
        with self._file.explained("looking at timers"):
            fell = connection.execute(_FELL_DUE, (self._group, epoch_ms())).fetchall()
        if not fell:
            return
        with self._file.writing(connection, "looking at timers"):
            for (seq,) in connection.execute(_FELL_DUE, (self._group, epoch_ms())).fetchall():
                connection.execute(_MADE_ANEW, (seq,))
                connection.execute(_DELETE, (seq, self._group))

    def published(self, seqs: Collection[int]) -> None:
        if seqs:
            self._each(_DELETE, seqs, "deleting what was published")

    def set_aside(self, seq: int, reason: str) -> None:
        connection = self._connection()
        with self._file.writing(connection, "setting an event aside"):
            connection.execute(_SET_ASIDE, (reason, seq, self._group))

    def state(self) -> OutboxState:
        with self._file.explained("looking at the outbox"):
            ((due, timers, aside, oldest_ms),) = self._run(_STATE)
        return OutboxState(due, 0.0 if oldest_ms is None else max(0.0, (epoch_ms() - oldest_ms) / 1000), timers, aside)

    def waiting(self, limit: int, *, aside_only: bool = False) -> Sequence[StoredRow]:
        with self._file.explained("reading the outbox"):
            return [_stored(row) for row in self._run(_WAITING, aside_only, limit)]

    def retry(self, seqs: Collection[int]) -> int:
        return self._each(_RETRY, seqs, "putting events back")

    def discard(self, seqs: Collection[int]) -> int:
        return self._each(_DISCARD, seqs, "discarding events")

    def _each(self, sql: str, seqs: Collection[int], doing: str) -> int:
        connection = self._connection()
        with self._file.writing(connection, doing):
            return max(0, connection.executemany(sql, [(seq, self._group) for seq in sorted(seqs)]).rowcount)

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self._file.check()
            self._open = self._file.connect(sqlite3.Connection)
            if not self._file.noted:
                self._file.note()
        return self._open

    def close(self) -> None:
        connection, self._open = self._open, None
        if connection is not None:
            connection.close()


def _stored(row: tuple[Any, ...]) -> StoredRow:
    seq, event_id, topic, key, event_type, payload, headers, due_ms, created_ms, reason = row
    decoded = msgspec.msgpack.decode(headers, type=list[tuple[str, bytes | None]])
    due_at = None if due_ms is None else _at(due_ms)
    return StoredRow(seq, Outgoing(topic, key, payload, decoded), event_type, event_id, _at(created_ms), due_at, reason)


def _at(time_ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=time_ms)


def _ms(length: timedelta) -> int:
    return length // timedelta(milliseconds=1)
