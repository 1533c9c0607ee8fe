"""Does the outbox in memory do what its port promises?"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from choreo.storage.memory_outbox import MemoryOutbox
from choreo.store import OutboxRow
from choreo.testing.outbox_conformance import GROUP, OutboxConformance, OutboxGround


class MemoryGround:
    """See `OutboxGround`. One transaction at a time, as with SQLite; its rows are numbered when it is committed."""

    def __init__(self) -> None:
        self._first = MemoryOutbox(GROUP)
        self._writer = threading.Lock()

    def outbox(self, group: str) -> MemoryOutbox:
        return MemoryOutbox(group, shared_with=self._first)

    @contextmanager
    def adding(self, group: str, rows: Sequence[OutboxRow]) -> Iterator[object]:
        with self._writer:
            yield None
            self.outbox(group).add(rows)


class TestMemoryOutbox(OutboxConformance):
    blocks_writers = True

    @pytest.fixture
    def ground(self) -> OutboxGround:
        return MemoryGround()
