"""Does PostgreSQL's outbox do what its port promises?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg
import pytest

from choreo.storage.postgres import PostgresStore
from choreo.storage.postgres_outbox import PostgresOutbox
from choreo.store import OutboxRow
from choreo.testing.outbox_conformance import OutboxConformance, OutboxGround
from tests.support.postgres import PostgresServer


class PostgresOutboxGround:
    """See `OutboxGround`."""

    def __init__(self, postgres: PostgresServer) -> None:
        self._conninfo = postgres.conninfo(postgres.new_database())
        self._store = PostgresStore(self._conninfo)
        self._store.apply_schema()

    def outbox(self, group: str) -> PostgresOutbox:
        return self._store.outbox(group)

    @contextmanager
    def adding(self, group: str, rows: Sequence[OutboxRow]) -> Iterator[object]:
        with psycopg.connect(self._conninfo) as connection:
            self._store.add(connection, group, rows)
            yield connection


class TestPostgresOutbox(OutboxConformance):
    @pytest.fixture
    def ground(self, postgres: PostgresServer) -> OutboxGround:
        return PostgresOutboxGround(postgres)
