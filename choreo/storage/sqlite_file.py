"""One SQLite file: how is it opened, who may write to it now, and what do its errors mean?

WAL and synchronous=FULL: with NORMAL a power cut may lose the last commits, whose offsets Kafka has already.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from choreo.errors import StoreError, TransactionLostError

_C = TypeVar("_C", bound=sqlite3.Connection)
CACHE_KIB = 16_384

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

_LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_writers: dict[Path, threading.Lock] = {}
_writers_lock = threading.Lock()


def _forget_writers() -> None:
    """In a forked process: the threads that held them are not there."""
    global _writers_lock
    _writers_lock = threading.Lock()
    _writers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_writers)


class SqliteFile:
    """See the module. Its methods may be called by several threads; opens nothing by itself."""

    def __init__(self, path: str | os.PathLike[str], busy_timeout_s: float) -> None:
        self._shown = os.fspath(path)
        self.path = Path(path).absolute()
        self.busy_timeout_s = busy_timeout_s
        self._id = (0, 0)

    def describe(self) -> str:
        return f"SQLite {self._shown}"

    def make_folder(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self.describe()}: its folder can't be made: {error}; choose another path", retriable=False) from error

    def connect(self, kind: type[_C]) -> _C:
        """A connection in autocommit, for any thread, one at a time. Raises StoreError."""
        with self.explained("opening"):
            connection = sqlite3.connect(
                self.path, timeout=self.busy_timeout_s, isolation_level=None, check_same_thread=False, factory=kind
            )
        try:
            with self.explained("opening"):
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                if mode != "wal":
                    raise StoreError(
                        f"{self.describe()}: journal mode is {mode} and can't be WAL, as on a network file system; choose a local path",
                        retriable=False,
                    )
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        except BaseException:
            connection.close()
            raise
        return connection

    # ---- is it still there? -----------------------------------------------------------------------------------------

    def note(self) -> None:
        """This is the file that is meant from now on."""
        self._id = self._now()

    @property
    def noted(self) -> bool:
        return self._id != (0, 0)

    def check(self) -> None:
        """SQLite goes on writing to a file that was deleted or replaced: what it writes there would be gone with this process. Nothing is
        known of a file before `note`."""
        if self.noted and self._now() != self._id:
            raise StoreError(
                f"{self.describe()}: the file was moved, deleted or replaced while it was open; put it back if you can, then restart",
                retriable=False,
            )

    def _now(self) -> tuple[int, int]:
        with suppress(FileNotFoundError):
            status = self.path.stat()
            return status.st_dev, status.st_ino
        return (0, 0)

    # ---- who writes -------------------------------------------------------------------------------------------------

    def writer(self) -> threading.Lock:
        """Held by the one of this process that writes: SQLite's own waiting polls, and is unfair."""
        with _writers_lock:
            return _writers.setdefault(self._resolved, threading.Lock())

    @cached_property
    def _resolved(self) -> Path:
        return self.path.resolve()

    @contextmanager
    def writing(self, connection: sqlite3.Connection, doing: str) -> Iterator[None]:
        """BEGIN IMMEDIATE ... COMMIT, which takes the write lock at its start and so never waits in its middle; any exception rolls
        back. Raises StoreError."""
        lock = self.writer()
        if not lock.acquire(timeout=self.busy_timeout_s):
            raise StoreError(f"{self.describe()}: {doing}: database is locked by another thread of this process; choreo tries again")
        try:
            with self.explained(doing), _transaction(connection):
                yield
        finally:
            lock.release()

    # ---- errors -----------------------------------------------------------------------------------------------------

    @contextmanager
    def explained(self, doing: str, *, lost: bool = False) -> Iterator[None]:
        """Turns SQLite's errors into StoreErrors; with `lost` one that is locked is a TransactionLostError."""
        try:
            yield
        except sqlite3.Error as error:
            raise self.explain(error, doing, lost=lost) from error

    def explain(self, error: sqlite3.Error, doing: str, *, lost: bool = False) -> StoreError:
        code = primary_code(error)
        advice = _WAITING_HELPS.get(code) or _SOMEBODY_MUST_ACT.get(code) or "this is no error choreo knows; look at the file"
        message = f"{self.describe()}: {doing}: {error}; {advice}"
        if lost and code in _LOCKED:
            return TransactionLostError(message, reason="lock")
        return StoreError(message, retriable=code in _WAITING_HELPS)


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where the error is the module's own."""
    return int(getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_the_files(error: sqlite3.Error) -> bool:
    """Whether it is the file's or the disk's fault, and not that of the statement. (A virtual table says CORRUPT_VTAB of its own content:
    full-text search does when it is told to delete another text than the one that is there.)"""
    code = primary_code(error)
    ours = code in _WAITING_HELPS or code in _SOMEBODY_MUST_ACT
    return ours and code not in _LOCKED and getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_CORRUPT_VTAB


def epoch_ms() -> int:
    """The time of this host, which all processes on the file share."""
    return time.time_ns() // 1_000_000


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
