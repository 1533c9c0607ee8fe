"""Which offset may be committed? One tracker a partition.

Invariant 1: an offset is committed only when every delivery at and below it is settled; it never goes back.
Offsets have gaps (compaction, control markers, TRAPS 22), so what was *received* is tracked, never a range.
Guarded by tests/properties/test_engine.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from choreo.errors import StateError


class Settling(Protocol):
    """One handler's part of an event."""

    settled: bool


D = TypeVar("D", bound=Settling)


class Offsets(Generic[D]):
    """The received offsets of one partition that are not finished, oldest first. Owner: the partition's engine state.

    `unfinished` maps an offset to all its deliveries, one of which at least has not settled; insertion order is offset order.
    `reach` is one past the last received offset; None before the first.
    """

    __slots__ = ("reach", "unfinished")

    def __init__(self) -> None:
        self.unfinished: dict[int, Sequence[D]] = {}
        self.reach: int | None = None

    def received(self, offset: int, deliveries: Sequence[D]) -> None:
        """The record at `offset` came and is for these; with none it is finished at once."""
        if self.reach is not None and offset < self.reach:
            raise StateError(f"offset {offset} came after {self.reach - 1}; a partition's offsets only rise")
        if deliveries:
            self.unfinished[offset] = deliveries
        self.reach = offset + 1

    def finished(self, offset: int) -> None:
        """One delivery of the record at `offset` settled."""
        deliveries = self.unfinished[offset]
        if len(deliveries) == 1 or all(delivery.settled for delivery in deliveries):
            del self.unfinished[offset]

    def committable(self) -> int | None:
        """The offset to commit (the next one to read after a restart); None before anything was received."""
        return next(iter(self.unfinished), self.reach)
