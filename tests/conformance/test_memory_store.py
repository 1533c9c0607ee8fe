"""Does the store in memory do what its port promises?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from choreo.storage.memory import MemoryStore
from choreo.store import Store
from choreo.testing.conformance import StoreConformance


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()

    @pytest.fixture
    def reopen(self, store: Store) -> Callable[[], Store]:
        assert isinstance(store, MemoryStore)
        return lambda: MemoryStore(shared_with=store)
