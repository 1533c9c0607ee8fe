"""Who publishes what was committed to the outbox? One relay in each process, each with some of the shards, under leases.

Rows of one key are sent one at a time, each when Kafka has acknowledged the one before; they are deleted after that. So whatever breaks,
a stopped relay that wakes up late included, the order in which the events of a key first appear is that of their commits; what is sent
twice has the same id. A row that Kafka never takes as it is goes aside with its reason, its key waits behind it, and all others go on.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from math import inf
from typing import TypeVar

import msgspec

from choreo import failpoint
from choreo.broker import Report
from choreo.envelope import new_id
from choreo.errors import BrokerError, StoreError, told
from choreo.runtime.sends import NEVER, Sends
from choreo.store import Outbox, OutboxState, StoredRow, shard_of
from choreo.telemetry.counters import Counters

_R = TypeVar("_R")
_log = logging.getLogger("choreo.outbox")

POLL_S = 0.2
SOON_S = 0.01
"""How often it looks while a commit of this process is expected (`expect`)."""
EXPECTED_S = 2.0
LEASE_S = 5.0
MARGIN_S = 1.0
"""Nothing is begun when the lease has less left: it must be with Kafka before another relay may begin."""
PAGE = 500
HELD_MOST = 20_000
"""Rows that it keeps at once, those that wait for Kafka included."""
HELD_OF_A_TOPIC = 1_000
"""A topic with more rows here is not read on until there are less: where Kafka does not take them they must not hide the others."""
LONG = 50
"""The same for a key, for its rows go one by one."""
LONG_MOST = 64
ASIDE_AFTER_S = 30.0
RETRY_S = 1.0
STATE_S = 5.0
CLOSE_S = 2.0
_NO_SUCH_TOPIC = frozenset(
    {
        "UNKNOWN_TOPIC_OR_PART",
        "_UNKNOWN_TOPIC",
        "_UNKNOWN_PARTITION",
        "TOPIC_AUTHORIZATION_FAILED",
        "TOPIC_EXCEPTION",
        "INVALID_TOPIC_EXCEPTION",
    }
)
"""What somebody has to mend, but may be about to: the rows wait for ASIDE_AFTER_S first."""

Key = tuple[str, bytes]


class _Row(msgspec.Struct, eq=False):
    """A row that was read and is not acknowledged yet."""

    stored: StoredRow
    shard: int
    since_s: float = 0.0
    """When it was first given to the producer (the loop's clock); 0.0: not yet."""
    last: bool = False
    """Whether it has waited for ASIDE_AFTER_S and is tried once more, for what Kafka said before may be a whole backoff old."""

    @property
    def key(self) -> Key | None:
        record = self.stored.record
        return None if record.key is None else (record.topic, record.key)


class OutboxRelay:
    """Owner: the event loop; the outbox is called on a thread of its own. `sends` is the worker's."""

    def __init__(
        self,
        outbox: Outbox,
        sends: Sends,
        counters: Counters,
        *,
        lease_s: float = LEASE_S,
        aside_after_s: float | None = None,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{new_id()}"
        self._outbox = outbox
        self._sends = sends
        self._counters = counters
        self._lease_s = lease_s
        self._aside_after_s = ASIDE_AFTER_S if aside_after_s is None else aside_after_s
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="choreo-outbox")
        self._shards: Collection[int] = ()
        self._until_s = 0.0
        """Nothing is begun after it (the loop's clock)."""
        self._renew_s = 0.0
        self._held: dict[int, _Row] = {}
        self._of_key: dict[Key, deque[_Row]] = {}
        """Rows of each key, in order; the first is under way."""
        self._acknowledged: list[int] = []
        self._aside: list[tuple[_Row, str]] = []
        self._event = asyncio.Event()
        self._looked_s = 0.0
        self._expected_until_s = 0.0
        self._stopping = False
        self._leaving = False
        """It begins nothing any more: what is under way ends, and is deleted."""
        self.started: asyncio.Task[None] | None = None
        """What runs `run`."""
        self.state = OutboxState(0, 0.0, 0, 0)
        """How the outbox is doing, at most STATE_S seconds ago."""
        self._state_s = 0.0
        self.troubled: StoreError | None = None
        """Why the outbox can't be read just now; None when all is well."""

    # ---- from outside -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """This process has committed rows: it looks at once."""
        self._looked_s = 0.0
        self._event.set()

    def expect(self) -> None:
        """This process is about to commit rows: it looks often for a while. May be called on any thread."""
        with suppress(RuntimeError):  # the loop is closed: another relay has them
            self._loop.call_soon_threadsafe(self._expect)

    def _expect(self) -> None:
        self._expected_until_s = self._loop.time() + EXPECTED_S
        self._event.set()

    async def close(self) -> None:
        """Publishes what is there within CLOSE_S, and gives the shards back. Raises nothing: what is left is in the outbox."""
        self._stopping = True
        self.wake()
        if self.started is not None:
            await asyncio.wait({self.started}, timeout=CLOSE_S)
        # Also for what the worker's sends hear of after this: the shards are another relay's then.
        self._leaving = True
        if self.started is not None:
            self._event.set()
            await asyncio.wait({self.started}, timeout=CLOSE_S)
            self.started.cancel()
            await asyncio.wait({self.started}, timeout=CLOSE_S)
        with suppress(StoreError, TimeoutError):
            await asyncio.wait_for(self._call(partial(self._outbox.lease, self.name, 0.0)), CLOSE_S)
        with suppress(StoreError, TimeoutError):
            await asyncio.wait_for(self._call(self._outbox.close), CLOSE_S)
        self._thread.shutdown(wait=False)

    # ---- the round --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until it is closed. Raises a StoreError that waiting can't mend."""
        try:
            await self._run()
        except asyncio.CancelledError:
            if not self._stopping:
                raise

    async def _run(self) -> None:
        while True:
            last = self._stopping  # a round that began before may have looked too early
            try:
                more = await self._round()
            except StoreError as error:
                if not error.retriable:
                    raise
                self._trouble(error)
                if self._stopping:
                    return
                await asyncio.sleep(RETRY_S)
                continue
            if self.troubled is not None:
                self.troubled = None
                _log.warning("the outbox answers again")
            if last and not more and not self._held:
                return
            if not more:
                await self._rest()

    def _trouble(self, error: StoreError) -> None:
        self._counters.store_errors += 1
        if self.troubled is None:
            _log.warning("%s; its events wait in the outbox, nothing is lost, trying again every %.0f s", error, RETRY_S)
        self.troubled = error
        self._looked_s = 0.0

    async def _round(self) -> bool:
        """Whether there may be more to do at once."""
        now_s = self._loop.time()
        if now_s >= self._renew_s:
            await self._renew()
        await self._write_down()
        rows: Sequence[StoredRow] = ()
        known, room = len(self._held), min(PAGE, HELD_MOST - len(self._held))
        if room > 0 and self._may_read() and now_s - self._looked_s >= self._every_s():
            self._event.clear()
            self._looked_s = now_s
            of_topics = Counter(row.stored.record.topic for row in self._held.values())
            full = {topic for topic, held in of_topics.items() if held > HELD_OF_A_TOPIC}
            long = [key for key, waiting in self._of_key.items() if len(waiting) > LONG and key[0] not in full][:LONG_MOST]
            known = sum(1 for row in self._held.values() if row.stored.record.topic not in full and row.key not in long)
            rows = await self._call(
                partial(self._outbox.due, self._shards, known + room, beside=[*long, *((topic, None) for topic in full)])
            )
            self._begin(rows)
        if now_s - self._state_s >= STATE_S:
            await self._look_at_it(now_s)
        if len(rows) == known + room:
            self._looked_s = 0.0  # a whole page: there is more
        return bool(self._acknowledged or self._aside)

    async def _look_at_it(self, now_s: float) -> None:
        first, self._state_s = not self._state_s, now_s
        self.state = await self._call(self._outbox.state)
        if first and self.state.aside:
            _log.warning(
                "outbox: set aside are %d events, and later ones of their keys wait behind them: choreo outbox ls", self.state.aside
            )

    def _may_read(self) -> bool:
        return bool(self._shards) and self._may_begin() and len(self._held) < HELD_MOST

    def _every_s(self) -> float:
        return SOON_S if self._loop.time() < self._expected_until_s else POLL_S

    async def _rest(self) -> None:
        next_s = min(self._renew_s, self._looked_s + self._every_s() if self._may_read() else inf)
        with suppress(TimeoutError):
            # At least once round the loop: reports and others must get their turn.
            await asyncio.wait_for(self._event.wait(), max(0.0005, next_s - self._loop.time()))
        self._event.clear()

    def _call(self, function: Callable[[], _R]) -> asyncio.Future[_R]:
        return self._loop.run_in_executor(self._thread, function)

    # ---- leases -----------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        asked_s = self._loop.time()
        # Until it is answered nobody knows what it has let go: another relay may have that already.
        self._until_s = 0.0
        self._shards = await self._call(partial(self._outbox.lease, self.name, self._lease_s))
        # From before the question: the database's lease ends later.
        self._until_s = asked_s + self._lease_s - min(MARGIN_S, self._lease_s / 4)
        self._renew_s = asked_s + self._lease_s / 3
        for row in [row for row in self._held.values() if row.shard not in self._shards and not row.since_s]:
            self._forget(row)

    def _may_begin(self) -> bool:
        return not self._leaving and self._loop.time() < self._until_s

    # ---- rows -------------------------------------------------------------------------------------------------------

    def _begin(self, rows: Sequence[StoredRow]) -> None:
        done = set(self._acknowledged)
        for stored in rows:
            if stored.seq in self._held or stored.seq in done:
                continue
            row = _Row(stored, shard_of(stored.record.topic, stored.record.key, stored.event_id))
            self._held[stored.seq] = row
            if row.key is None:
                self._send(row)
                continue
            waiting = self._of_key.setdefault(row.key, deque())
            waiting.append(row)
            if len(waiting) == 1:
                self._send(row)

    def _send(self, row: _Row) -> None:
        if not self._may_send(row):
            self._drop(row)
            self._looked_s = 0.0
            return
        row.since_s = self._loop.time()
        self._sends.send_while(partial(self._wanted, row), row.stored.record, partial(self._sent, row))

    def _may_send(self, row: _Row) -> bool:
        return self._may_begin() and row.shard in self._shards

    def _wanted(self, row: _Row) -> bool:
        """Whether a row that Kafka did not take is tried again: not by a relay that has lost its shard, nor for ever without a topic."""
        return self._may_send(row) and self._loop.time() - row.since_s < self._aside_after_s

    def _sent(self, row: _Row, error: BrokerError | None, reports: Sequence[Report]) -> None:
        if error is None:
            self._counters.relayed += 1
            self._acknowledged.append(row.stored.seq)
            self._held.pop(row.stored.seq, None)
            self._next_of_key(row)
        elif not self._may_send(row):
            self._drop(row)  # whoever has its shard finds out by itself
        elif error.code in NEVER or (row.last and error.code in _NO_SUCH_TOPIC):
            self._aside.append((row, told(error)))
            self._drop(row, keep=True)
        elif error.code in _NO_SUCH_TOPIC and not row.last:
            row.last = True
            self._sends.send_while(partial(self._wanted, row), row.stored.record, partial(self._sent, row))
        else:
            self._drop(row)
        self._event.set()

    def _next_of_key(self, row: _Row) -> None:
        if row.key is None:
            return
        waiting = self._of_key[row.key]
        waiting.popleft()
        if waiting:
            self._send(waiting[0])
        else:
            del self._of_key[row.key]

    def _drop(self, row: _Row, *, keep: bool = False) -> None:
        """It stays in the outbox, and so do those of its key that came behind it: all are read again. With `keep` it is held until it was
        written down what became of it, so that nothing of its key is begun meanwhile."""
        waiting = self._of_key.get(row.key) if row.key is not None else None
        for other in (row,) if waiting is None else tuple(waiting):
            if not (keep and other is row):
                self._held.pop(other.stored.seq, None)
        if waiting is not None and row.key is not None:
            if keep:
                self._of_key[row.key] = deque((row,))
            else:
                del self._of_key[row.key]

    def _forget(self, row: _Row) -> None:
        """One that was never begun, of a shard that another relay has now."""
        self._held.pop(row.stored.seq, None)
        waiting = self._of_key.get(row.key) if row.key is not None else None
        if waiting is not None and row in waiting:
            waiting.remove(row)

    async def _write_down(self) -> None:
        """Deletes what was acknowledged, sets aside what can't be published."""
        if self._acknowledged:
            acknowledged = list(self._acknowledged)
            if failpoint.ACTIVE:
                failpoint.hit("after_outbox_ack")
            await self._call(partial(self._outbox.published, acknowledged))
            del self._acknowledged[: len(acknowledged)]
        while self._aside:
            row, reason = self._aside[0]
            if not self._may_send(row):
                del self._aside[0]
                self._drop(row)
                continue
            await self._call(partial(self._outbox.set_aside, row.stored.seq, reason))
            del self._aside[0]
            self._counters.set_aside += 1
            _log.error(
                "outbox: %s %s for %s can't be published: %s; it was set aside, later events of its key wait behind it, others go on; "
                "mend the cause, then: choreo outbox retry",
                row.stored.event_type,
                row.stored.event_id,
                row.stored.record.topic,
                reason,
            )
            self._drop(row)
