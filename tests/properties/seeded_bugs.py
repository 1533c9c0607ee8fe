"""Engines with one rule left out each. What the properties are worth is which of these they kill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import msgspec

from choreo.core.engine import Engine
from choreo.core.lanes import Lanes, Queued
from choreo.core.offset_map import OffsetMap
from choreo.core.offsets import Offsets
from choreo.core.partition import GONE, LOOP, STOPPING, Delivery, Partition, Route
from choreo.core.retry import GiveUp, RetryAfter
from choreo.record import Committed, TopicPartition

# ---- offsets ------------------------------------------------------------------------------------------------------------


class _Reach(Offsets[Delivery]):
    __slots__ = ()

    def committable(self) -> int | None:
        return self.reach


class _PastTheLastDone(Offsets[Delivery]):
    __slots__ = ("done",)

    def __init__(self) -> None:
        super().__init__()
        self.done: int | None = None

    def finished(self, offset: int) -> None:
        super().finished(offset)
        if offset not in self.unfinished:
            self.done = max(offset + 1, self.done or 0)

    def committable(self) -> int | None:
        return super().committable() if self.done is None else self.done


class _FirstHandlerFinishes(Offsets[Delivery]):
    __slots__ = ()

    def finished(self, offset: int) -> None:
        self.unfinished.pop(offset, None)


# ---- lanes --------------------------------------------------------------------------------------------------------------


class _NoLane(Lanes):
    __slots__ = ()

    def enter(self, item: Queued) -> bool:
        return True

    def leave(self, head: Queued) -> Queued | None:
        return None


class _DropsNext(Lanes):
    __slots__ = ()

    def leave(self, head: Queued) -> Queued | None:
        super().leave(head)
        return None


class _ChangesPlaces(Lanes):
    __slots__ = ()

    def leave(self, head: Queued) -> Queued | None:
        following = super().leave(head)
        if following is None or following.next is None or following.lane is None:
            return following
        second = following.next
        following.next, second.next = second.next, following
        if following.next is None:
            self._tails[following.lane] = following
        return second


class _KeepsTheTail(Lanes):
    __slots__ = ()

    def leave(self, head: Queued) -> Queued | None:
        following, head.next = head.next, None
        return following


def _with(offsets: type[Offsets[Delivery]] = Offsets, lanes: type[Lanes] = Lanes) -> type[Engine]:
    class Seeded(Engine):
        def assign(self, partition: TopicPartition, **what_is_known: Any) -> Partition:
            state = super().assign(partition, **what_is_known)
            state.offsets, state.lanes = offsets(), lanes()
            return state

    return Seeded


# ---- a partition's end --------------------------------------------------------------------------------------------------


class _AnyStart(Partition):
    __slots__ = ()

    def may_start(self, delivery: Delivery) -> bool:
        return self.state is not GONE


class _NoStart(Partition):
    __slots__ = ()

    def may_start(self, delivery: Delivery) -> bool:
        return self.state not in (STOPPING, GONE)


class _TellsOnce(Partition):
    __slots__ = ()

    def take(self, *, also_maps: bool, last: bool = False) -> Committed | None:
        return super().take(also_maps=also_maps, last=last) if self._taken is None else None


class _Undead(Partition):
    __slots__ = ()

    def may_start(self, delivery: Delivery) -> bool:
        return self.state is GONE or super().may_start(delivery)


def _of(partitions: type[Partition]) -> type[Engine]:
    class Seeded(Engine):
        def assign(self, partition: TopicPartition, **what_is_known: Any) -> Partition:
            made = super().assign(partition, **what_is_known)
            state = self.partitions[partition] = partitions(partition, self._assignments, made.start, made.topic_id, made.restored)
            if made in self.suspects:
                self.suspects = {state if other is made else other for other in self.suspects}
            return state

    return Seeded


class _LateOutcomeCounts(Engine):
    def settle(self, delivery: Delivery) -> bool:
        state = self.partitions.get(delivery.partition.id)
        if delivery.partition.state is GONE and state is not None and delivery.record.offset in state.offsets.unfinished:
            state.offsets.finished(delivery.record.offset)
        return super().settle(delivery)


class _LateFailureRetries(Engine):
    def fail(self, delivery: Delivery, error: Exception, *, now_s: float, dice: float) -> RetryAfter | GiveUp | None:
        decision = super().fail(delivery, error, now_s=now_s, dice=dice)
        return RetryAfter(0.0) if decision is None else decision


class _ForgetKeepsTheWaiting(Engine):
    def forget(self, partitions: Sequence[Partition]) -> dict[TopicPartition, Committed]:
        waiting = self._waiting
        offsets = super().forget(partitions)
        self._waiting = waiting
        return offsets


class _ForgetKeepsThePartition(Engine):
    def forget(self, partitions: Sequence[Partition]) -> dict[TopicPartition, Committed]:
        offsets = super().forget(partitions)
        self.partitions.update({state.id: state for state in partitions})
        return offsets


class _ForgetsWhatToCommit(Engine):
    def forget(self, partitions: Sequence[Partition]) -> dict[TopicPartition, Committed]:
        super().forget(partitions)
        return {}


class _NoHalt(Engine):
    def halt(self, partitions: Iterable[Partition]) -> None:
        pass


class _ReplayBlocksTheDrain(Engine):
    """As it was first written: a replay that may not begin any more kept its place in the lane."""

    def _leave_out(self, delivery: Delivery) -> None:
        pass


# ---- running ------------------------------------------------------------------------------------------------------------


class _RunsTheNextWhileRetrying(Engine):
    def fail(self, delivery: Delivery, error: Exception, *, now_s: float, dice: float) -> RetryAfter | GiveUp | None:
        decision = super().fail(delivery, error, now_s=now_s, dice=dice)
        if isinstance(decision, RetryAfter) and delivery.next is not None:
            self._make_ready(delivery.next)
        return decision


class _NeverGivesUp(Engine):
    def fail(self, delivery: Delivery, error: Exception, *, now_s: float, dice: float) -> RetryAfter | GiveUp | None:
        delivery.attempts = min(delivery.attempts, 1)
        return super().fail(delivery, error, now_s=now_s, dice=dice)


class _GiveUpSettles(Engine):
    def fail(self, delivery: Delivery, error: Exception, *, now_s: float, dice: float) -> RetryAfter | GiveUp | None:
        decision = super().fail(delivery, error, now_s=now_s, dice=dice)
        if isinstance(decision, GiveUp):
            self.settle(delivery)
        return decision


class _PostponeCounts(Engine):
    def postpone(self, delivery: Delivery, *, until_s: float) -> None:
        delivery.attempts += 1
        super().postpone(delivery, until_s=until_s)


class _PostponeForgets(Engine):
    def postpone(self, delivery: Delivery, *, until_s: float) -> None:
        super().postpone(delivery, until_s=float("inf"))


class _TickForgets(Engine):
    def tick(self, now_s: float) -> float | None:
        due = [entry for entry in self._waiting if entry[0] <= now_s]
        if len(due) > 1:
            self._waiting.remove(max(due))
        return super().tick(now_s)


class _TickIsEarly(Engine):
    def tick(self, now_s: float) -> float | None:
        return super().tick(now_s + 0.5)


class _ReplaySettlesTheOffset(Engine):
    def settle(self, delivery: Delivery) -> bool:
        counted = super().settle(delivery)
        if counted and delivery.run is not None and delivery.record.offset in delivery.partition.offsets.unfinished:
            delivery.partition.offsets.finished(delivery.record.offset)
        return counted


class _NoBound(Engine):
    def has_room(self, partition: Partition, events: int) -> bool:
        return True


# ---- how many at a time -------------------------------------------------------------------------------------------------


class _ConcurrencyLeaks(Engine):
    def postpone(self, delivery: Delivery, *, until_s: float) -> None:
        delivery.route.running += 1
        super().postpone(delivery, until_s=until_s)


class _LateOutcomeKeepsItsPlace(Engine):
    def settle(self, delivery: Delivery) -> bool:
        late = delivery.partition.state is GONE
        delivery.route.running += late
        return super().settle(delivery)


class _NoConcurrencyBound(Engine):
    def take(self, queue: int = LOOP) -> Delivery | None:
        bounded = {delivery.route for delivery in chain.from_iterable(self.ready) if delivery.route.max_concurrency is not None}
        for route in bounded:
            route.running -= 1
        delivery = super().take(queue)
        for route in bounded:
            route.running += 1
        return delivery


class _ForgetsTheHeld(Engine):
    def _start_held(self, route: Route) -> None:
        route.held.clear()


class _HeldWaitsForTheNextLeave(Engine):
    """As it was first written: a free place went to a delivery that was then dropped, and the others were held for ever."""

    def take(self, queue: int = LOOP) -> Delivery | None:
        self._taking = True
        try:
            return super().take(queue)
        finally:
            self._taking = False

    def _start_held(self, route: Route) -> None:
        if not getattr(self, "_taking", False):
            super()._start_held(route)


class Bug(NamedTuple):
    """An engine with one rule left out, and the rule (see `Rig.check`) that says so."""

    engine: type[Engine]
    rules: tuple[str, ...]


BUGS = {
    "commits the reach": Bug(_with(offsets=_Reach), ("commit",)),
    "commits one past the last done": Bug(_with(offsets=_PastTheLastDone), ("commit",)),
    "the first handler finishes the event": Bug(_with(offsets=_FirstHandlerFinishes), ("commit", "bound", "raised")),
    "tells an offset once": Bug(_of(_TellsOnce), ("commit",)),
    "no lanes": Bug(_with(lanes=_NoLane), ("order",)),
    "drops the next of a lane": Bug(_with(lanes=_DropsNext), ("progress",)),
    "the next two of a lane change places": Bug(_with(lanes=_ChangesPlaces), ("order",)),
    "a lane never ends": Bug(_with(lanes=_KeepsTheTail), ("progress", "lanes")),
    "ignores the cut": Bug(_of(_AnyStart), ("cut", "waiting")),
    "starts nothing in a stop": Bug(_of(_NoStart), ("progress", "clock", "waiting")),
    "starts what is gone": Bug(_of(_Undead), ("late", "waiting")),
    "counts late outcomes": Bug(_LateOutcomeCounts, ("commit", "bound", "raised")),
    "retries late failures": Bug(_LateFailureRetries, ("late",)),
    "forget keeps the waiting": Bug(_ForgetKeepsTheWaiting, ("waiting",)),
    "forget keeps the partition": Bug(_ForgetKeepsThePartition, ("partitions", "raised")),
    "forgets what to commit": Bug(_ForgetsWhatToCommit, ("commit",)),
    "ignores that time is over": Bug(_NoHalt, ("cut", "drained", "waiting")),
    "a replay blocks the drain": Bug(_ReplayBlocksTheDrain, ("progress", "drained")),
    "runs the next while one is retried": Bug(_RunsTheNextWhileRetrying, ("order", "raised")),
    "never gives up": Bug(_NeverGivesUp, ("retries", "attempts")),
    "settles before the letter": Bug(_GiveUpSettles, ("commit", "running", "concurrency")),
    "counts an attempt that was cut short": Bug(_PostponeCounts, ("attempts", "retries")),
    "forgets what was cut short": Bug(_PostponeForgets, ("progress", "clock", "waiting")),
    "a tick forgets": Bug(_TickForgets, ("waiting", "clock", "progress")),
    "retries too early": Bug(_TickIsEarly, ("clock", "waiting", "once")),
    "a replay settles the offset": Bug(_ReplaySettlesTheOffset, ("commit", "bound", "raised")),
    "always has room": Bug(_NoBound, ("bound",)),
    "a place leaks when cut short": Bug(_ConcurrencyLeaks, ("concurrency",)),
    "a place leaks with a late outcome": Bug(_LateOutcomeKeepsItsPlace, ("concurrency", "progress")),
    "runs as many as come": Bug(_NoConcurrencyBound, ("concurrency",)),
    "forgets the held": Bug(_ForgetsTheHeld, ("progress",)),
    "a free place goes to one that is dropped": Bug(_HeldWaitsForTheNextLeave, ("progress",)),
}

# ---- offset maps --------------------------------------------------------------------------------------------------------


class _ForgetsWhoIsThrough(Partition):
    __slots__ = ()

    def _map(self, offset: int) -> OffsetMap:
        found = super()._map(offset)
        return msgspec.structs.replace(found, unfinished=dict.fromkeys(found.unfinished))


class _ReachesTooFar(Partition):
    __slots__ = ()

    def _map(self, offset: int) -> OffsetMap:
        found = super()._map(offset)
        return msgspec.structs.replace(found, reach=(found.reach or 0) + 1)


class _LeavesOneOut(Partition):
    __slots__ = ()

    def _map(self, offset: int) -> OffsetMap:
        found = super()._map(offset)
        return msgspec.structs.replace(found, unfinished=dict(list(found.unfinished.items())[:-1]))


class _ForgetsWhatIsNotReadAgain(Partition):
    __slots__ = ()

    def _map(self, offset: int) -> OffsetMap:
        restored, self.restored = self.restored, None
        try:
            return super()._map(offset)
        finally:
            self.restored = restored


class _RestoredOnce(Engine):
    def receive_all(self, partition: Partition, events: Iterable[tuple[int, Sequence[Delivery]]]) -> int:
        restored = super().receive_all(partition, events)
        partition.restored = None
        return restored


MAP_BUGS = {
    "the map forgets which handler is through": Bug(_of(_ForgetsWhoIsThrough), ("map",)),
    "the map reaches too far": Bug(_of(_ReachesTooFar), ("map",)),
    "the map leaves one out": Bug(_of(_LeavesOneOut), ("map",)),
    "the map forgets what was not read again yet": Bug(_of(_ForgetsWhatIsNotReadAgain), ("twice",)),
    "the map counts for one batch": Bug(_RestoredOnce, ("twice",)),
}
"""Seen by the simulation alone: the state machine's topic has no id, so no maps."""

NOT_SEEN_FROM_OUTSIDE = {
    "retries late failures",
    "forget keeps the waiting",
    "ignores that time is over",
    "a replay blocks the drain",
    "never gives up",
    "counts an attempt that was cut short",
    "retries too early",
    "a replay settles the offset",
    "runs as many as come",
    "a free place goes to one that is dropped",
}
"""What the simulation can't see: it neither replays nor counts attempts and places, and new events mend what waits."""
