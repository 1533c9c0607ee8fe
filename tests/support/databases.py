"""Whose tables hold the effects? A service's own database, SQLite or PostgreSQL, where handlers write in their transactions.

Its rows are those of tests/support/effects.py, running sum included, but written with the claim, or not at all.
"""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import psycopg

from choreo import PostgresStore
from tests.support.history import Effect
from tests.support.postgres import PostgresServer

_COLUMNS = "handler, event_id, key, amount, running_sum, at_s, pid, epoch"
_TABLE = """
create table if not exists effects (
    id {identity},
    handler text not null, event_id text not null, key text not null, amount integer not null,
    running_sum integer not null, at_s double precision not null, pid integer not null, epoch text not null
)
"""
_INDEX = "create index if not exists effects_by_key on effects (handler, key, id)"
_INSERT = """
insert into effects (handler, event_id, key, amount, running_sum, at_s, pid, epoch)
select {0}handler{1}, {0}event_id{1}, {0}key{1}, {0}amount{1},
       {0}amount{1} + coalesce((select running_sum from effects
                                where handler = {0}handler{1} and key = {0}key{1} order by id desc limit 1), 0),
       {0}at_s{1}, {0}pid{1}, ''
"""
INTO_SQLITE = _INSERT.format(":", "")
INTO_POSTGRES = _INSERT.format("%(", ")s")


def effect(handler: str, event_id: str, key: str, amount: int) -> dict[str, object]:
    """The parameters of INTO_SQLITE and INTO_POSTGRES."""
    return {"handler": handler, "event_id": event_id, "key": key, "amount": amount, "at_s": time.monotonic(), "pid": os.getpid()}


class Database(Protocol):
    """One service's database, looked at from outside."""

    address: str
    """What the service's store is made of: a path, or a conninfo."""

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        """What is committed; none while there is no such table."""


class SqliteDatabase:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("pragma journal_mode = wal")
            connection.execute(_TABLE.format(identity="integer primary key autoincrement"))
            connection.execute(_INDEX)

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self.address}?mode=ro", uri=True)) as connection:
            try:
                return connection.execute(text).fetchall()
            except sqlite3.OperationalError:
                return []


class PostgresDatabase:
    """A database of its own on the test run's server."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._name = server.new_database()
        self.address = server.conninfo(self._name)
        server.execute(_TABLE.format(identity="bigint generated always as identity primary key"), database=self._name)
        server.execute(_INDEX, database=self._name)
        PostgresStore(self.address).apply_schema()

    def rows(self, text: str) -> list[tuple[Any, ...]]:
        try:
            return self.server.execute(text, database=self._name)
        except psycopg.errors.UndefinedTable:
            return []


def effects(database: Database) -> list[Effect]:
    """All that is committed. The rows of one key are in the order of their commits."""
    return [Effect(*row) for row in database.rows(f"select {_COLUMNS} from effects order by id")]


def claimed(database: Database) -> frozenset[str]:
    """The ids of the events that are claimed."""
    schema = "choreo." if isinstance(database, PostgresDatabase) else ""
    return frozenset(row[0] for row in database.rows(f"select event_id from {schema}choreo_claims"))


def waiting_rows(database: Database) -> int:
    """Rows of the outbox that are not published."""
    schema = "choreo." if isinstance(database, PostgresDatabase) else ""
    ((count,),) = database.rows(f"select count(*) from {schema}choreo_outbox") or [(0,)]
    return int(count)
