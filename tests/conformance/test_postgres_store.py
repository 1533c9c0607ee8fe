"""Does PostgreSQL's store do what its port promises, on a connection of its own and on a pool's?"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row
from psycopg_pool import ConnectionPool

from choreo.storage.postgres import PostgresStore
from choreo.store import Store
from choreo.testing.conformance import StoreConformance
from tests.support.postgres import PostgresServer

DictPool = ConnectionPool[psycopg.Connection[DictRow]]


class TestPostgresStore(StoreConformance):
    @pytest.fixture
    def reopen(self, postgres: PostgresServer) -> Callable[[], Store]:
        conninfo = postgres.conninfo(postgres.new_database())
        PostgresStore(conninfo).apply_schema()
        return lambda: PostgresStore(conninfo)

    @pytest.fixture
    def store(self, reopen: Callable[[], Store]) -> Store:
        return reopen()


class TestPostgresStoreOnAPool(StoreConformance):
    """The pool's connections read rows as dicts and are not in autocommit: that is the pool's affair."""

    @pytest.fixture
    def pool(self, postgres: PostgresServer) -> Iterator[DictPool]:
        conninfo = postgres.conninfo(postgres.new_database())
        with DictPool(conninfo, min_size=1, max_size=3, kwargs={"row_factory": dict_row}, open=True) as pool:
            yield pool

    @pytest.fixture
    def reopen(self, pool: DictPool) -> Callable[[], Store]:
        PostgresStore(pool, schema="claims-of_choreo").apply_schema()
        return lambda: PostgresStore(pool, schema="claims-of_choreo")

    @pytest.fixture
    def store(self, reopen: Callable[[], Store]) -> Store:
        return reopen()
