"""What does Kafka give us, and what do we tell it? The thread that owns the consumer.

It polls, pauses, commits and runs the rebalance callbacks; nobody else calls the consumer. The event loop and this
thread meet at two queues only: batches go one way, orders the other. While the loop is behind, this thread waits before
it polls again (that is the flow control of a fast stream); a partition whose events stay unfinished is paused on order.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar

from choreo import failpoint
from choreo.broker import REBALANCE_FAILED, CommitResult, Consumer, Start
from choreo.errors import BrokerError
from choreo.record import Batch, Committed, TopicPartition

_log = logging.getLogger("choreo.intake")
_R = TypeVar("_R")

BATCH = 500
POLL_S = 0.05
URGENT_POLL_S = 0.002
"""While somebody waits for a commit's acknowledgement: it is heard of between two polls."""
AHEAD = 2_000
"""Records handed over and not yet accepted, above which this thread waits."""
URGENT_AHEAD = 4 * AHEAD
"""The same while somebody waits for a commit's acknowledgement, without which there may never be room."""
STALLED_S = 1.0
"""A loop that accepts nothing for so long doesn't stop the polling: everything is paused and rebalances are served."""
STUCK_S = 10.0
REBUILD_MOST_S = 30.0
WELL_S = 60.0
"""A consumer that lived so long was well: the next one is built without a long wait."""
FINAL = frozenset({"_AUTO_OFFSET_RESET", "FENCED_INSTANCE_ID", "UNRELEASED_INSTANCE_ID", "LOST_OFFSETS"})
"""Errors that a new consumer would meet again: the worker stops and says what to do."""

PASSES = frozenset({REBALANCE_FAILED, "GROUP_ID_NOT_FOUND"})
"""Errors that go away, also for who was never let in: a group whose members speak the other protocol (W19) when those have gone."""


class _Pause(NamedTuple):
    partition: TopicPartition


class _Resume(NamedTuple):
    partition: TopicPartition


class _Commit(NamedTuple):
    offsets: Mapping[TopicPartition, Committed]


class _Rewind(NamedTuple):
    why: str


class Member(Protocol):
    """The event loop's side. Coroutines run on the loop while this thread waits for them."""

    async def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]: ...

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]: ...

    async def lost(self, partitions: Sequence[TopicPartition]) -> None: ...

    def arrived(self) -> None: ...

    def committed(self, results: Sequence[CommitResult]) -> None: ...

    def troubled(self, error: BrokerError) -> None: ...

    def failed(self, error: BaseException) -> None: ...


class Intake:
    """Owner of `_consumer` and everything `_mine`: the intake thread. `inbox` is filled here and emptied by the loop."""

    def __init__(self, make_consumer: Callable[[], Consumer], topics: Sequence[str], member: Member, *, identifies: bool = False) -> None:
        self._make_consumer = make_consumer
        self._topics = topics
        self._member = member
        self._identifies = identifies
        self.identity: bytes | None = None
        """Who this member was to its group when it polled last, if `identifies`; None while it is none. Kept by this thread: what it is
        when `lost` or `assigned` was told on the loop is never older than that."""
        self._consumer: Consumer | None = None
        self._loop = asyncio.get_running_loop()
        self.inbox: deque[Batch] = deque()
        self._orders: deque[_Pause | _Resume | _Commit | _Rewind] = deque()
        self._told = False
        self._handed = 0
        self._accepted = 0
        self._room = threading.Event()
        self._stop = threading.Event()
        self.urgent = False
        """Kept by the loop: it waits for the acknowledgement of a commit. Set here with the first batch of a partition, for then it
        will; its order would come while this thread waits for records."""
        self._silent: set[TopicPartition] = set()
        """What gave no batch yet."""
        self._mine: set[TopicPartition] = set()
        self._paused: set[TopicPartition] = set()
        self._held: set[TopicPartition] = set()
        """What is paused because the loop stands still; beside what is paused on order."""
        self._was_assigned = False
        self._ended = asyncio.Event()
        self.polled_at = time.monotonic()
        """When the poll loop last went round (monotonic seconds): its age is the worker's liveness."""
        self._thread = threading.Thread(target=self._run, name="choreo-intake", daemon=True)

    # ---- the loop's side ----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    @property
    def started(self) -> bool:
        return self._thread.ident is not None

    @property
    def ahead(self) -> int:
        """Records handed over and not accepted."""
        return self._handed - self._accepted

    def accept(self, records: int) -> None:
        """So many records have left the inbox for good."""
        self._accepted += records
        self._room.set()

    def pause(self, partition: TopicPartition) -> None:
        self._orders.append(_Pause(partition))

    def resume(self, partition: TopicPartition) -> None:
        self._orders.append(_Resume(partition))

    def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        self._orders.append(_Commit(offsets))

    def rewind(self, why: str) -> None:
        """Leaves the group and joins again, to read on from what is committed then."""
        self._orders.append(_Rewind(why))

    def stop(self) -> None:
        """Leaves the group and ends the thread, through `revoked`."""
        self._stop.set()
        self._room.set()

    async def join(self, timeout_s: float) -> bool:
        """Waits for the thread to end; whether it did within `timeout_s`."""
        # Not in an executor of the loop: handlers' own calls may have taken all of its threads.
        try:
            await asyncio.wait_for(self._ended.wait(), max(0.0, timeout_s))
        except TimeoutError:
            return False
        return True

    # ---- this thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            builds = 0
            while not self._stop.is_set():
                began_s = time.monotonic()
                try:
                    self._consume()
                except BrokerError as error:
                    if not self._may_rebuild(error):
                        raise
                    if time.monotonic() - began_s > WELL_S:
                        builds = 0
                    delay_s = min(REBUILD_MOST_S, 2.0**builds)
                    builds += 1
                    self._tell(self._member.troubled, error)
                    _log.error("%s; the consumer is closed and built anew in %.0f s", error, delay_s)
                    self._stop.wait(delay_s)
        except BaseException as error:  # noqa: BLE001 - the worker is told and stops; this thread has no caller
            self._tell(self._member.failed, error)
        finally:
            self._tell(self._ended.set)

    def _consume(self) -> None:
        consumer = self._consumer = self._make_consumer()
        try:
            consumer.subscribe(self._topics, self)
            while not self._stop.is_set():
                try:
                    self._turn(consumer)
                except BrokerError as error:
                    if not error.retriable or error.fatal:
                        raise
                    self._tell(self._member.troubled, error)
        finally:
            try:
                consumer.close()
                self._report_commits(consumer)
            finally:
                self._consumer = self.identity = None
                if self._mine:
                    # A consumer that failed for good closes without a word about what it had.
                    self.lost(list(self._mine))

    def _may_rebuild(self, error: BrokerError) -> bool:
        # What went well before and is refused now (an ACL, a fatal client) may go well again; what never did is a mistake.
        if error.code == "TOPIC_AUTHORIZATION_FAILED" and not self._handed:
            return False
        return error.code in PASSES or (self._was_assigned and error.code not in FINAL)

    def _turn(self, consumer: Consumer) -> None:
        self._hold_all(consumer, not self._wait_for_room(consumer))
        self.polled_at = time.monotonic()
        batches = consumer.poll(BATCH, URGENT_POLL_S if self.urgent else POLL_S)
        self._identify()
        if batches:
            if failpoint.ACTIVE:
                failpoint.hit("after_poll")
            self._hand_over(batches)
        self._report_commits(consumer)

    def _identify(self) -> None:
        if self._identifies and self._consumer is not None:
            self.identity = self._consumer.identity()

    def _hold_all(self, consumer: Consumer, stalled: bool) -> None:
        """Pauses everything while the loop takes nothing: polling must go on, or the group puts us out."""
        if stalled and self._mine - self._held:
            consumer.pause(list(self._mine - self._held))
            self._held |= self._mine
        elif self._held and not stalled:
            consumer.resume(list(self._held - self._paused))
            self._held.clear()

    def _wait_for_room(self, consumer: Consumer) -> bool:
        """Carries orders out, until the loop has room for another batch; False when it has accepted nothing for too long."""
        until = time.monotonic() + STALLED_S
        while True:
            self._room.clear()
            while self._orders:
                self._carry_out(consumer, self._orders.popleft())
            if self.ahead < (URGENT_AHEAD if self.urgent else AHEAD) or self._stop.is_set():
                return True
            left = until - time.monotonic()
            if left <= 0:
                return False
            self._room.wait(min(left, 0.02))

    def _hand_over(self, batches: list[Batch]) -> None:
        self._handed += sum(len(batch.records) for batch in batches)
        if self._silent and not self._silent.isdisjoint(batch.partition for batch in batches):
            self._silent.difference_update(batch.partition for batch in batches)
            self.urgent = True
        self.inbox.extend(batches)
        if not self._told:
            self._told = True
            self._tell(self._arrived)

    def _arrived(self) -> None:
        self._told = False
        self._member.arrived()

    def _report_commits(self, consumer: Consumer) -> None:
        results = consumer.commit_results()
        if results:
            self._tell(self._member.committed, results)

    def _carry_out(self, consumer: Consumer, order: _Pause | _Resume | _Commit | _Rewind) -> None:
        match order:
            case _Rewind(why):
                raise BrokerError(why, code=REBALANCE_FAILED, retriable=False)
            case _Commit(offsets):
                consumer.commit(offsets)
            case _Pause(partition) if partition in self._mine:
                self._paused.add(partition)
                consumer.pause([partition])
            case _Resume(partition) if partition in self._mine:
                self._paused.discard(partition)
                if partition not in self._held:
                    consumer.resume([partition])

    # ---- the group's decisions, told from within poll and close ---------------------------------------------------

    def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
        starts = self._ask(lambda: self._member.assigned(committed))
        self._mine.update(starts)
        self._was_assigned = True
        self._silent.update(starts)
        self._held.difference_update(starts)  # a partition comes unpaused
        return starts

    def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        self._mine.difference_update(partitions)
        self._held.difference_update(partitions)
        self._identify()  # the last transaction of what is taken away is made under this generation

        async def revoked() -> Mapping[TopicPartition, Committed]:
            offsets = await self._member.revoked(partitions)
            self._forget(partitions)
            return offsets

        return self._ask(revoked)

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._mine.difference_update(partitions)
        self._held.difference_update(partitions)
        self.identity = None

        async def lost() -> None:
            await self._member.lost(partitions)
            self._forget(partitions)

        self._ask(lost)

    def _forget(self, partitions: Sequence[TopicPartition]) -> None:
        """Orders about an assignment that is over must not reach the next one. Runs on the loop, which alone gives orders,
        while this thread waits for it."""
        gone = set(partitions)
        self._paused -= gone
        orders = list(self._orders)
        self._orders.clear()
        for order in orders:
            if isinstance(order, _Commit):
                self._orders.append(_Commit({p: o for p, o in order.offsets.items() if p not in gone}))
            elif isinstance(order, _Rewind) or order.partition not in gone:
                self._orders.append(order)

    # ---- between the threads --------------------------------------------------------------------------------------

    def _ask(self, question: Callable[[], Awaitable[_R]]) -> _R:
        answer: Future[_R] = Future()

        def begin() -> None:
            async def run() -> None:
                try:
                    answer.set_result(await question())
                except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
                    answer.set_exception(error)

            task = self._loop.create_task(run())
            task.add_done_callback(lambda _: None)

        self._loop.call_soon_threadsafe(begin)
        asked_at = time.monotonic()
        while True:
            try:
                return answer.result(timeout=STUCK_S)
            except TimeoutError:
                if answer.done():
                    return answer.result()
                if self._loop.is_closed():
                    raise BrokerError("the event loop has ended", retriable=False) from None
                _log.warning(
                    "the event loop has not answered a rebalance for %.0f s: does a handler block it?", time.monotonic() - asked_at
                )

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)
        except RuntimeError:
            # The loop is closed: the worker has ended and nobody is left to be told.
            _log.debug("told an ended worker: %s", arguments)
