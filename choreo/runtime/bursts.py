"""Which deliveries share a transaction now, and what follows from how it ended? Takes what is ready for bursts, runs it, concludes.

A burst whose transaction the database ended (a deadlock, a lock waited for too long, a claim that another member made) is no failure of
its handlers: each of its deliveries runs again in a transaction of its own, and no attempt is counted. One that is lost even alone waits
a little longer each time, and counts as failed attempts when that has gone on for `PATIENCE_S`: a handler that blocks itself (with a
second connection of its own) must come to an end. While the database is down nothing is counted, and one burst at a time asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from contextvars import Context as Variables
from math import inf
from typing import TYPE_CHECKING

from choreo.core.burst_size import BurstSize
from choreo.core.partition import GONE, Delivery, Partition
from choreo.errors import DecodeError, StoreError, TransactionLostError, TransientError, told
from choreo.handler import Failure
from choreo.runtime.burst import Ran, run_burst, run_now
from choreo.runtime.claims import Claims
from choreo.runtime.delivery import DONE, Duplicate, Failed, Outcome, Slot
from choreo.runtime.threads import Asides
from choreo.store import Transactions

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.bursts")

PATIENCE_S = 60.0
"""How long a delivery that is lost alone is tried again before that counts; at least `timeout_s` and HELD_S, for so long a member that
was stopped in the middle of a transaction may hold what it has locked."""
HELD_S = 15.0
AGAIN_FIRST_S = 0.05
AGAIN_MOST_S = 1.0
DOWN_S = 1.0
"""How long nothing begins after the database could not be reached."""


class _Lost:
    """How often a delivery was lost alone, and since when (the loop's clock)."""

    __slots__ = ("since_s", "times")

    def __init__(self, since_s: float) -> None:
        self.times = 0
        self.since_s = since_s


class Bursts:
    """The bursts of one queue. Owner: the event loop; a burst of plain handlers runs on a thread, as a whole."""

    def __init__(self, worker: Worker, transactions: Transactions, queue: int, claims: Claims) -> None:
        self._worker = worker
        self._transactions = transactions
        self._queue = queue
        self._claims = claims
        self._aside = Asides(transactions.most)
        self._loop = asyncio.get_running_loop()
        self._size = BurstSize(transactions.largest)
        self._taken: dict[Slot, list[Delivery]] = {}
        """What each burst has taken and not concluded."""
        self._feeding = False
        self._lost: dict[Delivery, _Lost] = {}
        self._recovering: set[Slot] = set()
        self._told_stuck: dict[Slot, Delivery] = {}
        self._not_before_s = 0.0
        self.troubled: StoreError | None = None
        """Why nothing can be begun just now; None when all is well."""

    # ---- who runs what ----------------------------------------------------------------------------------------------

    def feed(self) -> None:
        """Begins bursts with what is ready, as far as there are transactions."""
        if self._feeding or not self._worker.engine.ready[self._queue]:
            return
        self._feeding = True
        try:
            while len(self._taken) < self._most() and (burst := self._take()):
                slot = Slot()
                self._taken[slot] = burst
                slot.task = self._worker.spawn(self._run(slot, tuple(burst)))
        finally:
            self._feeding = False

    def _most(self) -> int:
        if self.troubled is None:
            return self._transactions.most
        return 1 if self._loop.time() >= self._not_before_s else 0

    def _take(self) -> list[Delivery]:
        """The deliveries of the next burst; one that stands alone, or whose handler is slow, is one by itself."""
        ready = self._worker.engine.ready[self._queue]
        burst: list[Delivery] = []
        while len(burst) < self._size.size and ready and not (burst and self._size.is_slow(ready[0].route.index)):
            delivery = self._worker.engine.take(self._queue)
            if delivery is None:
                break
            if type(delivery.event) is DecodeError:
                self._worker.conclude(delivery, Failed(delivery.event))
            elif delivery.alone or self._claims.enter(delivery):
                burst.append(delivery)
                if delivery.alone or self._size.is_slow(delivery.route.index):
                    break
        return burst

    async def _run(self, slot: Slot, burst: Sequence[Delivery]) -> None:
        try:
            (first, *_) = burst
            if not first.alone or (await self._worker.may_begin_alone(first) and self._claims.enter(first)):
                await self._run_together(slot, burst)
        except asyncio.CancelledError:
            if self._worker.ending or slot.cut != "revoked":
                raise
            for delivery in tuple(self._taken[slot]):
                self._release(slot, delivery)
        finally:
            del self._taken[slot]
            self._told_stuck.pop(slot, None)
        self.feed()

    # ---- one burst --------------------------------------------------------------------------------------------------

    async def _run_together(self, slot: Slot, burst: Sequence[Delivery]) -> None:
        try:
            ran = await self._ran(slot, burst)
        except TransactionLostError as lost:
            self._size.was_lost()
            if len(burst) == 1:
                self._lost_alone(slot, burst[0], lost)
                return
            self._worker.counters.bursts_lost += 1
            _log.info("%s; its %d deliveries run again one by one, no attempt is counted", lost, len(burst))
            for delivery in burst:
                await self._run_together(slot, (delivery,))
            return
        except StoreError as error:
            self._down(slot, burst, error)
            return
        self._is_up()
        self._size.went_well(len(burst))
        self._conclude(slot, burst, ran)

    async def _ran(self, slot: Slot, burst: Sequence[Delivery], failure: Failure | None = None) -> list[Ran]:
        transactions, wiring = self._transactions, self._worker.wiring
        if transactions.blocking:
            return await self._aside.run(lambda: Variables().run(run_now, run_burst(burst, transactions, wiring, slot, failure)))
        return await run_burst(burst, transactions, wiring, slot, failure)

    def _conclude(self, slot: Slot, burst: Sequence[Delivery], ran: Sequence[Ran]) -> None:
        """COMMIT was acknowledged, or there was nothing to commit: now what became of each counts."""
        self._emitted(sum(len(one.rows) for one in ran))
        self._feeding = True  # what a settled one makes ready waits for the others, and goes into one burst with theirs
        try:
            for delivery, one in zip(burst, ran, strict=True):
                if one.took_s:
                    self._size.noted(delivery.route.index, one.took_s)
                if isinstance(one.outcome, Duplicate):
                    self._claims.compare(delivery, one.outcome.payload)
                if one.outcome is None:
                    self._release(slot, delivery)
                else:
                    self._end(slot, delivery, one.outcome)
        finally:
            self._feeding = False

    def _emitted(self, rows: int) -> None:
        self._worker.counters.emitted += rows
        if rows and self._worker.relay is not None:
            self._worker.relay.wake()

    def _end(self, slot: Slot, delivery: Delivery, outcome: Outcome) -> None:
        self._taken[slot].remove(delivery)
        self._lost.pop(delivery, None)
        self._worker.conclude(delivery, outcome)

    def _release(self, slot: Slot, delivery: Delivery, *, after_s: float = 0.0) -> None:
        self._taken[slot].remove(delivery)
        self._worker.release(delivery, after_s=after_s)

    def _lost_alone(self, slot: Slot, delivery: Delivery, error: TransactionLostError) -> None:
        now_s = self._loop.time()
        lost = self._lost.setdefault(delivery, _Lost(now_s))
        lost.times += 1
        if error.reason == "rolled-back" or now_s - lost.since_s > self._patience_s(delivery):
            made = TransientError(f"its transaction was lost, alone, {lost.times} times: {told(error)}")
            made.__cause__ = error
            self._end(slot, delivery, Failed(made))
            return
        self._forget_the_gone()
        delay_s = min(AGAIN_MOST_S, AGAIN_FIRST_S * 2 ** min(lost.times - 1, 10)) * (0.5 + random.random() / 2)
        if lost.times == 1:
            _log.warning("%s: %s: %s; it runs again, no attempt is counted", delivery.route.name, delivery.record.origin, error)
        self._release(slot, delivery, after_s=delay_s)

    def _patience_s(self, delivery: Delivery) -> float:
        return max(PATIENCE_S, self._worker.wiring.specs[delivery.route.index].timeout_s + HELD_S)

    def _forget_the_gone(self) -> None:
        for delivery in [known for known in self._lost if known.partition.state is GONE]:
            del self._lost[delivery]

    def _down(self, slot: Slot, burst: Sequence[Delivery], error: StoreError) -> None:
        self._worker.counters.store_errors += 1
        if self.troubled is None and error.retriable:
            _log.warning("%s; nothing is lost, events wait, trying again every %.0f s", error, DOWN_S)
        self.troubled = error
        self._not_before_s = self._loop.time() + DOWN_S if error.retriable else inf
        for delivery in burst:
            self._release(slot, delivery, after_s=DOWN_S)
        if not error.retriable:
            self._worker.failed(error)

    def _is_up(self) -> None:
        if self.troubled is not None:
            self.troubled = None
            _log.warning("the database answers again: %s", self._claims.describe())

    # ---- the last resort --------------------------------------------------------------------------------------------

    async def recover(self, slot: Slot, delivery: Delivery, failure: Failure) -> Outcome:
        """The handler's `recover`, in a transaction of its own, its claim and rows with it: DONE or Failed. Waits while the database is
        down or ends the transaction, as long as the partition is ours."""
        self._recovering.add(slot)
        try:
            return await self._recovered(slot, delivery, failure)
        finally:
            self._recovering.discard(slot)

    async def _recovered(self, slot: Slot, delivery: Delivery, failure: Failure) -> Outcome:
        ends_s = self._loop.time() + self._patience_s(delivery)
        while delivery.partition.state is not GONE:
            try:
                (ran,) = await self._ran(slot, (delivery,), failure)
            except TransactionLostError as error:
                if error.reason == "rolled-back" or self._loop.time() > ends_s:
                    return Failed(error.__cause__ if isinstance(error.__cause__, Exception) else TransientError(told(error)))
                await asyncio.sleep(AGAIN_MOST_S * random.random())
            except StoreError as error:
                if not error.retriable:
                    raise
                await asyncio.sleep(DOWN_S)
            else:
                self._emitted(len(ran.rows))
                return DONE if isinstance(ran.outcome, Duplicate) or ran.outcome is None else ran.outcome
        return DONE

    # ---- cut short --------------------------------------------------------------------------------------------------

    def slots(self) -> Sequence[Slot]:
        """What runs on the event loop and may be cancelled; nothing where whole bursts run on threads."""
        return () if self._transactions.blocking else (*self._taken, *self._recovering)

    def cut_short(self, partitions: Sequence[Partition]) -> None:
        """Rolls back what has deliveries of these partitions, as far as it is async; those of others run again."""
        for slot in () if self._transactions.blocking else self._taken:
            if slot.cut != "revoked" and slot.task is not None and any(one.partition in partitions for one in self._taken[slot]):
                slot.cut = "revoked"
                slot.task.cancel()

    def tell_stuck(self) -> None:
        """Says once of each plain handler that takes too long: nobody can end it, and its transaction waits."""
        now_s = self._loop.time()
        for slot in self._taken if self._transactions.blocking else ():
            delivery = slot.delivery
            if delivery is None or self._told_stuck.get(slot) is delivery:
                continue
            spec = self._worker.wiring.specs[delivery.route.index]
            if now_s - slot.since_s > spec.timeout_s:
                self._told_stuck[slot] = delivery
                self._worker.counters.stuck += 1
                _log.warning(
                    "%s: %s runs longer than timeout_s=%g; a plain def can't be cut short, so its key, its transaction and all that "
                    "share it wait",
                    spec.name,
                    delivery.record.origin,
                    spec.timeout_s,
                )

    async def close(self) -> None:
        """Closes the connections; the claims' store is closed apart."""
        await self._transactions.close()
