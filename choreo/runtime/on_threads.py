"""Which plain `def` handlers run now? Takes what is ready for threads, claims it, hands it over, and takes the outcomes back."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from choreo.core.partition import THREADS, Delivery
from choreo.errors import DecodeError
from choreo.runtime.claims import Claims
from choreo.runtime.delivery import WAITING, Duplicate, Failed, Outcome
from choreo.runtime.threads import Threads

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.worker")

THREAD_QUEUE = 4
"""Deliveries handed to the threads, as a multiple of their number."""


class OnThreads:
    """Owner: the event loop."""

    def __init__(self, worker: Worker, claims: Claims | None) -> None:
        self._worker = worker
        self._claims = claims
        self._threads = Threads(worker.plan.threads, worker.wiring, self._ended, worker.failed)
        self._on_threads = 0
        self._feeding = False
        self._told_stuck: dict[int, Delivery] = {}

    def close(self) -> None:
        """Tells the threads to end after what they run; doesn't wait for them."""
        self._threads.close()

    def feed(self) -> None:
        """Hands over what is ready, as far as there is room."""
        if self._feeding:
            return  # a duplicate settled within the loop below, which goes on by itself
        self._feeding = True
        try:
            bound = self._worker.plan.threads * THREAD_QUEUE
            while self._on_threads < bound and (delivery := self._worker.engine.take(THREADS)) is not None:
                self._hand_over(delivery)
        finally:
            self._feeding = False

    def _hand_over(self, delivery: Delivery) -> None:
        if delivery.alone:
            self._on_threads += 1
            self._worker.run_beside(self._hand_over_alone(delivery))
        else:
            self._hand_over_now(delivery)

    async def _hand_over_alone(self, delivery: Delivery) -> None:
        may_begin = await self._worker.may_begin_alone(delivery)
        self._on_threads -= 1
        if may_begin:
            self._hand_over_now(delivery)

    def _hand_over_now(self, delivery: Delivery) -> None:
        if type(delivery.event) is DecodeError:
            self._worker.conclude(delivery, Failed(delivery.event))
            return
        if self._claims is not None:
            if not self._claims.is_fresh(delivery):
                self._on_threads += 1
                self._worker.run_beside(self._look_up_then_begin(delivery))
                return
            if not self._begin_claim(delivery):
                return
        self._on_threads += 1
        self._threads.put(delivery)

    def _begin_claim(self, delivery: Delivery) -> bool:
        assert self._claims is not None
        claimed = self._claims.begin(delivery)
        if claimed is not False:
            self._worker.conclude(delivery, Duplicate() if claimed else WAITING)
        return claimed is False

    async def _look_up_then_begin(self, delivery: Delivery) -> None:
        assert self._claims is not None
        await self._claims.look_up((delivery,))
        if self._begin_claim(delivery):
            self._threads.put(delivery)
        else:
            self._on_threads -= 1
            self.feed()

    def _ended(self, delivery: Delivery, outcome: Outcome | None) -> None:
        self._on_threads -= 1
        if outcome is None:
            self._worker.release(delivery)
        else:
            self._worker.conclude(delivery, outcome)
        if self._worker.engine.ready[THREADS]:
            self.feed()

    def stuck(self) -> list[str]:
        """Sync handlers past their `timeout_s`: they can't be cancelled, their lanes wait."""
        now_s = time.monotonic()
        found = []
        for delivery, since_s in list(self._threads.running.values()):
            spec = self._worker.wiring.specs[delivery.route.index]
            if now_s - since_s > spec.timeout_s:
                found.append(f"{spec.name} has run {now_s - since_s:.0f} s for {delivery.record.origin} (timeout_s={spec.timeout_s:g})")
        return found

    def tell_stuck(self) -> None:
        """Says once of each that it takes too long: nobody can end it, and its key waits."""
        now_s = time.monotonic()
        for number, (delivery, since_s) in list(self._threads.running.items()):
            spec = self._worker.wiring.specs[delivery.route.index]
            if now_s - since_s > spec.timeout_s and self._told_stuck.get(number) is not delivery:
                self._told_stuck[number] = delivery
                self._worker.counters.stuck += 1
                _log.warning(
                    "%s: %s runs longer than timeout_s=%g; a plain def can't be cut short, so its key and a thread wait for it",
                    spec.name,
                    delivery.record.origin,
                    spec.timeout_s,
                )
