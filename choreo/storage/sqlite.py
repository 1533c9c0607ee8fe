"""Claims in a SQLite file: each event once on this host.

WAL and synchronous=FULL: with NORMAL a power cut may lose the last commits, whose offsets Kafka has already. A claim is
written in a transaction that takes the write lock at its start (BEGIN IMMEDIATE), so that it never waits for a lock in
its middle. Other processes may share the file; they wait for each other up to `busy_timeout_s`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from choreo import failpoint
from choreo.errors import StoreError
from choreo.storage.schema import migrations, still_to_run
from choreo.store import Claim

_MIGRATIONS = migrations("sqlite")
SCHEMA_VERSION = _MIGRATIONS[-1].version
_INSERT = "INSERT OR IGNORE INTO choreo_claims VALUES (?, ?, ?, ?, ?, ?)"
_DELETE = (
    "DELETE FROM choreo_claims WHERE (consumer_group, handler, event_id, run) IN (SELECT consumer_group, handler, event_id, run"
    " FROM choreo_claims WHERE consumer_group = ? AND claimed_at_ms <= ? ORDER BY claimed_at_ms LIMIT ?)"
)
# One statement text a size: a full chunk's is parsed once and then comes from sqlite3's statement cache.
_CHUNK_IDS = 500
_CACHE_KIB = 16_384

# By SQLite's primary result code: may waiting help, what is the matter, what to do (https://sqlite.org/rescode.html).
_WAITING_HELPS = {
    sqlite3.SQLITE_BUSY: "another process holds its lock; choreo tries again; find the process if this goes on: fuser -v",
    sqlite3.SQLITE_LOCKED: "another process holds its lock; choreo tries again; find the process if this goes on: fuser -v",
    sqlite3.SQLITE_FULL: "the disk is full; make room, choreo tries again",
    sqlite3.SQLITE_IOERR: "the disk failed to read or write; look at the disk and its quota (dmesg, df), choreo tries again",
    sqlite3.SQLITE_NOMEM: "no memory left; choreo tries again",
    sqlite3.SQLITE_PROTOCOL: "another process is just opening it; choreo tries again",
}
_SOMEBODY_MUST_ACT = {
    sqlite3.SQLITE_READONLY: "it can't be written; give this user write access to the file and its folder",
    sqlite3.SQLITE_PERM: "access is denied; give this user write access to the file and its folder",
    sqlite3.SQLITE_CANTOPEN: "it can't be opened; it must be a file (not a folder) that this user may write",
    sqlite3.SQLITE_CORRUPT: "it is damaged; move it away and restore a backup, or start without: events redelivered now run again",
    sqlite3.SQLITE_NOTADB: "it is no SQLite database; move it away, or choose another path",
}


class SqliteStore:
    """See `choreo.store.Store`. ``SqliteStore(".choreo/payments.db")``; missing folders are made, `open` does the I/O."""

    def __init__(self, path: str | os.PathLike[str], *, busy_timeout_s: float = 5.0) -> None:
        self._shown = os.fspath(path)
        self._path = Path(path).absolute()
        self._busy_timeout_s = busy_timeout_s
        self._group = ""
        self._connection: sqlite3.Connection | None = None
        self._file_id = (0, 0)

    def open(self, group: str) -> None:
        if self._connection is not None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.describe()}: its folder can't be made: {error}; choose another path", retriable=False) from error
        with self._explained("opening"):
            connection = sqlite3.connect(self._path, timeout=self._busy_timeout_s, isolation_level=None, check_same_thread=False)
        try:
            with self._explained("opening"):
                self._set_up(connection)
                self._file_id = self._file_now()
        except BaseException:
            connection.close()
            raise
        self._group = group
        self._connection = connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{self.describe()}: journal mode is {mode} and can't be WAL, as on a network file system; choose a local path",
                retriable=False,
            )
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        with _transaction(connection):
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
        with self._explained("looking claims up"):
            return set(self._found(self._ready(), claims))

    def payloads(self, claims: Collection[Claim]) -> dict[Claim, bytes]:
        with self._explained("looking payloads up"):
            return self._found(self._ready(), claims)

    def claim(self, claims: Sequence[Claim], payloads: Sequence[bytes] = ()) -> set[Claim]:
        connection = self._ready()
        if not claims:
            return set()
        if failpoint.ACTIVE:
            failpoint.hit("before_store_tx")
        with self._explained("writing claims"):
            with _transaction(connection):
                self._check_file()
                already = set(self._found(connection, claims))
                self._insert(connection, zip(claims, payloads or [b""] * len(claims), strict=True), already)
                if failpoint.ACTIVE:
                    failpoint.hit("in_store_tx")
        if failpoint.ACTIVE:
            failpoint.hit("after_store_commit")
        return already

    def _found(self, connection: sqlite3.Connection, claims: Iterable[Claim]) -> dict[Claim, bytes]:
        wanted: dict[tuple[str, str], list[str]] = {}
        for handler, event_id, run in claims:
            wanted.setdefault((handler, run), []).append(event_id)
        found: dict[Claim, bytes] = {}
        for (handler, run), ids in wanted.items():
            for at in range(0, len(ids), _CHUNK_IDS):
                chunk = ids[at : at + _CHUNK_IDS]
                # CROSS JOIN keeps the order of the loops: for each id one search in the key, never a scan of the claims.
                sql = (
                    f"WITH wanted(id) AS (VALUES {','.join(['(?)'] * len(chunk))}) SELECT id, payload FROM wanted CROSS JOIN choreo_claims"  # noqa: S608
                    " WHERE consumer_group = ? AND handler = ? AND event_id = id AND run = ?"
                )
                rows = connection.execute(sql, (*chunk, self._group, handler, run))
                found.update((Claim(handler, event_id, run), payload) for event_id, payload in rows)
        return found

    def _insert(self, connection: sqlite3.Connection, claims: Iterable[tuple[Claim, bytes]], already: set[Claim]) -> None:
        now_ms = time.time_ns() // 1_000_000
        # Sorted: neighbours share pages.
        new = sorted((claim, payload) for claim, payload in claims if claim not in already)
        rows = [(self._group, handler, event_id, run, now_ms, payload) for (handler, event_id, run), payload in new]
        connection.executemany(_INSERT, rows)

    def delete_older(self, age_s: float, limit: int) -> int:
        connection = self._ready()
        with self._explained("deleting old claims"):
            with _transaction(connection):
                self._check_file()
                made_by_ms = time.time_ns() // 1_000_000 - round(age_s * 1000)
                return connection.execute(_DELETE, (self._group, made_by_ms, limit)).rowcount

    def describe(self) -> str:
        return f"SQLite {self._shown}"

    def close(self) -> None:
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        with self._explained("closing"):
            connection.close()

    def _ready(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreError(f"{self.describe()}: not open; call open(group) first, and not after close()", retriable=False)
        return self._connection

    def _file_now(self) -> tuple[int, int]:
        with suppress(FileNotFoundError):
            status = self._path.stat()
            return status.st_dev, status.st_ino
        return (0, 0)

    def _check_file(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced: those claims would be gone with this process."""
        if self._file_now() != self._file_id:
            raise StoreError(
                f"{self.describe()}: the file was moved, deleted or replaced while it was open; put it back if you can, then restart",
                retriable=False,
            )

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turns SQLite's errors into StoreErrors."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explain(error, doing) from error

    def _explain(self, error: sqlite3.Error, doing: str) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        advice = _WAITING_HELPS.get(code) or _SOMEBODY_MUST_ACT.get(code) or "this is no error choreo knows; look at the file"
        return StoreError(f"{self.describe()}: {doing}: {error}; {advice}", retriable=code in _WAITING_HELPS)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """BEGIN IMMEDIATE ... COMMIT; any exception rolls back."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk or a damaged file may have rolled back already; what went wrong first is what is told.
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


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
