"""How many deliveries shall share one transaction? Many where it goes well, few where they get in each other's way.

A burst pays for BEGIN, COMMIT and the disk once. But all of it waits for its slowest handler, with what it has locked; and all of it
runs again where the database ends the transaction. So the size doubles after a burst that was full and went well, halves after one
that was lost, and a handler that is slow has its transactions to itself. Pure; guarded by tests/unit/test_burst_size.py.
"""

from __future__ import annotations

from collections import deque
from statistics import median

SLOW_S = 0.02
"""A handler whose median is above runs in bursts of one (DESIGN section 5)."""
LIMIT_S = 0.5
"""A burst that has run for so long begins no other delivery of those that it took."""
FIRST = 8
WINDOW = 31
"""So many of a handler's last attempts tell its median."""
LOOK_EVERY = 8


class BurstSize:
    """The size of one kind of burst. Owner: the event loop. `largest` is what the store advises."""

    def __init__(self, largest: int) -> None:
        self._largest = max(1, largest)
        self.size = min(FIRST, self._largest)
        self._took_s: dict[int, deque[float]] = {}
        self._noted: dict[int, int] = {}
        self._slow: set[int] = set()

    def is_slow(self, route: int) -> bool:
        """Whether the handler has its transactions to itself."""
        return route in self._slow

    def noted(self, route: int, took_s: float) -> None:
        """An attempt of the handler took so long."""
        took = self._took_s.get(route)
        if took is None:
            took = self._took_s[route] = deque(maxlen=WINDOW)
            self._noted[route] = 0
        took.append(took_s)
        self._noted[route] += 1
        # The first ones at once: a burst of slow ones must not be followed by another.
        if self._noted[route] < LOOK_EVERY or self._noted[route] % LOOK_EVERY == 0:
            if median(took) > SLOW_S:
                self._slow.add(route)
            else:
                self._slow.discard(route)

    def went_well(self, deliveries: int) -> None:
        """A burst of so many was committed."""
        if deliveries >= self.size:
            self.size = min(self._largest, self.size * 2)

    def was_lost(self) -> None:
        """The database ended the transaction of one: it runs again, one by one."""
        self.size = max(1, self.size // 2)
