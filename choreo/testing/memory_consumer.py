"""A member of a group in the memory broker, and a reader outside of any group: the `Consumer` and `LogReader` ports.

A listener is called with no lock held, so that it may wait for other threads of the test, or write to the broker.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from choreo.broker import METADATA_TOO_LARGE, REBALANCE_FAILED, CommitResult, Rebalanced
from choreo.errors import BrokerError, StateError
from choreo.record import Batch, Committed, Record, TopicPartition
from choreo.testing.memory_group import MAX_METADATA_CHARS, Group
from choreo.testing.memory_log import PartitionLog
from choreo.testing.memory_state import MemoryState

_MAX_READ_RECORDS = 1000


class MemoryConsumer:
    """See `choreo.broker.Consumer`. Owner: the thread that polls; only `lose` comes from another."""

    def __init__(self, state: MemoryState, group_name: str, member: int) -> None:
        self.group_name = group_name
        self._state = state
        self._member = member
        self._group: Group = state.group(group_name)
        self._listener: Rebalanced | None = None
        self._topics: tuple[str, ...] = ()
        self._positions: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._lost: list[TopicPartition] = []
        self._results: list[CommitResult] = []
        self._again: dict[TopicPartition, Committed] = {}
        """What was refused for now: the next poll commits it again."""
        self._turn = 0
        self._closed = self._dead = False

    @property
    def closed(self) -> bool:
        return self._closed

    def subscribe(self, topics: Sequence[str], listener: Rebalanced) -> None:
        self._check_open()
        with self._state.changed:
            self._listener, self._topics = listener, tuple(topics)
            self._join()

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        self._check_open()
        deadline = time.monotonic() + timeout_s
        if self._again:
            again, self._again = self._again, {}
            self.commit({partition: wanted for partition, wanted in again.items() if self._group.owns(self._member, partition)})
        while True:
            self._check_open()  # it may have been killed meanwhile
            self._follow_group()
            with self._state.changed:
                error = self._state.take_fault("poll", self.group_name)
                if error is not None:
                    raise error
                if self._listener is not None and self._behind_group():
                    continue
                batches = self._fetch(max_records)
                left_s = deadline - time.monotonic()
                if batches or left_s <= 0:
                    return batches
                self._state.changed.wait(left_s)

    # ---- the group ------------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        self._group.join(self._member, self._topics)
        self._state.rebalance(self._group)

    def _behind_group(self) -> bool:
        group, member = self._group, self._member
        return bool(self._lost) or not group.has(member) or bool(group.to_release(member)) or bool(group.to_take(member))

    def _follow_group(self) -> None:
        """Tells the listener what the group has decided, until there is nothing left to tell."""
        listener = self._listener
        if listener is None:
            return
        self._tell_lost(listener)
        with self._state.changed:
            if self._lost:
                return  # the next turn tells it
            revoked = self._group.to_release(self._member)
        if revoked:
            self._give_back(listener, revoked)
        with self._state.changed:
            if self._lost:
                return
            taken = self._group.to_take(self._member)
            self._group.take(self._member, taken)
            committed = {partition: self._group.committed.get(partition) for partition in taken}
        if taken:
            self._start(listener, committed)

    def _tell_lost(self, listener: Rebalanced) -> None:
        with self._state.changed:
            lost, self._lost = self._lost, []
            self._forget(lost)
        if lost:
            listener.lost(lost)
        with self._state.changed:
            # Lost once more meanwhile, by another thread: that is told before it joins again.
            if not self._group.has(self._member) and not self._closed and not self._lost:
                self._join()

    def _give_back(self, listener: Rebalanced, partitions: Sequence[TopicPartition]) -> None:
        try:
            answered = listener.revoked(partitions)
            self.commit({partition: _short(wanted) for partition, wanted in answered.items() if partition in partitions})
        finally:
            with self._state.changed:
                self._forget(partitions)
                self._group.release(self._member, partitions)
                self._state.changed.notify_all()

    def _start(self, listener: Rebalanced, committed: Mapping[TopicPartition, Committed | None]) -> None:
        try:
            try:
                starts = listener.assigned(committed)
            except BrokerError as error:
                if not error.retriable:
                    raise
                raise BrokerError(str(error), code=REBALANCE_FAILED, retriable=False) from error
            with self._state.changed:
                for partition in committed:
                    if partition not in starts:
                        raise StateError(f"{partition}: the listener's assigned() named no start for it; answer one for each partition")
                    if self._group.owns(self._member, partition):
                        self._positions[partition] = self._state.log(partition).offset_of(starts[partition])
        except BaseException:
            # It was not told where to read: the partitions are offered again, by the next poll.
            with self._state.changed:
                self._forget(committed)
                self._group.release(self._member, committed)
                self._state.changed.notify_all()
            raise

    def _forget(self, partitions: Iterable[TopicPartition]) -> None:
        for partition in partitions:
            self._positions.pop(partition, None)
            self._paused.discard(partition)

    def lose(self) -> None:
        """The group throws it out, as after a session timeout: its partitions are anybody's, its next poll calls `lost` and rejoins."""
        with self._state.changed:
            self._lost += self._group.leave(self._member)
            self._state.rebalance(self._group)

    def die(self) -> None:
        """Its process is gone: what it still calls counts for nothing."""
        with self._state.changed:
            self._closed = self._dead = True
            self._group.leave(self._member)
            self._state.rebalance(self._group)

    # ---- records --------------------------------------------------------------------------------------------------------

    def _fetch(self, max_records: int) -> list[Batch]:
        readable = [p for p in self._positions if p not in self._paused and self._group.owns(self._member, p)]
        for partition in readable:
            self._check_range(partition)
        if not readable:
            return []
        self._turn = (self._turn + 1) % len(readable)
        batches: list[Batch] = []
        left = max_records
        for partition in readable[self._turn :] + readable[: self._turn]:
            if left <= 0:
                break
            records, self._positions[partition] = self._state.log(partition).read(self._positions[partition], left)
            if records:
                batches.append(Batch(partition, records))
                left -= len(records)
        return batches

    def _check_range(self, partition: TopicPartition) -> None:
        """Like librdkafka with ``auto.offset.reset=error``: says it once, then reads nothing of that partition."""
        log, position = self._state.log(partition), self._positions[partition]
        if not log.holds(position):
            del self._positions[partition]
            raise BrokerError(
                f"{partition}@{position}: not in the log, which holds {log.first} to {log.end}; choose where to read on",
                code="_AUTO_OFFSET_RESET",
                retriable=False,
            )

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        with self._state.changed:
            self._paused.update(p for p in partitions if self._group.owns(self._member, p))

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        with self._state.changed:
            self._paused.difference_update(partitions)

    # ---- commits --------------------------------------------------------------------------------------------------------

    def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        long = {partition: wanted for partition, wanted in offsets.items() if wanted is not _short(wanted)}
        if long:
            names = ", ".join(str(partition) for partition in sorted(long))
            message = f"group {self.group_name}: {names}: a text of over {MAX_METADATA_CHARS} characters; write less"
            self._results.append(CommitResult(long, BrokerError(message, code=METADATA_TOO_LARGE, retriable=False)))
        offsets = {partition: wanted for partition, wanted in offsets.items() if partition not in long}
        if not offsets or self._dead:
            return
        with self._state.changed:
            error = self._state.take_fault("commit", self.group_name)
            if error is not None:
                self._results.append(CommitResult(dict(offsets), error))
                if error.retriable:
                    self._again.update(offsets)
                return
            accepted, refused = self._group.commit(self._member, offsets)
        if accepted:
            self._results.append(CommitResult(accepted, None))
        if refused:
            names = ", ".join(str(partition) for partition in sorted(refused))
            message = f"group {self.group_name}: {names} not assigned to this member; commit only what `assigned` gave it"
            self._results.append(CommitResult(refused, BrokerError(message, code="_STATE", retriable=False)))

    def commit_results(self) -> list[CommitResult]:
        results, self._results = self._results, []
        return results

    def identity(self) -> bytes | None:
        with self._state.changed:
            return self._group.identity(self._member)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._listener is None:
            return
        try:
            self._tell_lost(self._listener)
            with self._state.changed:
                owned = self._group.owned(self._member)
            if owned:
                self._give_back(self._listener, owned)
        finally:
            with self._state.changed:
                self._group.leave(self._member)
                self._state.rebalance(self._group)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerError(f"group {self.group_name}: this consumer is closed; make another", code="_STATE", retriable=False)


def _short(wanted: Committed) -> Committed:
    """Without its text where that is too long; else itself."""
    return wanted if len(wanted.metadata) <= MAX_METADATA_CHARS else Committed(wanted.offset, "", wanted.stamp)


class MemoryReader:
    """See `choreo.broker.LogReader`."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state
        self._positions: dict[TopicPartition, int] = {}

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        with self._state.changed:
            return {log.partition: (log.first, log.stable) for log in self._state.topic(topic).logs}

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        with self._state.changed:
            self._positions = {partition: max(offset, self._state.log(partition).first) for partition, offset in starts.items()}

    def read(self, timeout_s: float) -> list[Record]:
        deadline = time.monotonic() + timeout_s
        with self._state.changed:
            while True:
                records = self._read_on()
                left_s = deadline - time.monotonic()
                if records or left_s <= 0:
                    return records
                self._state.changed.wait(left_s)

    def _read_on(self) -> list[Record]:
        records: list[Record] = []
        for partition, position in self._positions.items():
            log: PartitionLog = self._state.log(partition)
            room = _MAX_READ_RECORDS - len(records)
            if room == 0:
                break
            found, self._positions[partition] = log.read(max(position, log.first), room)
            records += found
        return records

    def position(self) -> Mapping[TopicPartition, int]:
        return dict(self._positions)

    def close(self) -> None:
        self._positions = {}
