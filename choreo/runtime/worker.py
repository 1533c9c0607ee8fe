"""One process's worker: everything a service does with what Kafka gives it. `turn` is the middle of it.

poll (intake.py) -> decode (reading.py) -> claim, handle (delivery.py) -> emit (sends.py) -> claim -> settle (core/engine.py)
-> commit (intake.py). With effects `kafka`, emit and commit are one, and come before settle (atomic.py). The engine decides, this file acts. Everything here runs on one event loop; the intake thread, the
store's thread and the handlers' threads each meet it at a queue.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain
from math import inf
from typing import Any, Literal

from choreo import failpoint
from choreo.broker import Broker, Part
from choreo.codec import Codec
from choreo.core.engine import Engine
from choreo.core.partition import BURSTS, BURSTS_ON_THREADS, LOOP, THREADS, Delivery, Partition, Route
from choreo.errors import (
    BrokerError,
    ConfigurationError,
    HandlerTimeoutError,
    StateError,
    StoreError,
    TransientError,
)
from choreo.handler import HandlerSpec
from choreo.letter import LetterState
from choreo.record import Committed, Outgoing, TopicPartition
from choreo.runtime.atomic import Atomic
from choreo.runtime.bursts import Bursts
from choreo.runtime.claims import Claims
from choreo.runtime.commits import Commits
from choreo.runtime.dead_letters import DeadLetters
from choreo.runtime.delivery import (
    DONE,
    Done,
    Duplicate,
    Emitted,
    Failed,
    Outcome,
    Slot,
    Waiting,
    Wiring,
    deliver,
)
from choreo.runtime.emitting import Emitter
from choreo.runtime.failures import Failures, unwritable
from choreo.runtime.feeding import Feeding
from choreo.runtime.history import History
from choreo.runtime.intake import Intake
from choreo.runtime.membership import Membership
from choreo.runtime.on_threads import OnThreads
from choreo.runtime.outbox_relay import OutboxRelay
from choreo.runtime.reading import Reader
from choreo.runtime.replays import Replays
from choreo.runtime.sends import Sends
from choreo.runtime.threads import Asides
from choreo.store import Store, Transactional, Transactions
from choreo.telemetry.counters import Counters
from choreo.telemetry.tracing import Tracing

_log = logging.getLogger("choreo.worker")

TURNS_BEFORE_YIELD = 64
TICK_S = 0.02
READERS = 4
"""Threads that read what choreo itself has written, at once."""
CANCEL_S = 1.0
"""How long a stop waits for tasks that it cancelled."""


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
    claims_retention_s: float = inf
    relays: bool = False
    """Whether it publishes the outbox of its store."""
    transactional_id: str = ""
    """Its transactions' id, where effects are `kafka`."""
    own_transactional_id: bool = False
    """Whether a user chose that: another process may have it, too."""
    tracing: Any = field(default=None, repr=False)


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
        self._transactions = _transactions(plan)
        self._routes = [_route(spec) for spec in plan.specs]
        self.reader = Reader(list(zip(plan.specs, self._routes, strict=True)), plan.codec, plan.names, self.counters, strict=plan.strict)
        self.sends = Sends(broker.producer(), self.counters, self.failed)
        self._claims = None if plan.store is None else Claims(plan.store, self.counters, self.settle)
        self.wiring = Wiring(
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
        self.failures = Failures(self, Asides(plan.threads).run)
        self.on_threads = OnThreads(self, self._claims)
        self.intake = Intake(
            lambda: broker.consumer(plan.group), self.reader.topics, self.membership, identifies=bool(plan.transactional_id)
        )
        self.atomic = self._made_atomic()
        self.commits = Commits(self)
        self.bursts = self._made_bursts()
        self.relay = self._made_relay()
        self.feeding = Feeding(
            self.engine, self.reader, self._claims, self.intake, self.counters, received=self.received, ask=self.commits.ask
        )
        self._ready, self._ready_on_threads = self.engine.ready[LOOP], self.engine.ready[THREADS]
        self._slots = [Slot() for _ in range(plan.concurrency)]
        self._idle: list[asyncio.Future[None]] = []
        self._kicked = False
        self._yielding = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.changed = asyncio.Event()
        self._drains = 0
        self.ending = False
        """Whether a cancelled task is the worker's own end, and no handler's doing."""
        self.clean = True
        """Whether, at the last stop, everything that ran came to its end."""

    # ---- starting and stopping --------------------------------------------------------------------------------------

    async def start(self, *, consume: bool = True) -> None:
        """Opens what is needed and joins the group. Raises ChoreoError when something is not as it must be; it may be called
        again after a BrokerError."""
        if self._claims is not None:
            await self._claims.open(self.plan.group)
        if self.relay is not None and not self.relay.started:
            self.relay.started = self.spawn(self.relay.run())
        if not consume or not self.reader.topics:
            return
        if self._claims is not None:
            self.run_beside(self._claims.cleaning(self.plan.claims_retention_s).run())
        if self.atomic is not None:
            await self.atomic.open()
        await self.history.open(known={name for spec in self.plan.specs for name in (spec.name, *spec.aliases)})
        self._letters = DeadLetters(
            self.plan.service, self.plan.version, self.sends, self.plan.names, self.history.state_partitions, self.atomic
        )
        for slot in self._slots:
            slot.task = self.spawn(self.turn(slot))
        if self.atomic is not None:
            self.run_beside(self.atomic.run())
        self.run_beside(self.feeding.run())
        self.run_beside(self._tick())
        self.run_beside(self.membership.watch_topics())
        self.replays.start()
        self.intake.start()

    def _made_atomic(self) -> Atomic | None:
        if not self.plan.transactional_id:
            return None
        transactor = self.broker.transactor(self.plan.transactional_id)
        return Atomic(self, transactor, shared_id=self.plan.own_transactional_id)

    def _made_bursts(self) -> dict[int, Bursts]:
        claims = self._claims
        return {} if claims is None else {queue: Bursts(self, made, queue, claims) for queue, made in self._transactions.items()}

    def _made_relay(self) -> OutboxRelay | None:
        store: object = self.plan.store
        if not self.plan.relays or not isinstance(store, Transactional):
            return None
        return OutboxRelay(store.outbox(self.plan.group), self.sends, self.counters)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
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
            if self.failure.done():
                self.failure.exception()  # whoever runs the worker has had its chance to read it: asyncio need not complain

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
        if self.atomic is not None:
            await self.atomic.close(max(1.0, deadline - self._loop.time()))
        if self.relay is not None:
            await self.relay.close()
        self._end()
        if self._tasks:
            # A handler may ignore that; it must not hold us.
            await asyncio.wait(self._tasks, timeout=CANCEL_S)
        self.on_threads.close()
        await self.sends.drain(max(0.5, min(5.0, deadline - self._loop.time())))
        self.sends.close(0.5)
        self.history.close()
        for bursts in self.bursts.values():
            await bursts.close()
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

    async def turn(self, slot: Slot) -> None:
        """One of `concurrency` tasks: takes what is ready, delivers it, concludes; the whole framework on one page."""
        turns = 0
        while True:
            delivery = self.engine.take()
            if delivery is None:
                turns = 0
                await self._rest()
                continue
            if self._ready and not self._kicked:
                self._kicked = True
                self._loop.call_soon(self._kick)
            if delivery.alone and not await self.may_begin_alone(delivery):
                continue
            slot.delivery, slot.since_s = delivery, self._loop.time()
            outcome: Outcome | None
            try:
                outcome = await deliver(delivery, self.wiring)
            except asyncio.CancelledError:
                outcome = self._cut_short(slot, delivery)
            slot.delivery = None
            if slot.cut is not None or (slot.task is not None and slot.task.cancelling()):
                await slot.forget_cut()
            if outcome is DONE and self.atomic is None:
                self.succeeded(delivery)
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

    async def may_begin_alone(self, delivery: Delivery) -> bool:
        """Whether a suspect may begin: not when it has ended the process too often, and not before Kafka knows that it begins."""
        if self.engine.is_crash_loop(delivery):
            self.failures.crash_looped(delivery)
        elif await self.commits.recorded(delivery.partition):
            return True
        else:
            self.release(delivery)
        return False

    def conclude(self, delivery: Delivery, outcome: Outcome) -> None:
        """Acts on what became of an attempt: emits, claims, settles, retries, or writes a letter."""
        match outcome:
            case Emitted(records):
                self.counters.emitted += len(records)
                self.write(delivery, records, lambda error: self._acknowledged(delivery, error))
            case Done() if self.atomic is None:
                self.succeeded(delivery)
            case Done():
                self.write(delivery, (), lambda error: self._acknowledged(delivery, error))
            case Duplicate():
                self.counters.duplicates += 1
                self.settle(delivery, duplicate=True)
            case Waiting():
                pass
            case Failed(error):
                self.failures.failed(delivery, error)

    def write(self, delivery: Delivery, records: Sequence[Outgoing], then: Callable[[BrokerError | None], None]) -> None:
        """What it emits: `then(None)` when that is acknowledged, `then(error)` when it never can be. With transactions its end, and what
        became of its replay, are a part of it."""
        if self.atomic is None:
            self.sends.send(records, lambda error, _: then(error))
        else:
            self.atomic.write(delivery, Part((*records, *self.replays.closing(delivery))), then)

    def _acknowledged(self, delivery: Delivery, error: BrokerError | None) -> None:
        if error is not None:
            # The record can never be written (too large): the handler's failure, and a final one.
            self.failures.failed(delivery, unwritable(error))
            return
        if failpoint.ACTIVE:
            failpoint.hit("after_emits_ack")
        self.succeeded(delivery)

    def succeeded(self, delivery: Delivery) -> None:
        """The handler is through and its emits are acknowledged: claim it, then settle."""
        if self._claims is None or delivery.route.queue in self.bursts:
            self.settle(delivery)  # a burst has committed the claim with everything else
        else:
            # Also when its partition has another owner by now: the effect is there, so the claim must be, too.
            self._claims.add(delivery)

    def settle(self, delivery: Delivery, *, duplicate: bool = False, letter: LetterState | None = None) -> bool:
        """It has come to its end; False when it came too late to count."""
        self.end_claim(delivery)
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
            self.changed.set()
        if self._ready and not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._kick)
        if self._ready_on_threads:
            self.on_threads.feed()
        for bursts in self.bursts.values():
            bursts.feed()
        return True

    # ---- cut short ----------------------------------------------------------------------------------------------------

    def _cut_short(self, slot: Slot, delivery: Delivery) -> Outcome | None:
        """A CancelledError came out of a handler: ours for a timeout or a revoke, the worker's end, or the handler's own."""
        if self.ending:
            raise asyncio.CancelledError
        if slot.cut is None:
            return Failed(TransientError("handle raised CancelledError by itself"))
        if slot.cut == "timeout":
            spec = self.wiring.specs[delivery.route.index]
            return Failed(HandlerTimeoutError(f"cancelled after timeout_s={spec.timeout_s:g}"))
        self.release(delivery)
        return None

    def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Offsets, and what stands beside them, to be committed soon."""
        if self.atomic is None:
            self.intake.commit(offsets)
        else:
            self.atomic.want(offsets)  # as they are then: what is under way now knows more than what we were given

    def pin(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        """Where partitions begin that are being assigned, though nothing of them was handed out."""
        if self.atomic is None:
            self.intake.commit(offsets)
        else:
            self.atomic.want(offsets, not_begun_too=True)

    def release(self, delivery: Delivery, *, after_s: float = 0.0) -> None:
        """It was cut short by us, or never began: neither failed nor counted; it runs again, `after_s` seconds from now."""
        self.end_claim(delivery)
        self.engine.postpone(delivery, until_s=self._loop.time() + after_s)
        self.changed.set()

    def end_claim(self, delivery: Delivery) -> None:
        if self._claims is not None:
            for waiting in self._claims.end(delivery):
                self.engine.postpone(waiting, until_s=0.0)
            # What was looked up for it is not asked again: others may handle its duplicate while it waits.
            delivery.note = None

    def run_beside(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs it beside everything else; its failure is the worker's."""
        _ = self.spawn(coroutine)

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
        for _ in range(min(len(self._ready), len(self._idle), 16)):
            self._wake()

    # ---- what the others ask for ---------------------------------------------------------------------------------------

    def received(self) -> None:
        """The engine got something to run."""
        if self._ready:
            self._wake()
        if self._ready_on_threads:
            self.on_threads.feed()
        for bursts in self.bursts.values():
            bursts.feed()

    def replay(self, delivery: Delivery) -> None:
        """A letter is to run again, in the lane of its key."""
        self.engine.replay(delivery)
        self.received()

    def cut_short(self, partitions: Sequence[Partition]) -> None:
        """Cancels what handlers do for these partitions, as far as it is async; neither failed nor counted."""
        for slot in (*self._slots, *self.failures.recoveries):
            if slot.delivery is not None and slot.delivery.partition in partitions and slot.task is not None and slot.cut != "revoked":
                slot.cut = "revoked"
                slot.task.cancel()
        for bursts in self.bursts.values():
            bursts.cut_short(partitions)

    @contextmanager
    def draining(self) -> Iterator[asyncio.Event]:
        """An event that is set whenever a delivery ends, while it is asked for."""
        self._drains += 1
        try:
            yield self.changed
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
            self.on_threads.tell_stuck()
            for bursts in self.bursts.values():
                bursts.tell_stuck()
            self.feeding.pause_slow()
            self.commits.tick(now_s)
            if self._claims is not None:
                self._claims.beat()
                if self._claims.broken is not None:
                    raise self._claims.broken
            await asyncio.sleep(TICK_S)

    def _cancel_late(self, now_s: float) -> None:
        for slot in chain(self._slots, *(bursts.slots() for bursts in self.bursts.values())):
            delivery = slot.delivery
            if delivery is None or slot.cut == "revoked" or slot.task is None:
                continue
            if self._claims is not None and not self._claims.runs(delivery):
                slot.since_s = now_s  # it waits for the store: not the handler's time
                continue
            spec = self.wiring.specs.get(delivery.route.index)
            if spec is not None and now_s - slot.since_s > spec.timeout_s:
                if slot.cut == "timeout":
                    self.counters.stuck += 1
                    _log.warning(
                        "%s: %s goes on though it was cancelled; its key waits; cancelled again", spec.name, delivery.record.origin
                    )
                slot.cut, slot.since_s = "timeout", now_s
                slot.task.cancel()


def _queue(spec: HandlerSpec) -> int:
    if spec.transaction is None:
        return THREADS if spec.on_thread else LOOP
    return BURSTS_ON_THREADS if spec.on_thread else BURSTS


def _transactions(plan: Plan) -> dict[int, Transactions]:
    """By queue: where its bursts get their transactions. `Service` has seen to it that there are some, and that they fit."""
    store: object = plan.store
    found: dict[int, Transactions] = {}
    for spec in plan.specs:
        if spec.transaction is not None and _queue(spec) not in found:
            made = store.transactions(spec.transaction) if isinstance(store, Transactional) else None
            if made is None or made.blocking is not spec.on_thread:
                raise StateError(f"{spec.name}: its store has no transactions for {spec.transaction.__name__}")
            found[_queue(spec)] = made
    return found


def _route(spec: HandlerSpec) -> Route:
    return Route(
        index=spec.index,
        name=spec.name,
        retry=spec.retry,
        identity=spec.identity,
        ordered=spec.ordered,
        queue=_queue(spec),
        max_concurrency=spec.max_concurrency,
    )
