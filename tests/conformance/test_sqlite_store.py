"""Does SQLite's store do what its port promises?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from choreo.storage.sqlite import SqliteStore
from choreo.store import Store
from choreo.testing.conformance import StoreConformance


class TestSqliteStore(StoreConformance):
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "claims" / "payments.db"

    @pytest.fixture
    def store(self, path: Path) -> SqliteStore:
        return SqliteStore(path)

    @pytest.fixture
    def reopen(self, path: Path) -> Callable[[], Store]:
        return lambda: SqliteStore(path)
