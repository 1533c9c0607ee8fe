"""When are old claims deleted, so that their table doesn't grow for ever? Now and then, in steps so small that claims in between
hardly wait: one large DELETE would hold the store and its locks for as long as it takes.

How old a claim must be is choreo/runtime/claim_retention.py's affair.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable

from choreo.errors import ConfigurationError, StoreError
from choreo.store import Store

_log = logging.getLogger("choreo.claims")

STEP = 1_000
"""Claims a step: about 2 ms on PostgreSQL, 20 ms on SQLite."""
EVERY_S = 600.0
SHARE = 5.0
"""At most one part in so many of the store's time goes into cleaning: after each step there is a pause of the other parts."""
LEAST_PAUSE_S = 0.02

Call = Callable[[Callable[[], int]], Awaitable[int]]


class ClaimCleaning:
    """Deletes what is older than `retention_s` (`math.inf`: nothing). Owner: the event loop; `run` is started as a task and ended by
    cancelling it. `call` runs a function in the store's thread, between other calls, and gives its answer.

    A member that finds another one cleaning leaves it to that one.
    """

    def __init__(
        self,
        store: Store,
        call: Call,
        retention_s: float,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if not retention_s > 0:
            raise ConfigurationError(f"claims can't be kept for {retention_s} s; use a time above 0, or math.inf for ever")
        self._store = store
        self._call = call
        self._retention_s = retention_s
        self._sleep = sleep
        self._now_s = now_s
        self.deleted = 0
        """How many, since the start."""
        self.troubled: StoreError | None = None
        """What kept the last round from its end; the next one tries again."""

    async def run(self) -> None:
        """A round now, and one every EVERY_S seconds, until it is cancelled. Raises a StoreError that waiting can't mend."""
        while self._retention_s != math.inf:
            try:
                await self.clean()
            except StoreError as error:
                if not error.retriable:
                    raise
                if self.troubled is None:
                    _log.warning("%s; old claims stay for now, the next attempt is in %.0f s", error, EVERY_S)
                self.troubled = error
            else:
                self.troubled = None
            await self._sleep(EVERY_S)

    async def clean(self) -> int:
        """Deletes, step by step, all that is too old now; how many there were. Raises StoreError."""
        deleted = 0
        while True:
            began_s = self._now_s()
            in_step = await self._call(self._step)
            deleted += in_step
            self.deleted += in_step
            if in_step < STEP:
                break
            await self._sleep(max(LEAST_PAUSE_S, (self._now_s() - began_s) * (SHARE - 1)))
        if deleted:
            _log.info("deleted %d claims older than %.3g days", deleted, self._retention_s / 86_400)
        return deleted

    def _step(self) -> int:
        return self._store.delete_older(self._retention_s, STEP)
