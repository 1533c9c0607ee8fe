"""Claims in a SQLite file, the transactions of handlers, and the outbox: each event once on this host.

Other processes may share the file; they wait for each other up to `busy_timeout_s`.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

from choreo import failpoint
from choreo.errors import StoreError
from choreo.storage.schema import migrations, still_to_run
from choreo.storage.sqlite_file import SqliteFile, epoch_ms
from choreo.storage.sqlite_outbox import SqliteOutbox, add
from choreo.storage.sqlite_transactions import SqliteTransactions
from choreo.store import Claim, OutboxRow

_MIGRATIONS = migrations("sqlite")
SCHEMA_VERSION = _MIGRATIONS[-1].version
_INSERT = "INSERT OR IGNORE INTO choreo_claims VALUES (?, ?, ?, ?, ?, ?)"
_DELETE = (
    "DELETE FROM choreo_claims WHERE (consumer_group, handler, event_id, run) IN (SELECT consumer_group, handler, event_id, run"
    " FROM choreo_claims WHERE consumer_group = ? AND claimed_at_ms <= ? ORDER BY claimed_at_ms LIMIT ?)"
)
# One statement text a size: a full chunk's is parsed once and then comes from sqlite3's statement cache.
_CHUNK_IDS = 500


class SqliteStore:
    """See `choreo.store.Store` and `Transactional`. ``SqliteStore(".choreo/payments.db")``; missing folders are made, `open` does the I/O."""

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout_s: float = 5.0) -> None:
        self._file = SqliteFile(path, busy_timeout_s)
        self._group = ""
        self._connection: sqlite3.Connection | None = None

    def open(self, group: str) -> None:
        if self._connection is not None:
            return
        self._file.make_folder()
        connection = self._file.connect(sqlite3.Connection)
        try:
            self._set_up(connection)
            self._file.note()
        except BaseException:
            connection.close()
            raise
        self._group = group
        self._connection = connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        with self._file.writing(connection, "opening"):
            for step in still_to_run(_MIGRATIONS, _schema_version(connection)):
                for statement in _statements(step.sql):
                    connection.execute(statement)
                connection.execute("INSERT INTO choreo_schema VALUES (?)", [step.version])
            version = _schema_version(connection)
            # Changes nothing, but a file that can't be written is refused now and not at the first claim.
            connection.execute("UPDATE choreo_schema SET version = version WHERE FALSE")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.describe()}: its schema is version {version}, this choreo knows {SCHEMA_VERSION};"
                " run the choreo release that wrote it (or a newer one), or choose another path",
                retriable=False,
            )

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        with self._file.explained("looking claims up"):
            return set(found(self._ready(), self._group, claims))

    def payloads(self, claims: Collection[Claim]) -> dict[Claim, bytes]:
        with self._file.explained("looking payloads up"):
            return found(self._ready(), self._group, claims)

    def claim(self, claims: Sequence[Claim], payloads: Sequence[bytes] = ()) -> set[Claim]:
        connection = self._ready()
        if not claims:
            return set()
        if failpoint.ACTIVE:
            failpoint.hit("before_store_tx")
        with self._file.writing(connection, "writing claims"):
            self._file.check()
            already = set(found(connection, self._group, claims))
            new = [(claim, payload) for claim, payload in zip(claims, payloads or [b""] * len(claims), strict=True) if claim not in already]
            insert(connection, self._group, new)
            if failpoint.ACTIVE:
                failpoint.hit("in_store_tx")
        if failpoint.ACTIVE:
            failpoint.hit("after_store_commit")
        return already

    def delete_older(self, age_s: float, limit: int) -> int:
        connection = self._ready()
        with self._file.writing(connection, "deleting old claims"):
            self._file.check()
            return connection.execute(_DELETE, (self._group, epoch_ms() - round(age_s * 1000), limit)).rowcount

    def transactions(self, connection: type) -> SqliteTransactions | None:
        return SqliteTransactions(self._file, self._open_group, found, insert) if connection is sqlite3.Connection else None

    def add(self, connection: Any, group: str, rows: Sequence[OutboxRow]) -> None:
        add(connection, self._file, group, rows)

    def outbox(self, group: str) -> SqliteOutbox:
        return SqliteOutbox(self._file, group)

    def describe(self) -> str:
        return self._file.describe()

    def close(self) -> None:
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        with self._file.explained("closing"):
            connection.close()

    def _open_group(self) -> str:
        self._ready()
        return self._group

    def _ready(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.describe()}: not open; call open(group) first, and not after close()", retriable=False)
        return self._connection


def found(connection: sqlite3.Connection, group: str, claims: Iterable[Claim]) -> dict[Claim, bytes]:
    """Those of `claims` that are there, each with its hash. Raises sqlite3.Error."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for handler, event_id, run in claims:
        wanted.setdefault((handler, run), []).append(event_id)
    there: dict[Claim, bytes] = {}
    for (handler, run), ids in wanted.items():
        for at in range(0, len(ids), _CHUNK_IDS):
            chunk = ids[at : at + _CHUNK_IDS]
            # CROSS JOIN keeps the order of the loops: for each id one search in the key, never a scan of the claims.
            sql = (
                f"WITH wanted(id) AS (VALUES {','.join(['(?)'] * len(chunk))}) SELECT id, payload FROM wanted CROSS JOIN choreo_claims"  # noqa: S608
                " WHERE consumer_group = ? AND handler = ? AND event_id = id AND run = ?"
            )
            rows = connection.execute(sql, (*chunk, group, handler, run))
            there.update((Claim(handler, event_id, run), payload) for event_id, payload in rows)
    return there


def insert(connection: sqlite3.Connection, group: str, claims: Iterable[tuple[Claim, bytes]]) -> int:
    """Inserts them, but those that are there already; how many are new. Raises sqlite3.Error."""
    now_ms = epoch_ms()
    # Sorted: neighbours share pages.
    rows = [(group, handler, event_id, run, now_ms, payload) for (handler, event_id, run), payload in sorted(claims)]
    return max(0, connection.executemany(_INSERT, rows).rowcount)


def _schema_version(connection: sqlite3.Connection) -> int:
    """The version the file was written with; 0 for a file without choreo's tables."""
    with closing(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'choreo_schema'")) as rows:
        if rows.fetchone() is None:
            return 0
    (version,) = connection.execute("SELECT max(version) FROM choreo_schema").fetchone()
    return 0 if version is None else int(version)


def _statements(sql: str) -> Iterator[str]:
    """One by one: executescript() would commit what is under way."""
    statement = ""
    for part in sql.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
