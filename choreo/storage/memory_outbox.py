"""Events that wait in memory to be published: for tests, and to learn what an outbox does. They are gone with the process.

There are no transactions: `MemoryOutbox.add` commits its rows at once, so the order of calls is the order of commits.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count, islice

import msgspec

from choreo.errors import StoreError
from choreo.storage.leases import divided
from choreo.store import OutboxRow, OutboxState, StoredRow, shard_of


class _Group:
    """The rows of one group, and who has its shards. `rows` are due or set aside, in the order of `seq`, which only grows."""

    def __init__(self) -> None:
        self.rows: dict[int, StoredRow] = {}
        self.timers: dict[int, StoredRow] = {}
        self.aside: set[int] = set()
        self.relays: dict[str, datetime] = {}
        self.leases: dict[int, tuple[str, datetime]] = {}


class _Database:
    """What outboxes share. The lock guards all of it."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self.clock = clock
        self.lock = threading.Lock()
        self.seqs = count(1)
        self.groups: defaultdict[str, _Group] = defaultdict(_Group)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class MemoryOutbox:
    """See `choreo.store.Outbox` and `OutboxDesk`. ``MemoryOutbox(group, shared_with=other)`` looks at the rows that `other` looks at,
    as two processes on one database do; such outboxes may be used from different threads. `clock` is that of the database.
    """

    def __init__(self, group: str, *, shared_with: MemoryOutbox | None = None, clock: Callable[[], datetime] | None = None) -> None:
        self._database: _Database = _Database(clock or _utc_now) if shared_with is None else shared_with._database
        self._group = group
        self._failure: StoreError | None = None
        self._failures_left = 0

    # ---- setting the scene, and looking ---------------------------------------------------------------------------------

    def add(self, rows: Sequence[OutboxRow]) -> list[int]:
        """Commits `rows`, in their order, as a transaction of whoever writes does; their numbers. Not subject to `fail`."""
        with self._database.lock:
            now = self._database.clock()
            group = self._database.groups[self._group]
            return [self._insert(group, row, now) for row in rows]

    def _insert(self, group: _Group, row: OutboxRow, now: datetime) -> int:
        seq = next(self._database.seqs)
        due_at = now + row.due if isinstance(row.due, timedelta) else row.due
        stored = StoredRow(seq, row.record, row.event_type, row.event_id, now, due_at)
        (group.rows if due_at is None else group.timers)[seq] = stored
        return seq

    def fail(self, error: StoreError, times: int = 1) -> None:
        """The next `times` calls of this outbox raise `error`, and write nothing."""
        with self._database.lock:
            self._failure, self._failures_left = error, times

    def holder(self, shard: int) -> str | None:
        """The relay that may publish from `shard` now."""
        with self._database.lock:
            relay, ends = self._database.groups[self._group].leases.get(shard, ("", self._database.clock()))
            return relay if relay and ends >= self._database.clock() else None

    def in_order(self) -> list[StoredRow]:
        """The rows that are due or set aside, those behind one that was set aside included."""
        with self._database.lock:
            return list(self._database.groups[self._group].rows.values())

    # ---- the port -------------------------------------------------------------------------------------------------------

    def lease(self, relay: str, lasts_s: float) -> Collection[int]:
        with self._opened() as group:
            now = self._database.clock()
            group.relays = {other: ends for other, ends in group.relays.items() if other != relay and ends >= now}
            mine: frozenset[int] = frozenset()
            ends = now + timedelta(seconds=lasts_s)
            if lasts_s > 0:
                group.relays[relay] = ends
                holders = {shard: holder for shard, (holder, until) in group.leases.items() if until >= now}
                mine = divided(relay, holders, len(group.relays))
            group.leases = {shard: lease for shard, lease in group.leases.items() if lease[0] != relay}
            group.leases.update((shard, (relay, ends)) for shard in mine)
            return mine

    def due(self, shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        with self._opened() as group:
            self._let_timers_fall_due(group)
            return list(islice(self._may_go(group, frozenset(shards), frozenset(beside)), limit))

    def _let_timers_fall_due(self, group: _Group) -> None:
        now = self._database.clock()
        fell = [timer for timer in group.timers.values() if timer.due_at is not None and timer.due_at <= now]
        for timer in sorted(fell, key=_falls_due):
            del group.timers[timer.seq]
            seq = next(self._database.seqs)
            group.rows[seq] = msgspec.structs.replace(timer, seq=seq)

    def _may_go(self, group: _Group, shards: frozenset[int], beside: frozenset[tuple[str, bytes | None]]) -> Iterator[StoredRow]:
        behind = set(beside)
        for seq, row in group.rows.items():
            topic, key = row.record.topic, row.record.key
            if (topic, None) in beside or (key is not None and (topic, key) in behind):
                continue
            if seq not in group.aside:
                if shard_of(topic, key, row.event_id) in shards:
                    yield row
            elif key is not None:
                behind.add((topic, key))

    def published(self, seqs: Collection[int]) -> None:
        with self._opened() as group:
            for seq in seqs:
                group.rows.pop(seq, None)
                group.aside.discard(seq)

    def set_aside(self, seq: int, reason: str) -> None:
        with self._opened() as group:
            if seq in group.rows and seq not in group.aside:
                group.aside.add(seq)
                group.rows[seq] = msgspec.structs.replace(group.rows[seq], reason=reason)

    def state(self) -> OutboxState:
        with self._opened() as group:
            now = self._database.clock()
            ages_s = [(now - (row.due_at or row.created_at)).total_seconds() for seq, row in group.rows.items() if seq not in group.aside]
            return OutboxState(len(ages_s), max(0.0, *ages_s) if ages_s else 0.0, len(group.timers), len(group.aside))

    def close(self) -> None:
        """Nothing to release."""

    # ---- the operator's desk --------------------------------------------------------------------------------------------

    def waiting(self, limit: int, *, aside_only: bool = False) -> Sequence[StoredRow]:
        with self._opened() as group:
            aside = [group.rows[seq] for seq in sorted(group.aside)]
            if aside_only:
                return aside[:limit]
            others = [row for seq, row in group.rows.items() if seq not in group.aside]
            return [*aside, *others, *sorted(group.timers.values(), key=_falls_due)][:limit]

    def retry(self, seqs: Collection[int]) -> int:
        with self._opened() as group:
            found = group.aside.intersection(seqs)
            for seq in found:
                group.rows[seq] = msgspec.structs.replace(group.rows[seq], reason=None)
            group.aside -= found
            return len(found)

    def discard(self, seqs: Collection[int]) -> int:
        with self._opened() as group:
            found = group.aside.intersection(seqs)
            for seq in found:
                del group.rows[seq]
            group.aside -= found
            return len(found)

    @contextmanager
    def _opened(self) -> Iterator[_Group]:
        with self._database.lock:
            if self._failure is not None and self._failures_left > 0:
                self._failures_left -= 1
                raise self._failure
            yield self._database.groups[self._group]


def _falls_due(timer: StoredRow) -> tuple[datetime, int]:
    return timer.due_at or timer.created_at, timer.seq
