"""Has this handler already succeeded with this event? Looks claims up before a handler runs and writes them after.

Order (DESIGN section 5): handle -> emits acknowledged -> claim committed -> offset. The store blocks, so it has a thread
of its own; claims are looked up a batch at a time and written in one transaction for all that are waiting.
Duplicates inside this process wait for each other: two lanes never run one claim at the same time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from choreo.core.partition import Delivery
from choreo.errors import StoreError
from choreo.letter import payload_digest
from choreo.runtime.claim_cleaning import ClaimCleaning
from choreo.store import Claim, Store
from choreo.telemetry.counters import Counters

_log = logging.getLogger("choreo.claims")
_R = TypeVar("_R")

RECENT = 20_000
"""Claims of this process that are remembered, so that a look-up made before them stays right."""
STILL_S = 1.0
"""A process that stood still so long (SIGSTOP, a paused machine) may be a zombie: its partitions have moved, and what waits
in its lanes was handled elsewhere. So what it had looked up is looked up again (tests/chaos/test_w14_zombie.py)."""
FRESH_S = 2.0
"""What was looked up longer ago is looked up again: an event may wait in its lane, and its duplicate be handled elsewhere."""
RETRY_S = 1.0
CLOSE_S = 1.0
BATCH = 2_000


class Claims:
    """The claims of one worker. Owner: the event loop; the store is touched by its own thread only."""

    def __init__(self, store: Store, counters: Counters, settled: Callable[[Delivery], object]) -> None:
        self._store = store
        self._counters = counters
        self._settled = settled
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="choreo-store")
        self._recent: dict[Claim, bytes] = {}
        self._order: deque[Claim] = deque()
        self._made = 0
        self._running: dict[Claim, tuple[Delivery, deque[Delivery]]] = {}
        self._to_write: list[tuple[Delivery, Claim]] = []
        self._writing: asyncio.Task[None] | None = None
        self._beat_s = self._stood_still_s = time.monotonic()
        self.troubled: StoreError | None = None
        self.broken: BaseException | None = None
        """What writing claims ended with: a store error that waiting can't mend, or a mistake of ours; the worker stops."""

    async def open(self, group: str) -> None:
        await self._patiently(lambda: self._store.open(group))

    def cleaning(self, retention_s: float) -> ClaimCleaning:
        """What deletes those that are older."""
        return ClaimCleaning(self._store, self._in_thread, retention_s)

    def describe(self) -> str:
        return self._store.describe()

    async def look_up(self, deliveries: Iterable[Delivery]) -> None:
        """Notes for each delivery whether its claim is there. Waits while the store is down; no attempt is counted."""
        wanted = [(delivery, claim_of(delivery)) for delivery in deliveries]
        if not wanted:
            return
        made = self._made
        claims = [claim for _, claim in wanted]

        def look() -> tuple[float, dict[Claim, bytes]]:
            looked_at_s = time.monotonic()
            found = self._store.lookup(claims)
            return looked_at_s, self._store.payloads(found) if found else {}

        looked_at_s, found = await self._patiently(look)
        for delivery, claim in wanted:
            delivery.note = (claim, found.get(claim), made, looked_at_s)

    def is_fresh(self, delivery: Delivery) -> bool:
        """Whether what was looked up for it still tells the truth, about this process's own claims and about others'."""
        self.beat()
        note = delivery.note
        if note is None or self._made - note[2] >= RECENT:
            return False
        looked_at_s: float = note[3]
        return looked_at_s >= self._stood_still_s and self._beat_s - looked_at_s < FRESH_S

    def beat(self) -> None:
        """The event loop runs; called often, so that a long silence shows that the process stood still."""
        now_s = time.monotonic()
        if now_s - self._beat_s > STILL_S:
            self._stood_still_s = now_s
        self._beat_s = now_s

    def begin(self, delivery: Delivery) -> bool | None:
        """True: it was claimed before, don't run it. False: run it. None: the same claim is running; it will be `released`."""
        claim, found = delivery.note[:2]
        if found is None:
            found = self._recent.get(claim)
        if found is not None:
            self.compare(delivery, found)
            return True
        return False if self._enter(delivery, claim) else None

    def enter(self, delivery: Delivery) -> bool:
        """For a burst, which looks its claims up itself, in its transaction: whether it may run. False: the same claim is running; it
        will be `released`."""
        self.beat()
        claim = claim_of(delivery)
        delivery.note = (claim, None, 0, 0.0)
        return self._enter(delivery, claim)

    def _enter(self, delivery: Delivery, claim: Claim) -> bool:
        running = self._running.get(claim)
        if running is not None:
            running[1].append(delivery)
            return False
        self._running[claim] = (delivery, deque())
        return True

    def compare(self, delivery: Delivery, claimed: bytes) -> None:
        """The same id with another payload is no duplicate but a collision: whoever emitted it emits differently when it runs again."""
        if claimed and claimed != digest(delivery.record.value):
            self._counters.id_collisions += 1
            _log.error(
                "%s: %s: event %s came with another payload than the one that was handled, and is not applied; %s emits differently "
                "when it runs again: let what it emits follow from its event alone, or give Emit an id_key",
                delivery.route.name,
                delivery.record.origin,
                delivery.wire.event_id,
                delivery.wire.source or "its producer (no choreo-source header)",
            )

    def end(self, delivery: Delivery) -> Iterable[Delivery]:
        """It no longer runs; those that waited for it, to be begun again."""
        if delivery.note is None:
            return ()
        claim = delivery.note[0]
        running = self._running.get(claim)
        if running is None or running[0] is not delivery:
            return ()
        del self._running[claim]
        return running[1]

    def runs(self, delivery: Delivery) -> bool:
        """Whether it has begun: from `begin` to `end`. Before, it may wait for the store, which is not its handler's time."""
        running = None if delivery.note is None else self._running.get(delivery.note[0])
        return running is not None and running[0] is delivery

    def add(self, delivery: Delivery) -> None:
        """It succeeded and its emits are acknowledged: its claim is written with the next batch, then it is settled."""
        self._to_write.append((delivery, delivery.note[0]))
        if self._writing is None:
            self._writing = asyncio.get_running_loop().create_task(self._write())
            self._writing.add_done_callback(self._write_ended)

    def _write_ended(self, writing: asyncio.Task[None]) -> None:
        if not writing.cancelled() and (error := writing.exception()) is not None:
            self.broken = error

    async def _write(self) -> None:
        while self._to_write:
            batch, self._to_write = self._to_write[:BATCH], self._to_write[BATCH:]
            claims = [claim for _, claim in batch]
            payloads, there = await self._patiently(partial(self._claim, batch, claims))
            for (delivery, claim), payload in zip(batch, payloads, strict=True):
                if claim in there:
                    self._counters.claimed_elsewhere += 1
                    _log.warning(
                        "%s: %s was claimed by another member while it ran here; its effect may exist twice", claim.handler, claim.event_id
                    )
                self._remember(claim, payload)
                self._settled(delivery)
        self._writing = None

    def _claim(self, batch: Sequence[tuple[Delivery, Claim]], claims: Sequence[Claim]) -> tuple[list[bytes], set[Claim]]:
        # In the store's thread: hashes of large payloads must not hold the loop.
        payloads = [digest(delivery.record.value) for delivery, _ in batch]
        return payloads, self._store.claim(claims, payloads)

    def _remember(self, claim: Claim, payload: bytes) -> None:
        self._made += 1
        self._recent[claim] = payload
        self._order.append(claim)
        if len(self._order) > RECENT:
            self._recent.pop(self._order.popleft(), None)

    async def _patiently(self, call: Callable[[], _R]) -> _R:
        while True:
            try:
                answer = await self._in_thread(call)
            except StoreError as error:
                if not error.retriable:
                    raise
                self._counters.store_errors += 1
                if self.troubled is None:
                    _log.warning("%s; nothing is lost, events wait, trying again every %.0f s", error, RETRY_S)
                self.troubled = error
                await asyncio.sleep(RETRY_S)
            else:
                if self.troubled is not None:
                    _log.warning("the store answers again: %s", self._store.describe())
                    self.troubled = None
                return answer

    def _in_thread(self, call: Callable[[], _R]) -> asyncio.Future[_R]:
        return asyncio.get_running_loop().run_in_executor(self._thread, call)

    async def close(self) -> None:
        """Writes what was acknowledged last, if the store answers within CLOSE_S, and closes it; what was not written is not settled."""
        if self._writing is not None:
            await asyncio.wait({self._writing}, timeout=CLOSE_S)
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.gather(self._writing, return_exceptions=True)
        await self._in_thread(self._store.close)
        self._thread.shutdown(wait=False)


def digest(value: bytes | None) -> bytes:
    """What stands beside a claim: the first 16 bytes of the payload's SHA-256 (of ``choreo.letter.payload_hash``)."""
    return payload_digest(value or b"")[:16]


def claim_of(delivery: Delivery) -> Claim:
    """The claim of a delivery; a forced replay's run id makes it another one."""
    return Claim(delivery.route.identity, delivery.wire.event_id, forced_run(delivery))


def forced_run(delivery: Delivery) -> str:
    """The id of the forced replay that it belongs to; ``""`` for anything else."""
    replay = delivery.run
    return replay.run if replay is not None and replay.forced else ""
