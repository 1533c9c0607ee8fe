"""What does a member know of one partition, and of what it has received of it? Deliveries, their routes, and the state of one
assignment, with what is to be committed for it and what stands beside the offset.

Each assignment is a new `Partition`, so revoking is forgetting one object, and a late outcome can't be taken for one of the next
assignment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from choreo.core.guard import Guard
from choreo.core.lanes import Lanes
from choreo.core.offset_map import NO_TOPIC_ID, Begun, Entry, OffsetMap, handler_number, without_entries, write_map
from choreo.core.offsets import Offsets
from choreo.core.retry import RetryPolicy
from choreo.record import Committed, Record, TopicPartition

LOOP, THREADS, BURSTS, BURSTS_ON_THREADS = range(4)
"""Who takes what is ready: workers on the event loop, threads, and bursts, whose deliveries share a transaction, on either."""

LIVE = "live"
STOPPING = "stopping"
GONE = "gone"


class Route(msgspec.Struct, eq=False):
    """One handler, as far as the engine has to know it. `running` and `held` serve `max_concurrency`.

    `identity` is the name it is stored under, its first one; empty where nothing is stored. `queue`: who takes its deliveries.
    """

    index: int
    name: str
    retry: RetryPolicy
    identity: str = ""
    ordered: bool = True
    queue: int = LOOP
    max_concurrency: int | None = None
    running: int = 0
    held: deque[Delivery] = msgspec.field(default_factory=deque)
    number: int = -1
    """What it is called in an offset map."""

    def __post_init__(self) -> None:
        self.number = handler_number(self.identity or self.name)


class Delivery(msgspec.Struct, eq=False, gc=False):
    """One event for one handler. Owner: the engine; `attempts` counts begun ones, `fatal` those begun alone in the process, that
    ended it or, while `alone`, may do so now.

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
    runs: bool = False
    fatal: int = 0
    alone: bool = False


class Partition:
    """One assignment of one partition. Owner: the engine."""

    __slots__ = (
        "_awaited", "_taken", "bare", "begun", "cut", "guard", "id", "lanes", "offsets", "restored", "running", "stamp", "start", "state",
        "topic_id", "wake_at",
    )  # fmt: skip

    def __init__(self, partition: TopicPartition, number: int, start: int | None, topic_id: bytes, restored: OffsetMap | None) -> None:
        self.id = partition
        self.start = start
        """The committed offset; None: there was none, and the first record that comes says where it begins."""
        self.topic_id = topic_id
        self.restored = restored
        """What is known of events that an earlier run received; None when all of them came again."""
        self.guard = Guard(restored)
        if topic_id == NO_TOPIC_ID:
            self.guard.off()
        self.bare = False
        """The broker takes no more than the crash counts."""
        self.begun = False
        """Whether something was to be handed out: before, there is nothing to commit."""
        self.stamp = number << 32  # above those of every assignment before
        self._taken: Committed | None = None
        self._awaited: deque[tuple[int, int]] = deque()
        self.state = LIVE
        self.running = 0
        self.cut = -1
        self.wake_at = -1
        """The runtime's own: it wants to know when the events in flight have fallen to this."""
        self.lanes = Lanes()
        self.offsets: Offsets[Delivery] = Offsets()

    @property
    def in_flight(self) -> int:
        """Events received and not finished."""
        return len(self.offsets.unfinished)

    def drained(self) -> bool:
        """Whether nothing runs and nothing at or below the cut is unfinished."""
        return self.running == 0 and next(iter(self.offsets.unfinished), self.cut + 1) > self.cut

    def take(self, *, also_maps: bool, last: bool = False) -> Committed | None:
        """What to commit: the offset, where it moved since the last call, or (`also_maps`) where there is more to say about it;
        in the `last` call of an assignment once more what was taken already, for that may have been refused."""
        offset = self.committable()
        if offset is None or not self.begun:
            return None
        self.guard.reached(offset)
        moved = last or self._taken is None or offset != self._taken.offset
        if not moved and not also_maps:
            return None
        text = self._text(offset)
        if not moved and self._taken is not None and text == self._taken.metadata:
            return None
        self.stamp += 1
        self._taken = Committed(offset, text, self.stamp)
        self._awaited.append((self.stamp, self.guard.watched))
        return self._taken

    def take_with(self, ended: Sequence[Delivery], *, not_begun_too: bool = False) -> Committed | None:
        """What to commit in one transaction with what these came to, as if they had settled; also where nothing has changed.
        `not_begun_too`: also where nothing was handed out yet. None: there is nothing that could be committed."""
        for delivery in ended:
            delivery.settled = True
        offsets, begun = self.offsets, self.begun
        unfinished = offsets.unfinished
        if ended:
            offsets.unfinished = {at: mine for at, mine in unfinished.items() if not all(one.settled for one in mine)}
        self.begun = begun or not_begun_too
        try:
            return self.take(also_maps=True, last=True)
        finally:
            self.begun, offsets.unfinished = begun, unfinished
            for delivery in ended:
                delivery.settled = False

    def refused(self) -> None:
        """A commit did not go through, and nobody tries it again: the next `take` says the same once more."""
        self._taken = None

    def awaits(self, stamp: int) -> bool:
        """Whether something that was taken up to `stamp` is not acknowledged yet."""
        return bool(self._awaited) and self._awaited[0][0] <= stamp

    def acknowledged(self, stamp: int) -> bool:
        """A commit is there, and with it all that were taken before; whether it was one of this assignment."""
        known = False
        while self._awaited and self._awaited[0][0] <= stamp:
            self.guard.acknowledged(self._awaited.popleft()[1])
            known = True
        return known

    def committable(self) -> int | None:
        """The offset to commit (the next one to read after a restart); None while it is unknown."""
        offset = self.offsets.committable()
        return self.start if offset is None else offset

    def _text(self, offset: int) -> str:
        if self.topic_id == NO_TOPIC_ID:
            return ""
        found = self._map(offset)
        return write_map(without_entries(found) if self.bare else found)

    def _map(self, offset: int) -> OffsetMap:
        reach = offset if self.offsets.reach is None else self.offsets.reach
        unfinished: dict[int, Entry] = {}
        numbers: set[int] = set()
        for at, deliveries in self.offsets.unfinished.items():
            entry: dict[int, Begun | None] | None = None
            for delivery in deliveries:
                # What runs may be innocent of a crash beside it: an attempt counts when it has ended.
                ended = delivery.attempts - delivery.runs
                if ended or delivery.settled or delivery.fatal:
                    entry = entry or {}
                    entry[delivery.route.number] = None if delivery.settled else Begun(ended, delivery.fatal)
            if entry:
                numbers.update(entry)
            unfinished[at] = entry
        if self.restored is not None:
            unfinished.update((at, known) for at, known in self.restored.unfinished.items() if at >= reach)
            numbers.update(self.restored.handlers)
            reach = max(reach, self.restored.reach or 0)
        return OffsetMap(
            self.topic_id, offset, self.guard.unclean, max(offset, self.guard.watched), reach, tuple(sorted(numbers)), unfinished
        )

    def may_start(self, delivery: Delivery) -> bool:
        """Whether a delivery may begin: always while LIVE, up to the cut while STOPPING, never when GONE."""
        if self.state is LIVE:
            return True
        return self.state is STOPPING and delivery.run is None and delivery.record.offset <= self.cut
