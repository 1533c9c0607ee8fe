"""What becomes of an attempt that failed? It is tried again, recovered from, or a letter. The engine decides, this acts."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from choreo import failpoint
from choreo.core.partition import GONE, Delivery
from choreo.core.retry import GiveUp, RetryAfter
from choreo.errors import BrokerError, CrashLoopError, DecodeError, PermanentError, StoreError, TransientError, told
from choreo.handler import Failure
from choreo.letter import LetterState
from choreo.runtime.dead_letters import describe, error_type, event_type_of
from choreo.runtime.delivery import Emitted, Failed, Slot, recover

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.worker")


class Failures:
    """Owner: the event loop. `aside` runs plain `recover` functions."""

    def __init__(self, worker: Worker, aside: Callable[[Callable[[], Any]], Awaitable[Any]]) -> None:
        self._worker = worker
        self._aside = aside
        self.recoveries: set[Slot] = set()
        """What `recover` functions do just now."""

    def failed(self, delivery: Delivery, error: Exception) -> None:
        """The attempt of a delivery ended in an error, or what it emitted can never be written."""
        if isinstance(error, StoreError):
            self._worker.end_claim(delivery)
            self._store_failed(delivery, error)
            return
        decision = self._worker.engine.fail(delivery, error, now_s=asyncio.get_running_loop().time(), dice=random.random())
        self._worker.changed.set()
        if not isinstance(decision, GiveUp):
            # One that is given up keeps its claim till it has settled: no duplicate is to succeed while it is recovered from.
            self._worker.end_claim(delivery)
        if decision is None:
            self._worker.counters.late += 1
            return
        first = delivery.failed_at = delivery.failed_at or datetime.now(UTC)
        where = f"{delivery.route.name}: {describe(delivery, error)}"
        match decision:
            case RetryAfter(delay_s):
                self._worker.counters.retried += 1
                if failpoint.ACTIVE:
                    failpoint.hit("during_backoff")
                _log.warning(
                    "%s (%s), attempt %d of %d; again in %.2f s",
                    where,
                    error_type(error),
                    delivery.attempts,
                    delivery.route.retry.max_attempts,
                    delay_s,
                )
            case GiveUp(permanent):
                spec = self._worker.wiring.specs.get(delivery.route.index)
                if spec is not None and spec.recovers and not isinstance(error, DecodeError):
                    slot = Slot()
                    slot.delivery, slot.task = delivery, self._worker.spawn(self._recover(slot, delivery, error, first, permanent))
                    self.recoveries.add(slot)
                    slot.task.add_done_callback(lambda _: self.recoveries.discard(slot))
                else:
                    self._die(delivery, error, first)

    def crash_looped(self, delivery: Delivery) -> None:
        """It has ended the process each time it was begun. No `recover`: that might do the same."""
        self._worker.counters.crash_loops += 1
        error = CrashLoopError(
            f"the process ended {delivery.route.retry.max_attempts} times while {delivery.route.name} handled it and nothing else ran; "
            "mend the handler (or the library that it calls into), then replay"
        )
        self._die(delivery, error, datetime.now(UTC))

    async def _recover(self, slot: Slot, delivery: Delivery, error: Exception, first: datetime, permanent: bool) -> None:
        failure = Failure(error_type(error), told(error), delivery.attempts, permanent, first, datetime.now(UTC))
        try:
            bursts = self._worker.bursts.get(delivery.route.queue)
            if bursts is not None:
                outcome = await bursts.recover(slot, delivery, failure)
            else:
                outcome = await recover(delivery, failure, self._worker.wiring, self._aside)
        except asyncio.CancelledError:
            if self._worker.ending:
                raise
            if slot.cut is not None:
                self._worker.release(delivery)
                return
            outcome = Failed(TransientError("recover raised CancelledError by itself"))
        if delivery.partition.state is GONE:
            # Whoever has it now begins it anew: what this one would emit might contradict that.
            self._worker.settle(delivery)
            return
        if isinstance(outcome, Failed):
            self._recover_failed(delivery, error, outcome.error, first)
            return
        records = outcome.records if isinstance(outcome, Emitted) else ()
        if not records and self._worker.atomic is None:
            self._recovered(delivery, error)
            return

        def acknowledged(problem: BrokerError | None) -> None:
            # Not as a handler's own emits: what can never be written must not be recovered from once more.
            if problem is not None:
                self._recover_failed(delivery, error, unwritable(problem), first)
            else:
                self._recovered(delivery, error)

        self._worker.counters.emitted += len(records)
        self._worker.write(delivery, records, acknowledged)

    def _recover_failed(self, delivery: Delivery, error: Exception, problem: Exception, first: datetime) -> None:
        _log.error("%s: recover failed as well: %s", delivery.route.name, told(problem))
        problem.__context__ = error
        self._die(delivery, problem, first)

    def _recovered(self, delivery: Delivery, error: Exception) -> None:
        self._worker.counters.recovered += 1
        _log.warning("%s: %s: recovered after attempt %d (%s)", delivery.route.name, delivery.record.origin, delivery.attempts, told(error))
        self._worker.succeeded(delivery)

    def _die(self, delivery: Delivery, error: Exception, first: datetime) -> None:
        def safe(state: LetterState) -> None:
            if not self._worker.settle(delivery, letter=state):
                return
            self._worker.counters.dead_lettered += 1
            _log.error(
                "%s: %s: dead-lettered after attempt %d as %s (%s)  -> choreo dlq show %s %s",
                delivery.route.name,
                describe(delivery, error),
                delivery.attempts,
                state.dlq,
                error_type(error),
                self._worker.plan.service,
                state.event_id,
            )

        _log.debug("%s dies: %s", event_type_of(delivery), told(error))
        self._worker.letters.write(delivery, error, first, safe)

    def _store_failed(self, delivery: Delivery, error: StoreError) -> None:
        self._worker.engine.postpone(delivery, until_s=asyncio.get_running_loop().time() + 1.0)
        if not error.retriable:
            self._worker.failed(error)


def unwritable(error: BrokerError) -> Exception:
    """What a handler emitted can never be written: its own failure, and a final one."""
    made = PermanentError(f"what it emitted can't be written: {error}")
    made.__cause__ = error
    return made
