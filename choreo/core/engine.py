"""What now? The pure engine: it is told what came and how deliveries ended, and answers what to run, retry and commit.

No clock, thread, log or client in here: time and chance come in as numbers, effects go out as values. One delivery is
one event for one handler; it goes

    receive -> (lane) -> take -> settle                       done: the next of the lane is ready
                           |-> fail -> RetryAfter -> tick -> take ...
                           |        -> GiveUp                  the runtime writes a letter, then settles
                           |-> postpone -> tick -> take ...    not its fault: no attempt is counted

A partition is LIVE, then STOPPING, then GONE (whatever still comes is dropped). While it is STOPPING, what stands at or
below its `cut`, the highest offset that has started, still runs: then the committed offset leaves nothing behind that was
done beyond it, and nothing is redelivered. A replay does not begin any more: its request is answered by the next owner.
`halt` ends the drain when its time is over. Each assignment is a new `Partition`, so revoking is forgetting one object
and a late outcome can't be taken for one of the next assignment. Invariants 1, 2, 3, 7 and 11 of the design; guarded by
tests/properties/test_engine.py.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from choreo.core.lanes import Lanes
from choreo.core.offsets import Offsets
from choreo.core.retry import GiveUp, RetryAfter, RetryPolicy
from choreo.errors import StateError
from choreo.record import Record, TopicPartition

LIVE = "live"
STOPPING = "stopping"
GONE = "gone"

IN_FLIGHT_BOUND = 1000
"""Unfinished events a partition; the offset map of a commit has room for that many."""


class Route(msgspec.Struct, eq=False):
    """One handler, as far as the engine has to know it. `running` and `held` serve `max_concurrency`.

    `identity` is the name it is stored under, its first one; empty where nothing is stored.
    """

    index: int
    name: str
    retry: RetryPolicy
    identity: str = ""
    ordered: bool = True
    on_thread: bool = False
    max_concurrency: int | None = None
    running: int = 0
    held: deque[Delivery] = msgspec.field(default_factory=deque)


class Delivery(msgspec.Struct, eq=False, gc=False):
    """One event for one handler. Owner: the engine; `attempts` counts begun ones.

    `event` is the decoded event or the error that decoding it raised, `wire` its ids: the engine looks at neither.
    `run` is the replay it belongs to; only live deliveries (None) hold back an offset. `note` and `failed_at` (when it failed
    first) are the runtime's own.
    The garbage collector doesn't follow it (it would spend more than a tenth of the time there): `forget` unties its ring.
    """

    partition: Partition
    route: Route
    record: Record
    wire: Any
    event: Any
    lane: tuple[int, bytes] | None
    run: Any = None
    attempts: int = 0
    next: Any = None
    note: Any = None
    failed_at: Any = None
    settled: bool = False


class Partition:
    """One assignment of one partition. Owner: the engine."""

    __slots__ = ("cut", "id", "lanes", "offsets", "running", "state", "wake_at")

    def __init__(self, partition: TopicPartition) -> None:
        self.id = partition
        self.state = LIVE
        self.running = 0
        self.cut = -1
        self.wake_at = -1
        """The runtime's own: it wants to know when the events in flight have fallen to this."""
        self.lanes = Lanes()
        self.offsets = Offsets()

    @property
    def in_flight(self) -> int:
        """Events received and not finished."""
        return len(self.offsets.unfinished)

    def drained(self) -> bool:
        """Whether nothing runs and nothing at or below the cut is unfinished."""
        return self.running == 0 and next(iter(self.offsets.unfinished), self.cut + 1) > self.cut

    def may_start(self, delivery: Delivery) -> bool:
        """Whether a delivery may begin: always while LIVE, up to the cut while STOPPING, never when GONE."""
        if self.state is LIVE:
            return True
        return self.state is STOPPING and delivery.run is None and delivery.record.offset <= self.cut


class Engine:
    """The state of one member: its partitions, what is ready, what waits. Owner: the event loop."""

    def __init__(self, *, bound: int = IN_FLIGHT_BOUND) -> None:
        self.partitions: dict[TopicPartition, Partition] = {}
        self.ready: deque[Delivery] = deque()
        self.ready_on_threads: deque[Delivery] = deque()
        self._bound = bound
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._waits = 0

    # ---- partitions ---------------------------------------------------------------------------------------------

    def assign(self, partition: TopicPartition) -> Partition:
        """A partition is ours from now on; an older assignment of it must have been forgotten."""
        if partition in self.partitions:
            raise StateError(f"{partition} was assigned twice")
        state = self.partitions[partition] = Partition(partition)
        return state

    def stop(self, partitions: Iterable[TopicPartition]) -> list[Partition]:
        """Nothing beyond their cut starts any more. Those of them that are ours."""
        stopped = [state for wanted in partitions if (state := self.partitions.get(wanted)) is not None]
        for state in stopped:
            state.state = STOPPING
        self._leave_out_of_waiting()
        return stopped

    def halt(self, partitions: Iterable[Partition]) -> None:
        """The time to drain is over: nothing of these stopped partitions starts any more, not even what is cut short now."""
        for state in partitions:
            state.cut = -1
        self._leave_out_of_waiting()

    def forget(self, partitions: Sequence[Partition]) -> dict[TopicPartition, int]:
        """They are gone: the offsets to commit, as far as all below is settled. Late outcomes are dropped from here on."""
        offsets: dict[TopicPartition, int] = {}
        for state in partitions:
            state.state = GONE
            state.lanes = Lanes()
            if self.partitions.get(state.id) is state:
                del self.partitions[state.id]
            offset = state.offsets.committable()
            if offset is not None:
                offsets[state.id] = offset
        self._leave_out_of_waiting()
        return offsets

    # ---- coming in ----------------------------------------------------------------------------------------------

    def has_room(self, partition: Partition, events: int) -> bool:
        """Whether so many more events fit under the in-flight bound (an empty partition takes any batch)."""
        in_flight = partition.in_flight
        return in_flight == 0 or in_flight + events <= self._bound

    def receive(self, partition: Partition, offset: int, deliveries: Sequence[Delivery]) -> None:
        """The event at `offset` came, for these handlers; for none it is finished at once."""
        self.receive_all(partition, ((offset, deliveries),))

    def receive_all(self, partition: Partition, events: Iterable[tuple[int, Sequence[Delivery]]]) -> None:
        """The same for a batch, in offset order."""
        received, enter, make_ready = partition.offsets.received, partition.lanes.enter, self._make_ready
        for offset, deliveries in events:
            received(offset, len(deliveries))
            for delivery in deliveries:
                if enter(delivery):
                    make_ready(delivery)

    def replay(self, delivery: Delivery) -> None:
        """A letter is to run again: it takes its turn in the lane of its key."""
        if delivery.partition.lanes.enter(delivery):
            self._make_ready(delivery)

    # ---- running ------------------------------------------------------------------------------------------------

    def take(self, *, on_thread: bool = False) -> Delivery | None:
        """The next delivery to start, its attempt counted; None when nothing is ready."""
        ready = self.ready_on_threads if on_thread else self.ready
        while ready:
            delivery = ready.popleft()
            partition = delivery.partition
            if partition.state is not LIVE and not partition.may_start(delivery):
                self._leave_out(delivery)
                self._start_held(delivery.route)
                continue
            route = delivery.route
            if route.max_concurrency is not None:
                if route.running >= route.max_concurrency:
                    route.held.append(delivery)
                    continue
                route.running += 1
            delivery.attempts += 1
            partition.running += 1
            if delivery.record.offset > partition.cut and delivery.run is None and partition.state is LIVE:
                partition.cut = delivery.record.offset
            return delivery
        return None

    def settle(self, delivery: Delivery) -> bool:
        """It reached its end (done, recovered, or its letter is acknowledged); False when it came too late to count."""
        if delivery.settled:
            raise StateError(f"{delivery.record.origin} was settled twice for {delivery.route.name}")
        delivery.settled = True
        partition = delivery.partition
        if partition.state is GONE:
            self._leave_route(delivery.route)
            return False
        partition.running -= 1
        if delivery.run is None:
            partition.offsets.finished(delivery.record.offset)
        following = partition.lanes.leave(delivery)
        if following is not None:
            self._make_ready(following)  # type: ignore[arg-type]
        if delivery.route.max_concurrency is not None:
            self._leave_route(delivery.route)
        return True

    def fail(self, delivery: Delivery, error: Exception, *, now_s: float, dice: float) -> RetryAfter | GiveUp | None:
        """An attempt failed: when it is tried again, or that it is given up; None when it came too late to count.

        After GiveUp the delivery still runs: the runtime recovers it or writes its letter, then settles it.
        """
        if delivery.partition.state is GONE:
            self._leave_route(delivery.route)
            return None
        decision = delivery.route.retry.decide(error, attempt=delivery.attempts, dice=dice)
        if isinstance(decision, RetryAfter):
            self._wait(delivery, now_s + decision.delay_s)
        return decision

    def postpone(self, delivery: Delivery, *, until_s: float) -> None:
        """It was cut short by us (a revoke, a store that is down): it runs again from `until_s`, no attempt counted."""
        delivery.attempts -= 1
        if delivery.partition.state is GONE:
            self._leave_route(delivery.route)
            return
        self._wait(delivery, until_s)

    def tick(self, now_s: float) -> float | None:
        """Makes ready what is due; when the next one is due (seconds, the caller's clock), None when nothing waits."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now_s:
            delivery = heapq.heappop(waiting)[2]
            if delivery.partition.state is not GONE:
                self._make_ready(delivery)
        return waiting[0][0] if waiting else None

    # ---- looking ------------------------------------------------------------------------------------------------

    def commits(self) -> dict[TopicPartition, int]:
        """The offsets that moved since the last call: what to commit, one past the last finished offset."""
        moved: dict[TopicPartition, int] = {}
        for state in self.partitions.values():
            offset = state.offsets.take()
            if offset is not None:
                moved[state.id] = offset
        return moved

    def in_flight(self) -> int:
        """Events received and not finished, all partitions together."""
        return sum(state.in_flight for state in self.partitions.values())

    def running(self, partitions: Iterable[Partition] | None = None) -> int:
        """Deliveries that have begun and not ended."""
        return sum(state.running for state in (self.partitions.values() if partitions is None else partitions))

    def waiting(self) -> int:
        """Deliveries that wait for a retry."""
        return len(self._waiting)

    def lanes(self) -> Mapping[TopicPartition, int]:
        """Lanes in use, by partition."""
        return {state.id: len(state.lanes) for state in self.partitions.values()}

    # ---- inside -------------------------------------------------------------------------------------------------

    def _make_ready(self, delivery: Delivery) -> None:
        if delivery.route.on_thread:
            self.ready_on_threads.append(delivery)
        else:
            self.ready.append(delivery)

    def _wait(self, delivery: Delivery, until_s: float) -> None:
        delivery.partition.running -= 1
        self._leave_route(delivery.route)
        if not delivery.partition.may_start(delivery):
            self._leave_out(delivery)
            return
        self._waits += 1
        heapq.heappush(self._waiting, (until_s, self._waits, delivery))

    def _leave_out(self, delivery: Delivery) -> None:
        # It won't start here any more. What stands behind a replay in its lane may be below the cut, and goes on.
        if delivery.partition.state is STOPPING:
            following = delivery.partition.lanes.leave(delivery)
            if following is not None:
                self._make_ready(following)  # type: ignore[arg-type]

    def _leave_out_of_waiting(self) -> None:
        waiting, self._waiting = self._waiting, []
        for entry in waiting:
            if entry[2].partition.may_start(entry[2]):
                self._waiting.append(entry)
            else:
                self._leave_out(entry[2])
        heapq.heapify(self._waiting)

    def _leave_route(self, route: Route) -> None:
        if route.max_concurrency is not None:
            route.running -= 1
            self._start_held(route)

    def _start_held(self, route: Route) -> None:
        # For each free place of the route there is a delivery in `ready`, as long as any is held.
        while route.held and route.running < (route.max_concurrency or 0):
            held = route.held.popleft()
            if held.partition.may_start(held):
                (self.ready_on_threads if route.on_thread else self.ready).appendleft(held)
                return
            self._leave_out(held)
