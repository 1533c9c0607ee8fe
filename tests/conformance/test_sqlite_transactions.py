"""Do the transactions and the outbox of a SQLite file do what their ports promise?"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from choreo.storage.sqlite import SqliteStore
from choreo.storage.sqlite_outbox import SqliteOutbox
from choreo.store import OutboxRow
from choreo.testing.outbox_conformance import GROUP, OutboxConformance, OutboxGround
from choreo.testing.transaction_conformance import Ground, TransactionConformance


class SqliteGround:
    """See `Ground` and `OutboxGround`."""

    connection: type = sqlite3.Connection

    def __init__(self, folder: Path) -> None:
        self.path = folder / "shop.db"
        store = SqliteStore(self.path)
        store.open(GROUP)
        store.close()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("CREATE TABLE entries (text text)")
            connection.execute("CREATE TABLE once (text text UNIQUE ON CONFLICT ROLLBACK)")

    def store(self) -> SqliteStore:
        return SqliteStore(self.path)

    def write(self, connection: Any, text: str) -> Any:
        connection.execute("INSERT INTO entries VALUES (?)", [text])

    def read(self, connection: Any) -> Any:
        return [text for (text,) in connection.execute("SELECT text FROM entries ORDER BY text")]

    def fail(self, connection: Any) -> Any:
        connection.execute("INSERT INTO nowhere VALUES (1)")

    def endings(self, connection: Any) -> Sequence[Callable[[], Any]]:
        texts = [
            "COMMIT",
            "  commit ;",
            "/* a ; */ -- b\nROLLBACK",
            "END TRANSACTION",
            "BEGIN",
            "begin immediate",
            "RELEASE choreo_delivery",
            "ROLLBACK TO Choreo_Delivery",
            "SAVEPOINT choreo_delivery",
            "ATTACH ':memory:' AS other",
            "PRAGMA journal_mode = DELETE",
            "PRAGMA synchronous = OFF",
            "PRAGMA foreign_keys = ON",
        ]
        calls = [
            connection.commit,
            connection.rollback,
            connection.close,
            partial(connection.executescript, "SELECT 1"),
            partial(connection.cursor().executescript, "SELECT 1"),
            partial(connection.set_authorizer, None),
            partial(setattr, connection, "isolation_level", ""),
            connection.__enter__,
            partial(connection.cursor().execute, "COMMIT"),
            partial(connection.deserialize, b""),
        ]
        return [*calls, *(partial(connection.execute, text) for text in texts)]

    def entries(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as connection:
            return [text for (text,) in connection.execute("SELECT text FROM entries ORDER BY text")]

    def outbox(self, group: str) -> SqliteOutbox:
        return self.store().outbox(group)

    @contextmanager
    def adding(self, group: str, rows: Sequence[OutboxRow]) -> Iterator[object]:
        with closing(sqlite3.connect(self.path, timeout=20)) as connection, connection:
            self.store().add(connection, group, rows)
            yield connection


class TestSqliteTransactions(TransactionConformance):
    @pytest.fixture
    def ground(self, tmp_path: Path) -> Ground:
        return SqliteGround(tmp_path)


class TestSqliteOutbox(OutboxConformance):
    blocks_writers = True

    @pytest.fixture
    def ground(self, tmp_path: Path) -> OutboxGround:
        return SqliteGround(tmp_path)
