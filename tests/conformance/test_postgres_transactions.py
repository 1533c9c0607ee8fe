"""Do PostgreSQL's transactions do what their port promises: on plain connections, on async ones, and on a pool's?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from choreo.storage.postgres import PostgresStore
from choreo.testing.transaction_conformance import Ground, TransactionConformance
from tests.support.postgres import PostgresServer


class PostgresGround:
    """See `Ground`."""

    def __init__(self, postgres: PostgresServer, connection: type, *, database: str = "", pool: Any = None) -> None:
        self.connection = connection
        self._postgres = postgres
        self._database = database or postgres.new_database()
        self.conninfo = postgres.conninfo(self._database)
        self._pool = pool
        PostgresStore(self.conninfo).apply_schema()
        postgres.execute("CREATE TABLE entries (text text)", database=self._database)

    def store(self) -> PostgresStore:
        return PostgresStore(self.conninfo if self._pool is None else self._pool)

    def write(self, connection: Any, text: str) -> Any:
        return connection.execute("INSERT INTO entries VALUES (%s)", [text])

    def read(self, connection: Any) -> Any:
        return self._read(connection) if isinstance(connection, psycopg.AsyncConnection) else _texts(_cursor(connection, _READ).fetchall())

    async def _read(self, connection: psycopg.AsyncConnection[Any]) -> list[str]:
        return _texts(await (await _cursor(connection, _READ)).fetchall())

    def fail(self, connection: Any) -> Any:
        return connection.execute("INSERT INTO entries VALUES (1 / 0)")

    def endings(self, connection: Any) -> Sequence[Callable[[], Any]]:
        texts: list[Any] = [
            "COMMIT",
            "  commit ;",
            "INSERT INTO entries VALUES ('x'); COMMIT",
            "/* a ; */ -- b\nROLLBACK",
            "rollback work",
            b"END",
            "ABORT",
            "BEGIN",
            "start transaction isolation level serializable",
            "select ';'; $a$ commit $a$; commit",
            "prepare transaction 'x'",
            "RELEASE SAVEPOINT choreo_delivery",
            'ROLLBACK TO "choreo_delivery"',
            "DISCARD ALL",
            sql.SQL("COMMIT"),
            sql.SQL("{}").format(sql.SQL("rollback")),
        ]
        calls = [
            connection.commit,
            connection.rollback,
            connection.close,
            partial(connection.tpc_begin, "x"),
            partial(connection.set_autocommit, False),
            partial(setattr, connection, "autocommit", False),
            partial(setattr, connection, "isolation_level", None),
            partial(self._entered, connection),
            partial(_cursor_made, connection, "COMMIT"),
            partial(_cursor_many, connection, "COMMIT"),
        ]
        return [*calls, *(partial(connection.execute, text) for text in texts)]

    def _entered(self, connection: Any) -> Any:
        if isinstance(connection, psycopg.AsyncConnection):
            return connection.__aenter__()
        with connection:
            return None

    def entries(self) -> list[str]:
        return [text for (text,) in self._postgres.execute('SELECT text FROM entries ORDER BY text COLLATE "C"', database=self._database)]


_READ = "SELECT text FROM entries ORDER BY text"


def _cursor(connection: Any, text: str) -> Any:
    return connection.execute(text)


def _cursor_made(connection: Any, text: str) -> Any:
    return connection.cursor().execute(text)


def _cursor_many(connection: Any, text: str) -> Any:
    return connection.cursor().executemany(text, [()])


def _texts(rows: Sequence[Any]) -> list[str]:
    return [row["text"] if isinstance(row, dict) else row[0] for row in rows]


class TestPlainConnections(TransactionConformance):
    @pytest.fixture
    def ground(self, postgres: PostgresServer) -> Ground:
        return PostgresGround(postgres, psycopg.Connection)


class TestAsyncConnections(TransactionConformance):
    @pytest.fixture
    def ground(self, postgres: PostgresServer) -> Ground:
        return PostgresGround(postgres, psycopg.AsyncConnection)


class TestConnectionsOfAPool(TransactionConformance):
    """The pool's connections read rows as dicts and are not in autocommit: that is the pool's affair."""

    @pytest.fixture
    def ground(self, postgres: PostgresServer) -> Iterator[Ground]:
        database = postgres.new_database()
        with ConnectionPool(postgres.conninfo(database), min_size=2, max_size=16, kwargs={"row_factory": dict_row}, open=True) as pool:
            yield PostgresGround(postgres, psycopg.Connection, database=database, pool=pool)
