"""A shop whose handlers write in their own database: in a SQLite file, on plain and on async connections of PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import psycopg

from choreo.envelope import ID, Envelope
from choreo.handler import Context, Emits, Handler
from choreo.record import Record
from choreo.storage.postgres import PostgresStore
from choreo.storage.sqlite import SqliteStore
from choreo.store import OutboxRow
from choreo.testing import MemoryBroker
from tests.runtime.shop import ONCE, SHOP, Paid, Placed
from tests.support.postgres import PostgresServer

Answer = Callable[[Placed], Emits]


def paid(order: Placed) -> Emits:
    return Paid(order_id=order.order_id)


class Books:
    """Writes the order's id into ``books``, and emits what it was told."""

    def __init__(self, answer: Answer = paid) -> None:
        self.answer = answer


class BookInSqlite(Books, Handler[Placed, sqlite3.Connection]):
    name = "book"
    emits = (Paid,)
    retry = ONCE

    def handle(self, event: Envelope[Placed], context: Context[sqlite3.Connection]) -> Any:
        context.transaction.execute("INSERT INTO books VALUES (?)", [event.payload.order_id])
        return self.answer(event.payload)


class BookInPostgres(Books, Handler[Placed, psycopg.AsyncConnection[Any]]):
    name = "book"
    emits = (Paid,)
    retry = ONCE

    async def handle(self, event: Envelope[Placed], context: Context[psycopg.AsyncConnection[Any]]) -> Any:
        await context.transaction.execute("INSERT INTO books VALUES (%s)", [event.payload.order_id])
        return self.answer(event.payload)


class BookInPostgresPlainly(Books, Handler[Placed, psycopg.Connection[Any]]):
    name = "book"
    emits = (Paid,)
    retry = ONCE

    def handle(self, event: Envelope[Placed], context: Context[psycopg.Connection[Any]]) -> Any:
        context.transaction.execute("INSERT INTO books VALUES (%s)", [event.payload.order_id])
        return self.answer(event.payload)


class Desk(Protocol):
    """The database of one shop."""

    def store(self) -> Any: ...

    def handler(self, answer: Answer = paid) -> Handler[Placed, Any]: ...

    def connect(self) -> Any:
        """A connection of the caller's own, not in autocommit."""

    def books(self) -> list[str]:
        """The orders that are written and committed."""


class SqliteDesk:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "shop.db"
        store = self.store()
        store.open(SHOP)
        store.close()
        with closing(self.connect()) as connection:
            connection.execute("CREATE TABLE books (id text)")

    def store(self) -> SqliteStore:
        return SqliteStore(self.path)

    def handler(self, answer: Answer = paid) -> Handler[Placed, Any]:
        return BookInSqlite(answer)

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=20)

    def books(self) -> list[str]:
        with closing(self.connect()) as connection:
            return [text for (text,) in connection.execute("SELECT id FROM books ORDER BY id")]


class PostgresDesk:
    def __init__(self, postgres: PostgresServer, *, plain: bool = False) -> None:
        self._database = postgres.new_database()
        self._postgres = postgres
        self.conninfo = postgres.conninfo(self._database)
        self._plain = plain
        self.store().apply_schema()
        postgres.execute("CREATE TABLE books (id text)", database=self._database)

    def store(self) -> PostgresStore:
        return PostgresStore(self.conninfo)

    def handler(self, answer: Answer = paid) -> Handler[Placed, Any]:
        return BookInPostgresPlainly(answer) if self._plain else BookInPostgres(answer)

    def connect(self) -> psycopg.Connection[Any]:
        return psycopg.connect(self.conninfo)

    def books(self) -> list[str]:
        return [text for (text,) in self._postgres.execute("SELECT id FROM books ORDER BY id", database=self._database)]


def add(desk: Desk, rows: Sequence[OutboxRow]) -> None:
    """Commits rows as another process would."""
    with closing(desk.connect()) as connection:
        desk.store().add(connection, SHOP, rows)
        connection.commit()


def header(record: Record, name: str) -> str | None:
    value = dict(record.headers).get(name)
    return None if value is None else value.decode()


def published(broker: MemoryBroker, topic: str = "answers") -> list[str]:
    """The ids of the events on a topic, those of one partition in order."""
    return [header(record, ID) or "" for record in broker.records(topic)]
