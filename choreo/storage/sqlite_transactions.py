"""How does a burst's transaction run on a SQLite file? One BEGIN IMMEDIATE, a savepoint a delivery, the rows of its events, its claims, COMMIT.

A file has one writer at a time. So the transaction begins with the first statement of a handler, and not before: claims are looked up
outside of it, and a handler that asks nobody holds nobody up.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from choreo import failpoint
from choreo.errors import HandlerError, StateError, StoreError, TransactionLostError, told
from choreo.storage.sqlite_file import SqliteFile, is_the_files
from choreo.storage.sqlite_guard import SAVEPOINT, Guard, Real, View
from choreo.storage.sqlite_outbox import insert_rows
from choreo.store import Claim, OutboxRow

LARGEST = 256

Found = Callable[[sqlite3.Connection, str, Collection[Claim]], Mapping[Claim, bytes]]
Insert = Callable[[sqlite3.Connection, str, Sequence[tuple[Claim, bytes]]], int]


class SqliteTransactions:
    """See `choreo.store.Transactions`. `group` is asked when a transaction begins; `found` and `insert` are the store's."""

    blocking = True
    most = 1
    largest = LARGEST

    def __init__(self, file: SqliteFile, group: Callable[[], str], found: Found, insert: Insert) -> None:
        self.file = file
        self._group = group
        self.found = found
        self.insert = insert
        self._free = threading.Lock()
        self._connection: Real | None = None

    async def begin(self, *, quiet_s: float) -> SqliteTransaction:
        """`quiet_s` is not needed: SQLite frees the locks of a process that ends, and of one that is stopped never."""
        group = self._group()
        if not self._free.acquire(timeout=self.file.busy_timeout_s):
            raise TransactionLostError(f"{self.file.describe()}: another transaction of this process holds its connection", reason="lock")
        try:
            if self._connection is None:
                self.file.check()  # else a file that was moved away would be made anew, empty
                self._connection = self.file.connect(Real)
                self._connection.prepare()
        except BaseException:
            self._free.release()
            raise
        return SqliteTransaction(self, self._connection, group)

    def give(self, connection: Real) -> None:
        """Back from a transaction; one that is still in it is thrown away."""
        try:
            if connection.in_transaction:
                self._connection = None
                connection.close()
        except sqlite3.Error:
            self._connection = None  # closed already, or it can't be: another one takes its place
        finally:
            self._free.release()

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class SqliteTransaction:
    """See `choreo.store.Transaction`."""

    def __init__(self, of: SqliteTransactions, connection: Real, group: str) -> None:
        self._of = of
        self._file = of.file
        self._connection = connection
        self._group = group
        self._guard: Guard | None = None
        self._writer: threading.Lock | None = None
        """The process's lock on the file, while it is held."""
        self._begun = False
        self._lost: StoreError | StateError | None = None
        """Why there is no transaction any more."""

    async def look_up(self, claims: Collection[Claim]) -> Mapping[Claim, bytes]:
        with self._file.explained("looking claims up", lost=True):
            return self._of.found(self._connection, self._group, claims)

    async def begin_delivery(self) -> Any:
        guard = self._guard = self._connection.guard = Guard(self._connection, self._enter)
        return View(self._connection, guard)

    def _enter(self) -> None:
        """Before the first statement of a delivery, and of one whose transaction is gone."""
        if not self._begun:
            self._begin()
        elif not self._connection.in_transaction:
            raise self._gone(self._guard, None)
        self._own(f"SAVEPOINT {SAVEPOINT}", "beginning a delivery")

    def _begin(self) -> None:
        if self._writer is None:
            writer = self._file.writer()
            if not writer.acquire(timeout=self._file.busy_timeout_s):
                raise TransactionLostError(f"{self._file.describe()}: database is locked by another thread of this process", reason="lock")
            self._writer = writer
        self._own("BEGIN IMMEDIATE", "beginning a transaction")
        self._begun = True

    async def keep(self) -> None:
        guard = self._over()
        if guard.lost is not None:
            raise guard.lost
        if guard.refused is not None:
            self._roll_back(guard, None)
            raise guard.refused
        if guard.entered:
            self._check(guard, None)
            self._own(f"RELEASE {SAVEPOINT}", "keeping what a handler wrote")

    async def undo(self, error: BaseException) -> None:
        guard = self._over()
        if guard.entered:
            self._check(guard, error)
        if guard.lost is not None:
            raise guard.lost
        # By what this connection said, and not by what was raised: a handler may have other files, whose trouble is its own. Nor is one
        # that is locked the file's: the transaction has the write lock, so the handler has locked itself out.
        if guard.failed is not None and is_the_files(guard.failed):
            raise self._file.explain(guard.failed, "in a handler") from error
        self._roll_back(guard, error)

    def _over(self) -> Guard:
        guard, self._guard, self._connection.guard = self._guard, None, None
        if guard is None:
            raise StateError("keep or undo without begin_delivery")
        guard.close()
        self._connection.row_factory, self._connection.text_factory = None, str
        return guard

    def _roll_back(self, guard: Guard, error: BaseException | None) -> None:
        if not guard.entered:
            return
        self._check(guard, error)
        self._own(f"ROLLBACK TO {SAVEPOINT}", "undoing a delivery")
        self._own(f"RELEASE {SAVEPOINT}", "undoing a delivery")

    def _own(self, sql: str, doing: str) -> None:
        try:
            self._connection.own(sql)
        except sqlite3.Error as error:
            if "no such savepoint" in str(error):
                raise self._ended_by_a_handler() from error
            raise self._file.explain(error, doing, lost=True) from error

    def _check(self, guard: Guard | None, error: BaseException | None) -> None:
        if not self._connection.in_transaction:
            raise self._gone(guard, error)

    def _gone(self, guard: Guard | None, error: BaseException | None) -> StoreError | StateError:
        """Why there is no transaction any more. SQLite rolls one back with an error of a statement only; who commits gets none."""
        if self._lost is None:
            self._lost = self._told_gone(None if guard is None else guard.failed, error)
        return self._lost

    def _told_gone(self, failed: sqlite3.Error | None, error: BaseException | None) -> StoreError | StateError:
        if failed is None and isinstance(error, sqlite3.Error):
            failed = error
        if failed is None:
            return self._ended_by_a_handler()
        if is_the_files(failed):
            lost = self._file.explain(failed, "in a handler")
        else:
            lost = TransactionLostError(
                f"{self._file.describe()}: a statement rolled the whole transaction back ({told(failed)}), as ON CONFLICT ROLLBACK and "
                "RAISE(ROLLBACK) do",
                reason="rolled-back",
            )
        lost.__cause__ = failed if error is None or isinstance(error, HandlerError | StoreError) else error
        return lost

    def _ended_by_a_handler(self) -> StateError:
        return StateError(
            f"{self._file.describe()}: a handler ended the transaction that it shares with others, past the guard of "
            "context.transaction; find the COMMIT or ROLLBACK in it, take it out, restart"
        )

    async def commit(self, claims: Sequence[Claim], payloads: Sequence[bytes], rows: Sequence[OutboxRow]) -> None:
        if not self._begun:
            self._begin()
        self._check(None, None)
        with self._file.explained("writing to the outbox", lost=True):
            insert_rows(self._connection, self._group, rows)
        with self._file.explained("writing claims", lost=True):
            new = self._of.insert(self._connection, self._group, list(zip(claims, payloads, strict=True)))
        if new != len(claims):
            raise TransactionLostError(
                f"{self._file.describe()}: another member has handled one of these events meanwhile", reason="claimed"
            )
        if failpoint.ACTIVE:
            failpoint.hit("in_store_tx")
        self._file.check()
        self._own("COMMIT", "committing")

    async def end(self) -> None:
        connection = self._connection
        try:
            if self._guard is not None:
                self._over()
            if connection.in_transaction:
                connection.own("ROLLBACK")
        except sqlite3.Error:
            pass  # it is thrown away: what it had not committed is gone with it
        finally:
            self._of.give(connection)
            if self._writer is not None:
                self._writer.release()
