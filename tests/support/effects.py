"""What did the handlers do? A ledger in one SQLite file that handlers of all worker processes write to.

A row is on file when `record` returns: it survives kill -9 of its process (not a power cut; synchronous is off). The rows'
order is the order of their commits, over all processes. Each row carries the running sum of its handler and key.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.history import Call, Effect
from tests.support.waiting import wait_for

# Longer than any SIGSTOP of a test: a process may be stopped while it holds the file's lock.
BUSY_S = 120.0

_SCHEMA = """
create table if not exists effects (
    id integer primary key autoincrement,
    handler text not null, event_id text not null, key text not null, amount integer not null,
    running_sum integer not null, at_s real not null, pid integer not null, epoch text not null
);
create index if not exists effects_by_key on effects (handler, key, id);
create table if not exists calls (
    id integer primary key autoincrement,
    handler text not null, event_id text not null, pid integer not null, began_s real not null, ended_s real
);
"""

_RECORD = """
insert into effects (handler, event_id, key, amount, running_sum, at_s, pid, epoch)
values (:handler, :event_id, :key, :amount,
        :amount + coalesce((select running_sum from effects where handler = :handler and key = :key order by id desc limit 1), 0),
        :at_s, :pid, :epoch)
"""


class EffectsLedger:
    """The ledger at `path`, made when it isn't there. Owns one connection a process, opened at the first call; thread-safe.

    >>> ledger = EffectsLedger(Path(os.environ["CHOREO_TEST_LEDGER"]))          # in a worker's handler
    >>> with ledger.call("book", context.event_id):
    ...     ledger.record("book", context.event_id, key, amount)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._open: tuple[int, sqlite3.Connection] | None = None

    # ---- written by handlers ----------------------------------------------------------------------------------------

    def record(self, handler: str, event_id: str, key: str, amount: int, pid: int | None = None, *, epoch: str = "") -> None:
        """One effect. On file when it returns."""
        row = {
            "handler": handler,
            "event_id": event_id,
            "key": key,
            "amount": amount,
            "at_s": time.monotonic(),
            "pid": os.getpid() if pid is None else pid,
            "epoch": epoch,
        }
        with self._connection() as connection:
            connection.execute(_RECORD, row)

    @contextmanager
    def call(self, handler: str, event_id: str) -> Iterator[None]:
        """One call of a handler, from here to the end of the block, however the block ends; a killed process leaves it open."""
        with self._connection() as connection:
            began = connection.execute(
                "insert into calls (handler, event_id, pid, began_s) values (?, ?, ?, ?)",
                (handler, event_id, os.getpid(), time.monotonic()),
            ).lastrowid
        try:
            yield
        finally:
            with self._connection() as connection:
                connection.execute("update calls set ended_s = ? where id = ?", (time.monotonic(), began))

    # ---- read by tests ----------------------------------------------------------------------------------------------

    def effects(self) -> list[Effect]:
        """All of them, in the order of their commits."""
        columns = "handler, event_id, key, amount, running_sum, at_s, pid, epoch"
        with self._connection() as connection:
            return [Effect(*row) for row in connection.execute(f"select {columns} from effects order by id")]

    def calls(self) -> list[Call]:
        """All of them, in the order they began."""
        with self._connection() as connection:
            return [Call(*row) for row in connection.execute("select handler, event_id, pid, began_s, ended_s from calls order by id")]

    def unfinished(self) -> frozenset[tuple[str, str]]:
        """(handler, event id) of calls that never ended: what was inside a handler when its process was killed, or still is."""
        return frozenset((call.handler, call.event_id) for call in self.calls() if call.ended_s is None)

    def count(self) -> int:
        """How many effects there are."""
        with self._connection() as connection:
            found: int = connection.execute("select count(*) from effects").fetchone()[0]
            return found

    def wait_for(self, count: int, *, deadline_s: float) -> None:
        """Returns when there are `count` effects or more."""
        wait_for(lambda: self.count() >= count, f"{count} effects in {self.path.name}", deadline_s=deadline_s, every_s=0.02)

    def close(self) -> None:
        """Closes this process's connection; the next call opens one again."""
        with self._lock:
            if self._open is not None and self._open[0] == os.getpid():
                self._open[1].close()
            self._open = None

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """This process's connection, in a transaction of its own that commits at the end of the block."""
        with self._lock:
            if self._open is None or self._open[0] != os.getpid():
                self._open = (os.getpid(), self._connect())
            connection = self._open[1]
            connection.execute("begin immediate")
            try:
                yield connection
            except BaseException:
                connection.execute("rollback")
                raise
            connection.execute("commit")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = off")
        connection.executescript(_SCHEMA)
        return connection
