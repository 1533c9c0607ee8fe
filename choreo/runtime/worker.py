"""One process's worker: everything a service does with what Kafka gives it. `turn` is the middle of it.

poll (intake.py) -> decode (reading.py) -> claim, handle (delivery.py) -> emit (sends.py) -> claim -> settle (core/engine.py)
-> commit (intake.py). The engine decides, this file acts. Everything here runs on one event loop; the intake thread, the
store's thread and the handlers' threads each meet it at a queue.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import inf
from typing import Any, Literal

from choreo import failpoint
from choreo.broker import Broker
from choreo.codec import Codec
from choreo.core.engine import GONE, Delivery, Engine, Partition, Route
from choreo.core.retry import GiveUp, RetryAfter
from choreo.errors import (
    BrokerError,
    ConfigurationError,
    DecodeError,
    HandlerTimeoutError,
    PermanentError,
    StateError,
    StoreError,
    TransientError,
    told,
)
from choreo.handler import Failure, HandlerSpec
from choreo.letter import LetterState
from choreo.runtime.claims import Claims
from choreo.runtime.dead_letters import DeadLetters, describe, error_type, event_type_of
from choreo.runtime.delivery import (
    DONE,
    WAITING,
    Done,
    Duplicate,
    Emitted,
    Failed,
    Outcome,
    Waiting,
    Wiring,
    deliver,
    recover,
)
from choreo.runtime.emitting import Emitter
from choreo.runtime.feeding import Feeding
from choreo.runtime.history import History
from choreo.runtime.intake import Intake
from choreo.runtime.membership import Membership
from choreo.runtime.reading import Reader
from choreo.runtime.replays import Replays
from choreo.runtime.sends import Sends
from choreo.runtime.threads import Asides, Threads
from choreo.store import Store
from choreo.telemetry.counters import Counters
from choreo.telemetry.tracing import Tracing

_log = logging.getLogger("choreo.worker")

TURNS_BEFORE_YIELD = 64
TICK_S = 0.02
COMMIT_EVERY_S = 0.2
READERS = 4
"""Threads that read what choreo itself has written, at once."""
CANCEL_S = 1.0
"""How long a stop waits for tasks that it cancelled."""
THREAD_QUEUE = 4
"""Deliveries handed to the threads, as a multiple of their number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a worker is to run: a Service, with everything looked up and nothing opened."""

    service: str
    group: str
    version: str
    specs: Sequence[HandlerSpec]
    codec: Codec
    store: Store | None
    names: Callable[[str], str]
    start: Literal["earliest", "latest", "refuse"] | datetime = "earliest"
    accept_lost_offsets: bool = False
    concurrency: int = 256
    threads: int = 32
    drain_s: float = 25.0
    revoke_s: float = 8.0
    strict: bool = False
    tracing: Any = field(default=None, repr=False)


class _Slot:
    """One task that calls handlers: what it runs, since when, and why it was cut short."""

    __slots__ = ("cut", "delivery", "since_s", "task")

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self.since_s = 0.0
        self.cut: Literal["timeout", "revoked"] | None = None
        self.task: asyncio.Task[None] | None = None


class Worker:
    """A running member of a service's group. Owner: the event loop that started it. `start`, then `stop` or `failure`."""

    def __init__(self, plan: Plan, broker: Broker) -> None:
        self.plan = plan
        self.counters = Counters()
        self.engine = Engine()
        self.broker = broker
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Ends with an exception when the worker can't go on; whoever runs the worker waits for it."""
        self.trouble: BaseException | None = None
        """What is being waited out just now; None when all is well."""
        self.stop_by = inf
        """When a stop's time to drain is over (the loop's clock); what comes after it drains no more."""
        self._loop = asyncio.get_running_loop()
        self._routes = [_route(spec) for spec in plan.specs]
        self.reader = Reader(list(zip(plan.specs, self._routes, strict=True)), plan.codec, plan.names, self.counters, strict=plan.strict)
        self.sends = Sends(broker.producer(), self.counters, self.failed)
        self._claims = None if plan.store is None else Claims(plan.store, self.counters, self._settle)
        self._wiring = Wiring(
            plan.service,
            {spec.index: spec for spec in plan.specs},
            Emitter(plan.service, plan.codec, plan.names),
            self._claims,
            Tracing(plan.group, plan.tracing),
        )
        self.history = History(plan.service, plan.names, broker, self.sends, Asides(READERS).run)
        self._letters: DeadLetters | None = None
        self.replays = Replays(self)
        self.membership = Membership(self)
        self._threads = Threads(plan.threads, self._wiring, self._thread_ended, self.failed)
        self._asides = Asides(plan.threads)
        self._on_threads = 0
        self._feeding_threads = False
        self.intake = Intake(lambda: broker.consumer(plan.group), self.reader.topics, self.membership)
        self.feeding = Feeding(self.engine, self.reader, self._claims, self.intake, self.counters, received=self.received)
        self._slots = [_Slot() for _ in range(plan.concurrency)]
        self._idle: list[asyncio.Future[None]] = []
        self._kicked = False
        self._yielding = 0
        self._recoveries: set[_Slot] = set()
        self._told_stuck: dict[int, Delivery] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._committed_at = 0.0
        self._changed = asyncio.Event()
        self._drains = 0
        self.ending = False
        """Whether a cancelled task is the worker's own end, and no handler's doing."""
        self.clean = True
        """Whether, at the last stop, everything that ran came to its end."""

    # ---- starting and stopping --------------------------------------------------------------------------------------

    async def start(self, *, consume: bool = True) -> None:
        """Opens what is needed and joins the group. Raises ChoreoError when something is not as it must be."""
        if self._claims is not None:
            await self._claims.open(self.plan.group)
        if not consume or not self.reader.topics:
            return
        await self.history.open(known={name for spec in self.plan.specs for name in (spec.name, *spec.aliases)})
        self._letters = DeadLetters(self.plan.service, self.plan.version, self.sends, self.plan.names, self.history.state_partitions)
        for slot in self._slots:
            slot.task = self._spawn(self.turn(slot))
        self.run_beside(self.feeding.run())
        self.run_beside(self._tick())
        self.replays.start()
        self.intake.start()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() and not self.ending:
            self.failed(StateError("a task of the worker was cancelled by somebody else; what it had under way is not settled"))
            # Perhaps by the end of the loop itself, which waits for all of them.
            self._end()
        elif not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    def _end(self) -> None:
        self.ending = True
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> bool:
        """Drains within `drain_s`, commits, leaves the group; whether everything that ran came to its end."""
        try:
            return await self._stop()
        finally:
            self._end()

    async def _stop(self) -> bool:
        deadline = self.stop_by = self._loop.time() + self.plan.drain_s
        clean = True
        if self.intake.started:
            if failpoint.ACTIVE:
                failpoint.hit("in_drain")
            clean = await self.membership.drain(self.engine.stop(list(self.engine.partitions)), deadline)
            self.intake.stop()
            clean = await self.intake.join(deadline + self.plan.revoke_s - self._loop.time()) and clean
            await self.membership.marked()
        await self.replays.close()
        self._end()
        if self._tasks:
            # A handler may ignore that; it must not hold us.
            await asyncio.wait(self._tasks, timeout=CANCEL_S)
        self._threads.close()
        await self.sends.drain(max(0.5, min(5.0, deadline - self._loop.time())))
        self.sends.close(0.5)
        if self._claims is not None:
            await self._claims.close()
        return clean

    def failed(self, error: BaseException) -> None:
        """The worker can't go on: it leaves the group, and whoever runs it reads why."""
        if not self.failure.done():
            self.failure.set_exception(error)
            if self.intake.started:
                self.intake.stop()

    @property
    def may_commit(self) -> bool:
        """Whether what the engine says can be believed: not after an error that must not happen."""
        error = self.failure.exception() if self.failure.done() else None
        return error is None or isinstance(error, BrokerError | StoreError | ConfigurationError)

    # ---- the walk -----------------------------------------------------------------------------------------------------

    async def turn(self, slot: _Slot) -> None:
        """One of `concurrency` tasks: takes what is ready, delivers it, concludes; the whole framework on one page."""
        turns = 0
        while True:
            delivery = self.engine.take()
            if delivery is None:
                turns = 0
                await self._rest()
                continue
            if self.engine.ready and not self._kicked:
                self._kicked = True
                self._loop.call_soon(self._kick)
            slot.delivery, slot.since_s = delivery, self._loop.time()
            outcome: Outcome | None
            try:
                outcome = await deliver(delivery, self._wiring)
            except asyncio.CancelledError:
                outcome = self._cut_short(slot, delivery)
            slot.delivery = None
            if slot.cut is not None or (slot.task is not None and slot.task.cancelling()):
                await self._forget_cut(slot)
            if outcome is DONE and self._claims is None:
                self._settle(delivery)
            elif outcome is not None:
                self.conclude(delivery, outcome)
            if self.ending:
                return  # a handler swallowed the cancellation that was the worker's
            turns += 1
            if turns >= TURNS_BEFORE_YIELD:
                turns = 0
                self.sends.poll_now()
                self._yielding += 1
                await asyncio.sleep(0)
                self._yielding -= 1

    def conclude(self, delivery: Delivery, outcome: Outcome) -> None:
        """Acts on what became of an attempt: emits, claims, settles, retries, or writes a letter."""
        match outcome:
            case Done():
                self._succeeded(delivery)
            case Emitted(records):
                self.counters.emitted += len(records)
                self.sends.send(records, lambda error, _: self._acknowledged(delivery, error))
            case Duplicate():
                self.counters.duplicates += 1
                self._settle(delivery, duplicate=True)
            case Waiting():
                pass
            case Failed(error):
                self._failed_attempt(delivery, error)

    def _acknowledged(self, delivery: Delivery, error: BrokerError | None) -> None:
        if error is not None:
            # The record can never be written (too large): the handler's failure, and a final one.
            self._failed_attempt(delivery, _unwritable(error))
            return
        if failpoint.ACTIVE:
            failpoint.hit("after_emits_ack")
        self._succeeded(delivery)

    def _succeeded(self, delivery: Delivery) -> None:
        """The handler is through and its emits are acknowledged: claim it, then settle."""
        if self._claims is None:
            self._settle(delivery)
        else:
            # Also when its partition has another owner by now: the effect is there, so the claim must be, too.
            self._claims.add(delivery)

    def _settle(self, delivery: Delivery, *, duplicate: bool = False, letter: LetterState | None = None) -> bool:
        """It has come to its end; False when it came too late to count."""
        self._end_claim(delivery)
        if not self.engine.settle(delivery):
            self.counters.late += 1
            return False
        if letter is None and not duplicate:
            self.counters.handled += 1
        if delivery.run is not None:
            self.replays.ended(delivery, duplicate=duplicate, letter=letter)
        partition = delivery.partition
        if partition.in_flight <= partition.wake_at:
            self.feeding.room(partition)
        if self._drains:
            self._changed.set()
        if self.engine.ready and not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)
        if self.engine.ready_on_threads:
            self._feed_threads()
        return True

    # ---- failing ------------------------------------------------------------------------------------------------------

    def _failed_attempt(self, delivery: Delivery, error: Exception) -> None:
        if isinstance(error, StoreError):
            self._end_claim(delivery)
            self._store_failed(delivery, error)
            return
        decision = self.engine.fail(delivery, error, now_s=self._loop.time(), dice=random.random())
        self._changed.set()
        if not isinstance(decision, GiveUp):
            # One that is given up keeps its claim till it has settled: no duplicate is to succeed while it is recovered from.
            self._end_claim(delivery)
        if decision is None:
            self.counters.late += 1
            return
        first = delivery.failed_at = delivery.failed_at or datetime.now(UTC)
        where = f"{delivery.route.name}: {describe(delivery, error)}"
        match decision:
            case RetryAfter(delay_s):
                self.counters.retried += 1
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
                spec = self._wiring.specs.get(delivery.route.index)
                if spec is not None and spec.recovers and not isinstance(error, DecodeError):
                    slot = _Slot()
                    slot.delivery, slot.task = delivery, self._spawn(self._recover(slot, delivery, error, first, permanent))
                    self._recoveries.add(slot)
                    slot.task.add_done_callback(lambda _: self._recoveries.discard(slot))
                else:
                    self._die(delivery, error, first)

    async def _recover(self, slot: _Slot, delivery: Delivery, error: Exception, first: datetime, permanent: bool) -> None:
        failure = Failure(error_type(error), told(error), delivery.attempts, permanent, first, datetime.now(UTC))
        try:
            outcome = await recover(delivery, failure, self._wiring, self._asides.run)
        except asyncio.CancelledError:
            if self.ending:
                raise
            if slot.cut is not None:
                self._release(delivery)
                return
            outcome = Failed(TransientError("recover raised CancelledError by itself"))
        if delivery.partition.state is GONE:
            # Whoever has it now begins it anew: what this one would emit might contradict that.
            self._settle(delivery)
            return
        if isinstance(outcome, Failed):
            self._recover_failed(delivery, error, outcome.error, first)
            return
        if not isinstance(outcome, Emitted):
            self._recovered(delivery, error)
            return

        def acknowledged(problem: BrokerError | None, _: object) -> None:
            # Not as a handler's own emits: what can never be written must not be recovered from once more.
            if problem is not None:
                self._recover_failed(delivery, error, _unwritable(problem), first)
            else:
                self._recovered(delivery, error)

        self.counters.emitted += len(outcome.records)
        self.sends.send(outcome.records, acknowledged)

    def _recover_failed(self, delivery: Delivery, error: Exception, problem: Exception, first: datetime) -> None:
        _log.error("%s: recover failed as well: %s", delivery.route.name, told(problem))
        problem.__context__ = error
        self._die(delivery, problem, first)

    def _recovered(self, delivery: Delivery, error: Exception) -> None:
        self.counters.recovered += 1
        _log.warning("%s: %s: recovered after attempt %d (%s)", delivery.route.name, delivery.record.origin, delivery.attempts, told(error))
        self._succeeded(delivery)

    def _die(self, delivery: Delivery, error: Exception, first: datetime) -> None:
        assert self._letters is not None

        def safe(state: LetterState) -> None:
            if not self._settle(delivery, letter=state):
                return
            self.counters.dead_lettered += 1
            _log.error(
                "%s: %s: dead-lettered after attempt %d as %s (%s)  -> choreo dlq show %s %s",
                delivery.route.name,
                describe(delivery, error),
                delivery.attempts,
                state.dlq,
                error_type(error),
                self.plan.service,
                state.event_id,
            )

        _log.debug("%s dies: %s", event_type_of(delivery), told(error))
        self._letters.write(delivery, error, first, safe)

    def _store_failed(self, delivery: Delivery, error: StoreError) -> None:
        self.engine.postpone(delivery, until_s=self._loop.time() + 1.0)
        if not error.retriable:
            self.failed(error)

    def _cut_short(self, slot: _Slot, delivery: Delivery) -> Outcome | None:
        """A CancelledError came out of a handler: ours for a timeout or a revoke, the worker's end, or the handler's own."""
        if self.ending:
            raise asyncio.CancelledError
        if slot.cut is None:
            return Failed(TransientError("handle raised CancelledError by itself"))
        if slot.cut == "timeout":
            spec = self._wiring.specs[delivery.route.index]
            return Failed(HandlerTimeoutError(f"cancelled after timeout_s={spec.timeout_s:g}"))
        self._release(delivery)
        return None

    async def _forget_cut(self, slot: _Slot) -> None:
        # Also when the handler swallowed the cancellation and answered, or cancelled itself: the next delivery is not to pay for it.
        slot.cut = None
        while slot.task is not None and slot.task.uncancel():
            pass
        try:
            await asyncio.sleep(0)  # before Python 3.13 what is still pending comes all the same
        except asyncio.CancelledError:
            pass

    def _release(self, delivery: Delivery) -> None:
        """It was cut short by us: neither failed nor counted."""
        self._end_claim(delivery)
        self.engine.postpone(delivery, until_s=self._loop.time())
        self._changed.set()

    def _end_claim(self, delivery: Delivery) -> None:
        if self._claims is not None:
            for waiting in self._claims.end(delivery):
                self.engine.postpone(waiting, until_s=0.0)
            # What was looked up for it is not asked again: others may handle its duplicate while it waits.
            delivery.note = None

    def run_beside(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs it beside everything else; its failure is the worker's."""
        _ = self._spawn(coroutine)

    # ---- who runs what ------------------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        resting: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(resting)
        try:
            await resting
        finally:
            if resting in self._idle:
                self._idle.remove(resting)

    def _wake(self) -> None:
        """Wakes one worker; the one that runs wakes the next when it has to wait for something (see `_kick`)."""
        if self._idle:
            resting = self._idle.pop()
            if not resting.done():
                resting.set_result(None)

    def _kick(self) -> None:
        # Runs when the workers that are awake wait for something. One that only made room for the loop goes on by
        # itself; else whoever can run beside those that wait is woken now.
        self._kicked = False
        if self._yielding:
            return
        for _ in range(min(len(self.engine.ready), len(self._idle), 16)):
            self._wake()

    def _feed_threads(self) -> None:
        if self._feeding_threads:
            return  # a duplicate settled within the loop below, which goes on by itself
        self._feeding_threads = True
        try:
            bound = self.plan.threads * THREAD_QUEUE
            while self._on_threads < bound and (delivery := self.engine.take(on_thread=True)) is not None:
                self._feed_thread(delivery)
        finally:
            self._feeding_threads = False

    def _feed_thread(self, delivery: Delivery) -> None:
        if type(delivery.event) is DecodeError:
            self.conclude(delivery, Failed(delivery.event))
            return
        if self._claims is not None:
            if not self._claims.is_fresh(delivery):
                self._on_threads += 1
                self.run_beside(self._look_up_then_thread(delivery))
                return
            if not self._begin_claim(delivery):
                return
        self._on_threads += 1
        self._threads.put(delivery)

    def _begin_claim(self, delivery: Delivery) -> bool:
        assert self._claims is not None
        claimed = self._claims.begin(delivery)
        if claimed is not False:
            self.conclude(delivery, Duplicate() if claimed else WAITING)
        return claimed is False

    async def _look_up_then_thread(self, delivery: Delivery) -> None:
        assert self._claims is not None
        await self._claims.look_up((delivery,))
        if self._begin_claim(delivery):
            self._threads.put(delivery)
        else:
            self._on_threads -= 1
            self._feed_threads()

    def _thread_ended(self, delivery: Delivery, outcome: Outcome | None) -> None:
        self._on_threads -= 1
        if outcome is None:
            self._release(delivery)
        else:
            self.conclude(delivery, outcome)
        if self.engine.ready_on_threads:
            self._feed_threads()

    # ---- what the others ask for ---------------------------------------------------------------------------------------

    def received(self) -> None:
        """The engine got something to run."""
        if self.engine.ready:
            self._wake()
        if self.engine.ready_on_threads:
            self._feed_threads()

    def replay(self, delivery: Delivery) -> None:
        """A letter is to run again, in the lane of its key."""
        self.engine.replay(delivery)
        self.received()

    def cut_short(self, partitions: Sequence[Partition]) -> None:
        """Cancels what handlers do for these partitions, as far as it is async; neither failed nor counted."""
        for slot in (*self._slots, *self._recoveries):
            if slot.delivery is not None and slot.delivery.partition in partitions and slot.task is not None and slot.cut != "revoked":
                slot.cut = "revoked"
                slot.task.cancel()

    @contextmanager
    def draining(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever a delivery ends, while it is asked for."""
        self._drains += 1
        try:
            yield self._changed
        finally:
            self._drains -= 1

    @property
    def letters(self) -> DeadLetters:
        assert self._letters is not None
        return self._letters

    # ---- the clock ----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Retries that are due, handlers that take too long, partitions to pause, offsets to commit."""
        while True:
            now_s = self._loop.time()
            self.engine.tick(now_s)
            self.received()
            self._cancel_late(now_s)
            self._tell_stuck()
            self.feeding.pause_slow()
            if now_s - self._committed_at >= COMMIT_EVERY_S:
                self._committed_at = now_s
                self._commit()
                self.sends.hear()
            if self._claims is not None:
                self._claims.beat()
                if self._claims.broken is not None:
                    raise self._claims.broken
            await asyncio.sleep(TICK_S)

    def _cancel_late(self, now_s: float) -> None:
        for slot in self._slots:
            delivery = slot.delivery
            if delivery is None or slot.cut == "revoked" or slot.task is None:
                continue
            if self._claims is not None and not self._claims.runs(delivery):
                slot.since_s = now_s  # it waits for the store: not the handler's time
                continue
            spec = self._wiring.specs.get(delivery.route.index)
            if spec is not None and now_s - slot.since_s > spec.timeout_s:
                if slot.cut == "timeout":
                    self.counters.stuck += 1
                    _log.warning(
                        "%s: %s goes on though it was cancelled; its key waits; cancelled again", spec.name, delivery.record.origin
                    )
                slot.cut, slot.since_s = "timeout", now_s
                slot.task.cancel()

    def stuck(self) -> list[str]:
        """Sync handlers past their `timeout_s`: they can't be cancelled, their lanes wait."""
        now_s = time.monotonic()
        found = []
        for delivery, since_s in list(self._threads.running.values()):
            spec = self._wiring.specs[delivery.route.index]
            if now_s - since_s > spec.timeout_s:
                found.append(f"{spec.name} has run {now_s - since_s:.0f} s for {delivery.record.origin} (timeout_s={spec.timeout_s:g})")
        return found

    def _tell_stuck(self) -> None:
        """Says once of each that it takes too long: nobody can end it, and its key waits."""
        now_s = time.monotonic()
        for number, (delivery, since_s) in list(self._threads.running.items()):
            spec = self._wiring.specs[delivery.route.index]
            if now_s - since_s > spec.timeout_s and self._told_stuck.get(number) is not delivery:
                self._told_stuck[number] = delivery
                self.counters.stuck += 1
                _log.warning(
                    "%s: %s runs longer than timeout_s=%g; a plain def can't be cut short, so its key and a thread wait for it",
                    spec.name,
                    delivery.record.origin,
                    spec.timeout_s,
                )

    def _commit(self) -> None:
        if not self.may_commit:
            return
        offsets = self.engine.commits()
        if offsets:
            self.intake.commit(offsets)


def _route(spec: HandlerSpec) -> Route:
    return Route(
        index=spec.index,
        name=spec.name,
        retry=spec.retry,
        identity=spec.identity,
        ordered=spec.ordered,
        on_thread=spec.on_thread,
        max_concurrency=spec.max_concurrency,
    )


def _unwritable(error: BrokerError) -> Exception:
    made = PermanentError(f"what it emitted can't be written: {error}")
    made.__cause__ = error
    return made
