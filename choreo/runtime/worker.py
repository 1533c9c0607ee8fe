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
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from choreo import failpoint
from choreo.broker import Broker, CommitResult, Edge, Start
from choreo.codec import Codec
from choreo.core.engine import GONE, Delivery, Engine, Partition, Route
from choreo.core.retry import GiveUp, RetryAfter
from choreo.core.start import OffsetsLost, decide_start
from choreo.errors import BrokerError, DecodeError, HandlerTimeoutError, PermanentError, StoreError, TransientError
from choreo.handler import Failure, HandlerSpec
from choreo.letter import LetterState
from choreo.record import Batch, TopicPartition
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
from choreo.runtime.history import History
from choreo.runtime.intake import Intake
from choreo.runtime.reading import Reader
from choreo.runtime.replays import Replays
from choreo.runtime.sends import Sends
from choreo.runtime.threads import Threads
from choreo.store import Store
from choreo.telemetry.counters import Counters
from choreo.telemetry.tracing import Tracing

_log = logging.getLogger("choreo.worker")

TURNS_BEFORE_YIELD = 64
TICK_S = 0.02
COMMIT_EVERY_S = 0.2
HELD_BEFORE_PAUSE_S = 0.25
"""A pause throws away what librdkafka has fetched ahead: only for a partition that has taken nothing for so long."""
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
    """One worker task: what it runs, since when, and why it was cut short."""

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
        self._loop = asyncio.get_running_loop()
        self._routes = [_route(spec) for spec in plan.specs]
        self._reader = Reader(list(zip(plan.specs, self._routes, strict=True)), plan.codec, plan.names, self.counters, strict=plan.strict)
        self._sends = Sends(broker.producer(), self.counters)
        self._claims = None if plan.store is None else Claims(plan.store, self.counters, self._settle)
        self._wiring = Wiring(
            plan.service,
            {spec.index: spec for spec in plan.specs},
            Emitter(plan.service, plan.codec, plan.names),
            self._claims,
            Tracing(plan.service, plan.tracing),
        )
        self._history = History(plan.service, plan.names, broker, self._sends)
        self._letters: DeadLetters | None = None
        self._replays = Replays(self)
        self._threads = Threads(plan.threads, self._wiring, self._thread_ended)
        self._on_threads = 0
        self._intake: Intake | None = None
        self._slots = [_Slot() for _ in range(plan.concurrency)]
        self._idle: list[asyncio.Future[None]] = []
        self._kicked = False
        self._yielding = 0
        self._held: dict[TopicPartition, deque[Batch]] = {}
        self._held_since: dict[TopicPartition, float] = {}
        self._paused: set[TopicPartition] = set()
        self._arrival = asyncio.Event()
        self._first_failures: dict[int, datetime] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._committed_at = 0.0
        self._changed = asyncio.Event()
        self._draining = False
        self.clean = True
        """Whether, at the last stop, everything that ran came to its end."""

    # ---- starting and stopping --------------------------------------------------------------------------------------

    async def start(self, *, consume: bool = True) -> None:
        """Opens what is needed and joins the group. Raises ChoreoError when something is not as it must be."""
        if self._claims is not None:
            await self._claims.open(self.plan.service)
        if not consume or not self._reader.topics:
            return
        await self._history.open(known={name for spec in self.plan.specs for name in (spec.name, *spec.aliases)})
        self._letters = DeadLetters(self.plan.service, self.plan.version, self._sends, self.plan.names, self._history.state_partitions)
        for slot in self._slots:
            slot.task = self._spawn(self.turn(slot))
        self._feeding = self._spawn(self._feed())
        self._ticking = self._spawn(self._tick())
        self._replays.start()
        self._intake = Intake(lambda: self.broker.consumer(self.plan.group), self._reader.topics, self)
        self._intake.start()

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        task.add_done_callback(self._task_ended)
        self._tasks.append(task)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed(error)

    async def stop(self) -> bool:
        """Drains within `drain_s`, commits, leaves the group; whether everything that ran came to its end."""
        deadline = self._loop.time() + self.plan.drain_s
        self._draining = True
        clean = True
        if self._intake is not None:
            if failpoint.ACTIVE:
                failpoint.hit("in_drain")
            clean = await self._drain(self.engine.stop(list(self.engine.partitions)), deadline)
            self._intake.stop()
            clean = await self._intake.join(deadline + self.plan.revoke_s - self._loop.time()) and clean
        await self._replays.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.close()
        self._sends.close(max(0.5, min(5.0, deadline - self._loop.time())))
        if self._claims is not None:
            await self._claims.close()
        return clean

    def failed(self, error: BaseException) -> None:
        """The worker can't go on: whoever runs it reads why."""
        if not self.failure.done():
            self.failure.set_exception(error)

    def troubled(self, error: BrokerError) -> None:
        """The consumer met an error that it waits out."""
        self.counters.broker_errors += 1
        if self.trouble is None or str(self.trouble) != str(error):
            _log.warning("%s", error)
        self.trouble = error

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
            if slot.cut is not None:
                self._forget_cut(slot)
            if outcome is not None:
                self.conclude(delivery, outcome)
            turns += 1
            if turns >= TURNS_BEFORE_YIELD:
                turns = 0
                self._sends.poll_now()
                self._yielding += 1
                await asyncio.sleep(0)
                self._yielding -= 1

    def conclude(self, delivery: Delivery, outcome: Outcome) -> None:
        """Acts on what became of an attempt: emits, claims, settles, retries, or writes a letter."""
        if outcome is DONE:
            self._succeeded(delivery)
            return
        match outcome:
            case Done():
                self._succeeded(delivery)
            case Emitted(records):
                self.counters.emitted += len(records)
                self._sends.send(records, lambda error, _: self._acknowledged(delivery, error))
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

    def _settle(self, delivery: Delivery, *, duplicate: bool = False, letter: LetterState | None = None) -> None:
        self._end_claim(delivery)
        if not self.engine.settle(delivery):
            self.counters.late += 1
            return
        if self._first_failures:
            self._first_failures.pop(id(delivery), None)
        if letter is None and not duplicate:
            self.counters.handled += 1
        if delivery.run is not None:
            self._replays.ended(delivery, duplicate=duplicate, letter=letter)
        if self._held or self._paused or self._draining:
            self._after_settling(delivery.partition)
        if self.engine.ready and not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)
        if self.engine.ready_on_threads:
            self._feed_threads()

    # ---- failing ------------------------------------------------------------------------------------------------------

    def _failed_attempt(self, delivery: Delivery, error: Exception) -> None:
        self._end_claim(delivery)
        if isinstance(error, StoreError):
            self._store_failed(delivery, error)
            return
        decision = self.engine.fail(delivery, error, now_s=self._loop.time(), dice=random.random())
        self._changed.set()
        if decision is None:
            self.counters.late += 1
            return
        first = self._first_failures.setdefault(id(delivery), datetime.now(UTC))
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
                    self._spawn_once(self._recover(delivery, error, first, permanent))
                else:
                    self._die(delivery, error, first)

    async def _recover(self, delivery: Delivery, error: Exception, first: datetime, permanent: bool) -> None:
        failure = Failure(error_type(error), str(error), delivery.attempts, permanent, first, datetime.now(UTC))
        outcome = await recover(delivery, failure, self._wiring)
        if isinstance(outcome, Failed):
            _log.error("%s: recover failed as well: %s", delivery.route.name, outcome.error)
            outcome.error.__context__ = error
            self._die(delivery, outcome.error, first)
            return
        self.counters.recovered += 1
        _log.warning("%s: %s: recovered after %d attempts (%s)", delivery.route.name, delivery.record.origin, delivery.attempts, error)
        if self._claims is not None and delivery.note is not None:
            self._claims.begin(delivery)
        self.conclude(delivery, outcome)

    def _die(self, delivery: Delivery, error: Exception, first: datetime) -> None:
        assert self._letters is not None

        def safe(state: LetterState) -> None:
            self.counters.dead_lettered += 1
            _log.error(
                "%s: %s: dead-lettered after %d attempts as %s (%s)  -> choreo dlq show %s %s",
                delivery.route.name,
                describe(delivery, error),
                delivery.attempts,
                state.dlq,
                error_type(error),
                self.plan.service,
                state.event_id,
            )
            self._settle(delivery, letter=state)

        _log.debug("%s dies: %s", event_type_of(delivery), error)
        self._letters.write(delivery, error, first, safe)

    def _store_failed(self, delivery: Delivery, error: StoreError) -> None:
        self.engine.postpone(delivery, until_s=self._loop.time() + 1.0)
        if not error.retriable:
            self.failed(error)

    def _cut_short(self, slot: _Slot, delivery: Delivery) -> Outcome | None:
        """A CancelledError came out of a handler: ours for a timeout or a revoke, the worker's end, or the handler's own."""
        task = asyncio.current_task()
        assert task is not None
        if slot.cut is None:
            if task.cancelling():
                raise asyncio.CancelledError
            return Failed(TransientError("handle raised CancelledError by itself"))
        if slot.cut == "timeout":
            spec = self._wiring.specs[delivery.route.index]
            return Failed(HandlerTimeoutError(f"cancelled after timeout_s={spec.timeout_s:g}"))
        self._release(delivery)
        return None

    def _forget_cut(self, slot: _Slot) -> None:
        # Also when the handler swallowed the cancellation and answered: the next delivery is not to pay for it.
        slot.cut = None
        task = asyncio.current_task()
        if task is not None:
            task.uncancel()

    def _release(self, delivery: Delivery) -> None:
        """It was cut short by us: neither failed nor counted."""
        self._end_claim(delivery)
        self.engine.postpone(delivery, until_s=self._loop.time())
        self._changed.set()

    def _end_claim(self, delivery: Delivery) -> None:
        if self._claims is not None:
            for waiting in self._claims.end(delivery):
                self.engine.postpone(waiting, until_s=0.0)

    def _spawn_once(self, coroutine: Any) -> None:
        task = self._spawn(coroutine)
        task.add_done_callback(self._tasks.remove)

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
        bound = self.plan.threads * THREAD_QUEUE
        while self._on_threads < bound and (delivery := self.engine.take(on_thread=True)) is not None:
            if type(delivery.event) is DecodeError:
                self.conclude(delivery, Failed(delivery.event))
                continue
            if self._claims is not None:
                if not self._claims.is_fresh(delivery):
                    self._spawn_once(self._look_up_then_thread(delivery))
                    continue
                if not self._begin_claim(delivery):
                    continue
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
            self._on_threads += 1
            self._threads.put(delivery)

    def _thread_ended(self, delivery: Delivery, outcome: Outcome | None) -> None:
        self._on_threads -= 1
        if outcome is None:
            self._release(delivery)
        else:
            self.conclude(delivery, outcome)
        if self.engine.ready_on_threads:
            self._feed_threads()

    # ---- coming in ----------------------------------------------------------------------------------------------------

    def arrived(self) -> None:
        self._arrival.set()

    async def _feed(self) -> None:
        """Gives the engine what the intake handed over, in order, as far as there is room."""
        assert self._intake is not None
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            await self._feed_held()
            while self._intake.inbox:
                batch = self._intake.inbox.popleft()
                partition = self.engine.partitions.get(batch.partition)
                if partition is None:
                    self._intake.accept(len(batch.records))
                elif batch.partition in self._held or not self.engine.has_room(partition, len(batch.records)):
                    self._held.setdefault(batch.partition, deque()).append(batch)
                    self._held_since.setdefault(batch.partition, self._loop.time())
                    if batch.partition in self._paused:
                        self._intake.accept(len(batch.records))
                else:
                    self._intake.accept(len(batch.records))
                    await self._receive(partition, batch)

    async def _feed_held(self) -> None:
        assert self._intake is not None
        for wanted in list(self._held):
            partition = self.engine.partitions.get(wanted)
            batches = self._held[wanted]
            while partition is not None and batches and self.engine.has_room(partition, len(batches[0].records)):
                batch = batches.popleft()
                if wanted not in self._paused:
                    self._intake.accept(len(batch.records))
                self._held_since[wanted] = self._loop.time()
                await self._receive(partition, batch)
            if not batches and self._held.get(wanted) is batches:
                del self._held[wanted]
                del self._held_since[wanted]

    async def _receive(self, partition: Partition, batch: Batch) -> None:
        read = self._reader.read
        events = [(record.offset, read(record, partition)) for record in batch.records]
        if self._claims is not None:
            try:
                await self._claims.look_up(d for _, deliveries in events for d in deliveries if type(d.event) is not DecodeError)
            except StoreError as error:
                self.failed(error)
                return
        if partition.state is GONE:
            return
        self.counters.received += len(events)
        receive = self.engine.receive
        for offset, deliveries in events:
            receive(partition, offset, deliveries)
        if self.engine.ready:
            self._wake()
        if self.engine.ready_on_threads:
            self._feed_threads()

    def replay(self, delivery: Delivery) -> None:
        """A letter is to run again, in the lane of its key."""
        self.engine.replay(delivery)
        if self.engine.ready:
            self._wake()
        if self.engine.ready_on_threads:
            self._feed_threads()

    @property
    def reader(self) -> Reader:
        return self._reader

    @property
    def letters(self) -> DeadLetters:
        assert self._letters is not None
        return self._letters

    @property
    def sends(self) -> Sends:
        return self._sends

    def _after_settling(self, partition: Partition) -> None:
        self._changed.set()
        if partition.id in self._held and self.engine.has_room(partition, len(self._held[partition.id][0].records)):
            self._arrival.set()
        elif partition.id in self._paused and partition.id not in self._held and partition.in_flight <= 250 and self._intake is not None:
            self._paused.discard(partition.id)
            self._intake.resume(partition.id)

    # ---- the clock ----------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        """Retries that are due, handlers that take too long, partitions to pause, offsets to commit."""
        while True:
            now_s = self._loop.time()
            self.engine.tick(now_s)
            if self.engine.ready:
                self._wake()
            if self.engine.ready_on_threads:
                self._feed_threads()
            self._cancel_late(now_s)
            self._pause_slow(now_s)
            if now_s - self._committed_at >= COMMIT_EVERY_S:
                self._committed_at = now_s
                self._commit()
            if self._claims is not None and self._claims.broken is not None:
                raise self._claims.broken
            await asyncio.sleep(TICK_S)

    def _cancel_late(self, now_s: float) -> None:
        for slot in self._slots:
            delivery = slot.delivery
            if delivery is not None and slot.cut is None and slot.task is not None:
                spec = self._wiring.specs.get(delivery.route.index)
                if spec is not None and now_s - slot.since_s > spec.timeout_s:
                    slot.cut = "timeout"
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

    def _pause_slow(self, now_s: float) -> None:
        assert self._intake is not None
        for partition, since_s in self._held_since.items():
            if partition not in self._paused and now_s - since_s > HELD_BEFORE_PAUSE_S:
                self._paused.add(partition)
                self._intake.pause(partition)
                self._intake.accept(sum(len(batch.records) for batch in self._held[partition]))

    def _commit(self) -> None:
        assert self._intake is not None
        offsets = self.engine.commits()
        if offsets:
            self._intake.commit(offsets)

    def committed(self, results: Sequence[CommitResult]) -> None:
        for result in results:
            self.counters.commits += 1
            if result.error is None:
                self.trouble = None
                continue
            self.counters.commit_errors += 1
            _log.log(
                logging.WARNING if result.error.retriable else logging.ERROR, "%s; the events may come again, none is lost", result.error
            )

    # ---- the group's decisions --------------------------------------------------------------------------------------

    async def assigned(self, committed: Mapping[TopicPartition, int | None]) -> Mapping[TopicPartition, Start]:
        self.counters.rebalances += 1
        starts: dict[TopicPartition, Start] = {p: offset for p, offset in committed.items() if offset is not None}
        fresh = [p for p, offset in committed.items() if offset is None]
        if fresh:
            starts.update(await self._first_starts(fresh))
        for partition in starts:
            self.engine.assign(partition)
        _log.info("assigned %s", ", ".join(map(str, sorted(starts))))
        self._replays.assigned(list(starts))
        return starts

    async def _first_starts(self, fresh: Sequence[TopicPartition]) -> dict[TopicPartition, Start]:
        seen = self._history.partitions_at_first
        starts: dict[TopicPartition, Start] = {}
        for partition in fresh:
            decision = decide_start(partition, seen, accept_lost_offsets=self.plan.accept_lost_offsets)
            if isinstance(decision, OffsetsLost):
                raise BrokerError(
                    f"{partition}: group {self.plan.service} has read it before, but its committed offset is gone (expired or deleted); "
                    f"to start by the start policy ({self.plan.start}) all the same: --accept-lost-offsets",
                    code="LOST_OFFSETS",
                    retriable=False,
                )
            starts[partition] = Edge.BEGINNING if decision.at == "beginning" else self._by_policy(partition)
        ends = await self._history.ends([p for p, start in starts.items() if start is Edge.END])
        starts.update(ends)
        await self._history.remember(fresh)
        if ends and self._intake is not None:
            # "latest" is now, not at the next crash: pin it before anything is read.
            self._intake.commit(ends)
        return starts

    def _by_policy(self, partition: TopicPartition) -> Start:
        if isinstance(self.plan.start, datetime):
            return self.plan.start
        if self.plan.start == "refuse":
            raise BrokerError(f'{partition}: no committed offset, and start="refuse"', code="LOST_OFFSETS", retriable=False)
        return Edge.BEGINNING if self.plan.start == "earliest" else Edge.END

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.counters.rebalances += 1
        stopped = self.engine.stop(partitions)
        self._forget_inbox(set(partitions))
        await self._drain(stopped, self._loop.time() + self.plan.revoke_s)
        offsets = self.engine.forget(stopped)
        _log.info("revoked %s", ", ".join(map(str, sorted(partitions))))
        return offsets

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.counters.rebalances += 1
        stopped = self.engine.stop(partitions)
        self._forget_inbox(set(partitions))
        self.engine.forget(stopped)
        self._cancel(stopped)
        _log.warning("lost %s: another member has them; what ran here may run there again", ", ".join(map(str, sorted(partitions))))

    def _forget_inbox(self, gone: set[TopicPartition]) -> None:
        assert self._intake is not None
        kept = [batch for batch in self._intake.inbox if batch.partition not in gone]
        dropped = sum(len(batch.records) for batch in self._intake.inbox) - sum(len(batch.records) for batch in kept)
        self._intake.inbox.clear()
        self._intake.inbox.extend(kept)
        for partition in gone:
            held = self._held.pop(partition, None)
            self._held_since.pop(partition, None)
            if held and partition not in self._paused:
                dropped += sum(len(batch.records) for batch in held)
            self._paused.discard(partition)
        self._intake.accept(dropped)

    async def _drain(self, partitions: Sequence[Partition], deadline: float) -> bool:
        """Waits until all that may still run has settled; cuts short what has not at `deadline`. Whether all had."""
        was, self._draining = self._draining, True
        while not all(partition.drained() for partition in partitions) and self._loop.time() < deadline:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), min(0.05, max(0.0, deadline - self._loop.time())))
            except TimeoutError:
                pass
        self._draining = was
        if all(partition.drained() for partition in partitions):
            return True
        _log.warning("%d deliveries did not end in time; they are cut short and will run again", self.engine.running(partitions))
        self._cancel(partitions)
        await asyncio.sleep(0.01)
        return False

    def _cancel(self, partitions: Sequence[Partition]) -> None:
        for slot in self._slots:
            if slot.delivery is not None and slot.delivery.partition in partitions and slot.task is not None and slot.cut is None:
                slot.cut = "revoked"
                slot.task.cancel()


def _route(spec: HandlerSpec) -> Route:
    return Route(
        index=spec.index,
        name=spec.name,
        retry=spec.retry,
        ordered=spec.ordered,
        on_thread=spec.on_thread,
        max_concurrency=spec.max_concurrency,
    )


def _unwritable(error: BrokerError) -> Exception:
    made = PermanentError(f"what it emitted can't be written: {error}")
    made.__cause__ = error
    return made
