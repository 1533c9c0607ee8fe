"""Which connections do handlers write on? A few of choreo's own, plain or async, or those of the user's pool, each lent for one transaction.

Imported when a PostgresStore is made, for it needs psycopg.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from choreo.storage.postgres_connections import parameters
from choreo.storage.postgres_guard import Manners

Row = tuple[Any, ...]
OWN = 4
"""So many connections of its own for each kind; each is made when it is first needed."""


REST_S = 1.0


class Link:
    """One connection while a transaction has it; `run` suspends on an async one only."""

    def __init__(self, connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        self.connection = connection
        self.manners = Manners(connection)

    async def run(self, text: str, parameters: Sequence[object] | None = None) -> tuple[list[Row], str]:
        """What the last statement of `text` gives, and what the server says of it: ``COMMIT``. Never prepared. Raises psycopg.Error."""
        query = text.encode()
        cursor: psycopg.Cursor[Row] | psycopg.AsyncCursor[Row]
        # Cursors of our own making: those of the connection are the handlers'.
        if isinstance(self.connection, psycopg.AsyncConnection):
            cursor = psycopg.AsyncCursor(self.connection, row_factory=tuple_row)
            await cursor.execute(query, parameters, prepare=False, binary=parameters is not None)
            while cursor.nextset():
                pass
            rows = await cursor.fetchall() if cursor.description else []
        else:
            cursor = psycopg.Cursor(self.connection, row_factory=tuple_row)
            cursor.execute(query, parameters, prepare=False, binary=parameters is not None)
            while cursor.nextset():
                pass
            rows = cursor.fetchall() if cursor.description else []
        return rows, cursor.statusmessage or ""

    @property
    def status(self) -> TransactionStatus:
        return self.connection.info.transaction_status

    async def come_to_rest(self) -> None:
        """Waits a moment for what a handler left running: an async iterator that it did not read to its end is closed by the loop, later."""
        if self.status is TransactionStatus.ACTIVE and isinstance(self.connection, psycopg.AsyncConnection):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.connection.lock.acquire(), REST_S)
                self.connection.lock.release()

    def cut(self) -> None:
        """Closes the connection at once, without a word to the server."""
        self.connection.pgconn.finish()


class Links(Protocol):
    """Lends connections: idle, and in autocommit."""

    most: int
    blocking: bool

    async def take(self, *, new: bool = False) -> tuple[Link, bool]:
        """One that nobody has, and whether it was made before, so that the other side may have closed it since. Raises psycopg.Error."""

    def give(self, link: Link) -> None:
        """Back from a transaction; one that is not idle, or closed, is thrown away."""

    async def close(self) -> None:
        """Closes what is its own."""


class OwnLinks:
    """See `Links`. Made by a conninfo; as many as are taken at once, which is `most` in the runtime. `name`: what pg_stat_activity calls
    them."""

    def __init__(self, conninfo: str, name: Callable[[], str], *, blocking: bool) -> None:
        self._given = parameters(conninfo)
        self._name = name
        self.blocking = blocking
        self.most = OWN
        self._free: list[Link] = []
        self._lock = threading.Lock()
        self._closed = False

    async def take(self, *, new: bool = False) -> tuple[Link, bool]:
        with self._lock:
            if new:
                # The server went away since: none of them is better.
                stale, self._free = self._free, []
                for link in stale:
                    link.cut()
            if self._free:
                return self._free.pop(), True
        named = {**self._given, "fallback_application_name": self._name()}
        # Not prepared: a pooler between (PgBouncer in transaction mode) would not know the statements.
        if self.blocking:
            return Link(psycopg.connect(**named, autocommit=True, prepare_threshold=None)), False
        return Link(await psycopg.AsyncConnection.connect(**named, autocommit=True, prepare_threshold=None)), False

    def give(self, link: Link) -> None:
        with self._lock:
            if link.status is TransactionStatus.IDLE and not self._closed:
                link.manners.restore()
                self._free.append(link)
            else:
                link.cut()

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for link in free:
            if isinstance(link.connection, psycopg.AsyncConnection):
                await link.connection.close()
            else:
                link.connection.close()


class PoolLinks:
    """See `Links`. Connections of the user's psycopg_pool.ConnectionPool, which is never opened or closed here."""

    blocking = True

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self.most = max(1, min(OWN, pool.max_size - 1))
        self._was: dict[Link, bool] = {}

    async def take(self, *, new: bool = False) -> tuple[Link, bool]:
        connection = self._pool.getconn()
        try:
            was = connection.autocommit
            connection.autocommit = True
            link = Link(connection)
        except BaseException:
            self._pool.putconn(connection)
            raise
        self._was[link] = was
        return link, not new

    def give(self, link: Link) -> None:
        was = self._was.pop(link)
        if link.status is TransactionStatus.IDLE:
            link.manners.restore()
            link.connection.autocommit = was
        else:
            link.cut()
        self._pool.putconn(link.connection)

    async def close(self) -> None:
        """Nothing is its own."""
