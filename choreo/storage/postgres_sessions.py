"""How do the statements of the PostgreSQL store run? In transactions of their own that wait for no lock for long, with errors that
say what to do.

Imported when a PostgresStore is made, for it needs psycopg. Statements are never prepared and settings last one transaction,
so that a pooler between (PgBouncer in transaction mode) changes nothing; how the user's pool reads rows doesn't matter either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from choreo.errors import StoreError
from choreo.storage.postgres_connections import Connection, Connections, OwnConnection, PooledConnections
from choreo.storage.postgres_errors import explain, is_lost

_R = TypeVar("_R")
Row = tuple[Any, ...]
Statement = tuple[str, Sequence[object]]
"""SQL and what stands for its ``%b`` and ``%s``."""
InDoubt = Callable[[int, list[list[Row]]], object]
Execute = Callable[..., list[Row]]
"""``execute(sql, parameters)``; without parameters the text may be several statements."""

_IDLE_S = 5.0
"""A member that is stopped in the middle of a transaction keeps its locks so much longer than others wait for them."""
# Read committed: who waited for another member's claim then sees it.
_BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
# What COMMIT answered must outlive the server's end; settings that promise more than `on` stay as they are.
_SETTINGS = (
    "SELECT (extract(epoch FROM now()) * 1000000)::bigint, set_config('lock_timeout', '{}ms', true),"
    " set_config('idle_in_transaction_session_timeout', '{}ms', true),"
    " CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END"
)


class _LostError(StoreError):
    """There was no connection, or none any more, before COMMIT was sent."""


class Sessions:
    """Owner: the store's thread. `schema` is only named in messages. Every method raises StoreError."""

    def __init__(self, database: object, *, schema: str, lock_timeout_s: float) -> None:
        self._connections: Connections = OwnConnection(database) if isinstance(database, str) else PooledConnections(database)
        self._schema = schema
        self._settings = _SETTINGS.format(*(max(1, round(seconds * 1000)) for seconds in (lock_timeout_s, lock_timeout_s + _IDLE_S)))

    def describe(self) -> str:
        return f"PostgreSQL {self._connections.place}, schema {self._schema}"

    def name(self, application: str) -> None:
        """What the server calls a connection of our own."""
        if isinstance(self._connections, OwnConnection):
            self._connections.name(application)

    def read(self, doing: str, statement: Statement) -> list[Row]:
        """What one statement gives, in one round trip. Where the connection had been closed while nobody used it, on another one."""

        def read() -> list[Row]:
            with self._borrowed(doing) as connection:
                with connection.pipeline():
                    _execute(connection, _BEGIN)
                    _execute(connection, self._settings)
                    cursor = _execute(connection, *statement, binary=True)
                    _execute(connection, "COMMIT")
                return cursor.fetchall()

        return self._once_more_if_stale(read)

    def write(
        self,
        doing: str,
        statements: Sequence[Statement],
        *,
        before_commit: Callable[[], object] = lambda: None,
        in_doubt: InDoubt = lambda at_us, found: None,
    ) -> list[list[Row]]:
        """What each statement gives, all in one transaction; as `read` otherwise. When this raises nothing was written; but where
        COMMIT was sent and not answered nobody knows, and `in_doubt` is told the now() of all that was written (epoch
        microseconds), and what the statements gave."""

        def write() -> list[list[Row]]:
            with self._borrowed(doing) as connection:
                # No pipeline: psycopg ends one with a Flush, at which PostgreSQL forgets to watch for idle transactions (seen).
                at_us = self._begin(connection)
                found = [_rows(_execute(connection, *statement, binary=True)) for statement in statements]
                before_commit()
                try:
                    _execute(connection, "COMMIT")
                except psycopg.Error as error:
                    if not connection.closed:
                        raise
                    in_doubt(at_us, found)
                    told = explain(error, self.describe(), f"{doing}: COMMIT was sent and not answered", self._schema)
                    raise StoreError(str(told), retriable=True) from error
            return found

        return self._once_more_if_stale(write)

    @contextmanager
    def transaction(self, doing: str) -> Iterator[Execute]:
        """Several statements in one transaction. Any exception rolls back."""
        with self._borrowed(doing) as connection:
            self._begin(connection)
            yield lambda sql, parameters=None: _rows(_execute(connection, sql, parameters))
            _execute(connection, "COMMIT")

    def _begin(self, connection: Connection) -> int:
        """The transaction's now(), in epoch microseconds."""
        cursor = _execute(connection, f"{_BEGIN}; {self._settings}")
        cursor.nextset()
        ((at_us, *_),) = cursor.fetchall()
        return int(at_us)

    def _once_more_if_stale(self, attempt: Callable[[], _R]) -> _R:
        again = self._connections.may_be_stale()
        try:
            return attempt()
        except _LostError:
            if not again:
                raise
        return attempt()

    @contextmanager
    def _borrowed(self, doing: str) -> Iterator[Connection]:
        with self._explained(doing), self._connections.borrow() as connection, _rolled_back(connection):
            yield connection

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            told = explain(error, self.describe(), doing, self._schema)
            raise (_LostError(str(told), retriable=told.retriable) if is_lost(error) else told) from error

    def close(self) -> None:
        """Closes a connection of our own, never a pool. A second call does nothing."""
        self._connections.close()


@contextmanager
def _rolled_back(connection: Connection) -> Iterator[None]:
    """Leaves the connection idle, whatever comes; one to a server that can't write is closed, for the next may find one that can."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
            connection.close()
        # What went wrong first is what is told.
        with suppress(psycopg.Error):
            if connection.info.transaction_status != TransactionStatus.IDLE:
                _execute(connection, "ROLLBACK")
        raise


def _execute(connection: Connection, sql: str, parameters: Sequence[object] | None = None, *, binary: bool = False) -> psycopg.Cursor[Row]:
    # A cursor of our own making: the pool's may read rows as it likes.
    return psycopg.Cursor(connection, row_factory=tuple_row).execute(sql.encode(), parameters, prepare=False, binary=binary)


def _rows(cursor: psycopg.Cursor[Row]) -> list[Row]:
    return cursor.fetchall() if cursor.description else []
