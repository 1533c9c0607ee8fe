"""Does the outbox in memory do what its port promises?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from choreo.storage.memory_outbox import MemoryOutbox
from choreo.store import OutboxRow
from choreo.testing.outbox_conformance import GROUP, OutboxConformance, OutboxGround


class MemoryGround:
    """See `OutboxGround`. Rows are numbered when the context ends: two transactions of one key never overlap."""

    def __init__(self) -> None:
        self._first = MemoryOutbox(GROUP)

    def outbox(self, group: str) -> MemoryOutbox:
        return MemoryOutbox(group, shared_with=self._first)

    @contextmanager
    def adding(self, group: str, rows: Sequence[OutboxRow]) -> Iterator[object]:
        yield None
        self.outbox(group).add(rows)


class TestMemoryOutbox(OutboxConformance):
    @pytest.fixture
    def ground(self) -> OutboxGround:
        return MemoryGround()
