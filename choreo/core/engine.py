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
`halt` ends the drain when its time is over. An event of a *suspect* partition (core/guard.py) begins when nothing else runs,
and nothing begins beside it. Invariants 1 to 5, 7 and 11 of the design; guarded by tests/properties/test_engine.py,
tests/properties/test_simulation.py and tests/unit/test_suspects.py.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

from choreo.core.lanes import Lanes
from choreo.core.offset_map import NO_TOPIC_ID, OffsetMap, left_of, speaks_of
from choreo.core.offsets import Offsets
from choreo.core.partition import GONE, LIVE, LOOP, STOPPING, Delivery, Partition, Route
from choreo.core.retry import GiveUp, RetryAfter
from choreo.errors import StateError
from choreo.record import Committed, TopicPartition

IN_FLIGHT_BOUND = 1000
"""Unfinished events a partition; the offset map of a commit has room for that many."""


class Engine:
    """The state of one member: its partitions, what is ready, what waits. Owner: the event loop."""

    def __init__(self, *, bound: int = IN_FLIGHT_BOUND) -> None:
        self.partitions: dict[TopicPartition, Partition] = {}
        self.ready: tuple[deque[Delivery], ...] = (deque(), deque(), deque(), deque())
        """By queue (`Route.queue`): what may begin."""
        self.suspects: set[Partition] = set()
        """Partitions whose events run alone."""
        self._alone: Delivery | None = None
        self._bound = bound
        self._assignments = 0
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._waits = 0

    # ---- partitions ---------------------------------------------------------------------------------------------

    def assign(
        self, partition: TopicPartition, *, start: int | None = None, topic_id: bytes = NO_TOPIC_ID, restored: OffsetMap | None = None
    ) -> Partition:
        """A partition is ours from now on, from its committed offset `start`; an older assignment of it must have been forgotten."""
        if partition in self.partitions:
            raise StateError(f"{partition} was assigned twice")
        self._assignments += 1
        state = self.partitions[partition] = Partition(partition, self._assignments, start, topic_id, restored)
        if state.guard.suspects:
            self.suspects.add(state)
        return state

    def stop(self, partitions: Iterable[TopicPartition]) -> list[Partition]:
        """Nothing beyond their cut starts any more. Those of them that are ours."""
        stopped = [state for wanted in partitions if (state := self.partitions.get(wanted)) is not None]
        for state in stopped:
            state.state = STOPPING
            if self.suspects:
                state.cut = -1  # one at a time, each after a commit, takes longer than there is; the map says what is finished
        self._leave_out_of_waiting()
        return stopped

    def halt(self, partitions: Iterable[Partition]) -> None:
        """The time to drain is over: nothing of these stopped partitions starts any more, not even what is cut short now."""
        for state in partitions:
            state.cut = -1
        self._leave_out_of_waiting()

    def forget(self, partitions: Sequence[Partition]) -> dict[TopicPartition, Committed]:
        """They are gone, in good order: what to commit, as far as all below is settled. Late outcomes are dropped from here on."""
        commits: dict[TopicPartition, Committed] = {}
        for state in partitions:
            state.state = GONE
            if self.partitions.get(state.id) is state:
                del self.partitions[state.id]
            self._spare_what_runs_alone(state)
            state.guard.ended_well()
            committed = state.take(also_maps=True, last=True)
            if committed is not None:
                commits[state.id] = committed
            # What was not finished holds its deliveries, and they hold the partition.
            state.lanes, state.offsets = Lanes(), Offsets()
            self.suspects.discard(state)
        self._leave_out_of_waiting()
        return commits

    # ---- coming in ----------------------------------------------------------------------------------------------

    def has_room(self, partition: Partition, events: int) -> bool:
        """Whether so many more events fit under the in-flight bound (an empty partition takes any batch)."""
        in_flight = partition.in_flight
        return in_flight == 0 or in_flight + events <= self._bound

    def receive(self, partition: Partition, offset: int, deliveries: Sequence[Delivery]) -> None:
        """The event at `offset` came, for these handlers; for none it is finished at once."""
        self.receive_all(partition, ((offset, deliveries),))

    def receive_all(self, partition: Partition, events: Iterable[tuple[int, Sequence[Delivery]]]) -> int:
        """The same for a batch, in offset order. How many deliveries an earlier run had finished: they don't begin again."""
        restored = 0
        received, enter, make_ready = partition.offsets.received, partition.lanes.enter, self._make_ready
        partition.begun = True
        if partition.restored is not None:
            events = iter(events)
            restored = self._receive_again(partition, partition.restored, events)
        for offset, deliveries in events:
            received(offset, deliveries)
            for delivery in deliveries:
                if enter(delivery):
                    make_ready(delivery)
        return restored

    def _receive_again(self, partition: Partition, restored: OffsetMap, events: Iterator[tuple[int, Sequence[Delivery]]]) -> int:
        """Events that an earlier run received, up to its reach: what it left to do of them. How much it had finished."""
        finished = 0
        for offset, deliveries in events:
            if offset >= speaks_of(restored):
                partition.restored = None
                self.receive_all(partition, ((offset, deliveries),))
                break
            for delivery in deliveries:
                begun = left_of(restored, offset, delivery.route.number)
                if begun is None:
                    delivery.settled = True  # it stays beside those that are not finished: the next map says so again
                else:
                    delivery.attempts, delivery.fatal = begun.attempts, begun.fatal
            left = [delivery for delivery in deliveries if not delivery.settled]
            finished += len(deliveries) - len(left)
            partition.offsets.received(offset, deliveries if left else ())
            for delivery in left:
                if partition.lanes.enter(delivery):
                    self._make_ready(delivery)
        return finished

    def replay(self, delivery: Delivery) -> None:
        """A letter is to run again: it takes its turn in the lane of its key."""
        if delivery.partition.lanes.enter(delivery):
            self._make_ready(delivery)

    # ---- running ------------------------------------------------------------------------------------------------

    def take(self, queue: int = LOOP) -> Delivery | None:
        """The next delivery of a queue to start, its attempt counted; None when nothing is ready."""
        ready = self.ready[queue]
        alone = False
        if self.suspects or self._alone is not None:
            if self._alone is not None:
                return None
            if any(map(self._is_suspect, chain.from_iterable(self.ready))):
                if self.running() or not self._bring_forward_a_suspect(ready):
                    return None
                alone = True
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
                    if alone:
                        ready.appendleft(delivery)
                        return None
                    route.held.append(delivery)
                    continue
                route.running += 1
            delivery.attempts += 1
            delivery.runs = True
            if alone:
                delivery.alone = True
                delivery.fatal += 1
                self._alone = delivery
            partition.running += 1
            if delivery.record.offset > partition.cut and delivery.run is None and partition.state is LIVE:
                partition.cut = delivery.record.offset
            return delivery
        return None

    def is_crash_loop(self, delivery: Delivery) -> bool:
        """Whether it has ended the process so often that it must not begin again; the attempt that `take` counted is taken back."""
        if delivery.fatal <= delivery.route.retry.max_attempts:
            return False
        delivery.attempts -= 1
        delivery.runs = False
        self._survived(delivery)
        return True

    def settle(self, delivery: Delivery) -> bool:
        """It reached its end (done, recovered, or its letter is acknowledged); False when it came too late to count."""
        if delivery.settled:
            raise StateError(f"{delivery.record.origin} was settled twice for {delivery.route.name}")
        delivery.settled = True
        delivery.runs = False
        if delivery.alone:
            self._survived(delivery)
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
            self._survived(delivery)
            self._leave_route(delivery.route)
            return None
        decision = delivery.route.retry.decide(error, attempt=delivery.attempts, dice=dice)
        if isinstance(decision, RetryAfter):
            self._survived(delivery)  # what is given up runs on: `recover` may end the process as well
            delivery.runs = False
            self._wait(delivery, now_s + decision.delay_s)
        return decision

    def postpone(self, delivery: Delivery, *, until_s: float) -> None:
        """It was cut short by us (a revoke, a store that is down): it runs again from `until_s`, no attempt counted."""
        delivery.attempts -= 1
        delivery.runs = False
        self._survived(delivery)
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

    def commits(self, *, also_maps: bool = False) -> dict[TopicPartition, Committed]:
        """What to commit: the offsets that moved since the last call, and (`also_maps`) those of which there is more to say."""
        moved: dict[TopicPartition, Committed] = {}
        for state in self.partitions.values():
            committed = state.take(also_maps=also_maps)
            if committed is not None:
                moved[state.id] = committed
        if self.suspects:
            self.suspects = {state for state in self.suspects if state.guard.suspects}
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

    def _is_suspect(self, delivery: Delivery) -> bool:
        return delivery.run is None and delivery.partition.state is LIVE and delivery.partition in self.suspects

    def _bring_forward_a_suspect(self, ready: deque[Delivery]) -> bool:
        for number, delivery in enumerate(ready):
            if self._is_suspect(delivery):
                del ready[number]
                ready.appendleft(delivery)
                return True
        return False

    def _spare_what_runs_alone(self, state: Partition) -> None:
        """An orderly end: that it still ran is no crash."""
        if self._alone is not None and self._alone.partition is state:
            self._survived(self._alone)

    def _survived(self, delivery: Delivery) -> None:
        if delivery.alone:
            delivery.alone = False
            delivery.fatal -= 1
            self._alone = None

    def _make_ready(self, delivery: Delivery) -> None:
        self.ready[delivery.route.queue].append(delivery)

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
                self.ready[route.queue].appendleft(held)
                return
            self._leave_out(held)
