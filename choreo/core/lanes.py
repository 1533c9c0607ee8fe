"""Whose turn is it within a key? One `Lanes` a partition.

Invariant 2: the events of one key, for one handler, run one at a time and in order. A lane is a chain of deliveries
linked by `next`: its head runs (or waits for a retry), the others wait. Only the *tail* of each chain is kept in the
table, so entering and leaving cost one look-up, and a lane that is empty costs nothing.
"""

from __future__ import annotations

from typing import Protocol


class Queued(Protocol):
    """What stands in a lane. `lane` None: no order, a lane of its own."""

    lane: tuple[int, bytes] | None
    next: Queued | None


class Lanes:
    """The chains of one partition. Owner: the partition's engine state."""

    __slots__ = ("_tails",)

    def __init__(self) -> None:
        self._tails: dict[tuple[int, bytes], Queued] = {}

    def __len__(self) -> int:
        return len(self._tails)

    def enter(self, item: Queued) -> bool:
        """Puts it last in its lane; whether it is the head, so that it may run."""
        lane = item.lane
        if lane is None:
            return True
        tail = self._tails.get(lane)
        self._tails[lane] = item
        if tail is None:
            return True
        tail.next = item
        return False

    def leave(self, head: Queued) -> Queued | None:
        """The head is through: the next head, or None when the lane is empty."""
        following = head.next
        if following is None:
            if head.lane is not None:
                del self._tails[head.lane]
            return None
        head.next = None
        return following
