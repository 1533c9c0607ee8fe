"""The databases that contenders write in: handlers with a real INSERT and one event a delivery, in bursts and one by one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.events import OrderPlaced, OrderSeen
from choreo import Context, Envelope, Handler, PostgresStore, SqliteStore

CONNINFO = "BENCH_POSTGRES"
"""The environment variable that names the PostgreSQL of the run; each contender has a schema of its own."""
_TABLE = "CREATE TABLE IF NOT EXISTS {} (order_id text NOT NULL, event_id text NOT NULL, total_cents bigint NOT NULL)"


class WriteInSqlite(Handler[OrderPlaced, sqlite3.Connection]):
    def handle(self, event: Envelope[OrderPlaced], context: Context[sqlite3.Connection]) -> OrderSeen:
        order = event.payload
        context.transaction.execute("INSERT INTO seen VALUES (?, ?, ?)", (order.order_id, context.event_id, order.total_cents))
        return OrderSeen(order_id=order.order_id)


class WriteInPostgres(Handler[OrderPlaced, psycopg.AsyncConnection[Any]]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context[psycopg.AsyncConnection[Any]]) -> OrderSeen:
        order = event.payload
        await context.transaction.execute(
            "INSERT INTO bench.seen VALUES (%s, %s, %s)", (order.order_id, context.event_id, order.total_cents)
        )
        return OrderSeen(order_id=order.order_id)


class _OneByOneSqlite(SqliteStore):
    """Each delivery in a transaction of its own."""

    def transactions(self, connection: type) -> Any:
        return _singly(super().transactions(connection))


class _OneByOnePostgres(PostgresStore):
    """Each delivery in a transaction of its own, on as many connections as bursts have."""

    def transactions(self, connection: type) -> Any:
        return _singly(super().transactions(connection))


def _singly(transactions: Any) -> Any:
    transactions.largest = 1
    return transactions


HANDLERS: Mapping[str, type[Handler[OrderPlaced, Any]]] = {"sqlite": WriteInSqlite, "postgres": WriteInPostgres}


def sqlite(folder: Path, *, singly: bool = False) -> SqliteStore:
    """A store on a new file, with the handlers' table."""
    path = folder / "bench.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(_TABLE.format("seen"))
    return _OneByOneSqlite(path) if singly else SqliteStore(path)


def postgres(*, singly: bool = False) -> PostgresStore:
    """A store on the run's PostgreSQL, with the handlers' table."""
    conninfo = os.environ[CONNINFO]
    PostgresStore(conninfo).apply_schema()
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS bench")
        connection.execute(_TABLE.format("bench.seen").encode())
    return _OneByOnePostgres(conninfo) if singly else PostgresStore(conninfo)
