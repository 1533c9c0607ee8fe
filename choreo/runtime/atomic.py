"""What goes to Kafka in one transaction now, and what follows from how it ended? Effects `kafka`: what handlers emit, their letters and
what became of them commit with the offsets, and with the offset map that says which deliveries are finished.

One transaction is under way at a time; what ends meanwhile waits for the next. A delivery settles when its transaction is committed, so
the next one of its key begins then. What an aborted transaction held goes into the next as it is, no handler runs again; but for a
record that can never be written (its delivery fails) or cannot be now (its delivery waits, the others go on).

Where nobody knows whether a transaction was committed, everything in memory is dropped: the transactor is opened anew, which decides it,
and the group reads on from what is committed then (TRAPS 21). Nothing else commits offsets, so none of them goes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from choreo.broker import FENCED, METADATA_TOO_LARGE, CommitResult, Ended, Part, Transactor, Work
from choreo.core.partition import GONE, Delivery, Partition
from choreo.errors import BrokerError, StateError
from choreo.record import Committed, TopicPartition
from choreo.runtime.threads import Asides

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.transactions")

MOST = 5_000
"""Deliveries a transaction."""
MOST_RECORDS = 20_000
MOST_TEXT = 512 * 1024
"""Characters beside the offsets of one: the broker refuses a request of over a megabyte (TRAPS 3)."""
AGAIN_FIRST_S = 0.5
AGAIN_MOST_S = 10.0
MOST_DOUBLINGS = 16
LOOK_S = 0.01
"""How often it is looked whether the group knows this member again."""
LAST_S = 1.0
"""What there is for the last transaction of a partition that is taken away, though the time to drain is over."""
MOVED = frozenset({"ILLEGAL_GENERATION", "UNKNOWN_MEMBER_ID", "STALE_MEMBER_EPOCH", "REBALANCE_IN_PROGRESS", "_STATE"})
"""Errors of a group that is moving, and of a transactor that has to be opened: nothing that anybody has to look at."""

Then = Callable[[BrokerError | None], None]


class _Item(msgspec.Struct, eq=False):
    """What one delivery comes to. `then(None)` when it is committed, `then(error)` when it never can be."""

    delivery: Delivery
    part: Part
    then: Then
    tries: int = 0


class Atomic:
    """Owner: the event loop; the transactor is called on a thread. `shared_id`: others may use its id, and one that is fenced ends."""

    def __init__(self, worker: Worker, transactor: Transactor, *, shared_id: bool) -> None:
        self._worker = worker
        self._transactor = transactor
        self._shared_id = shared_id
        self._aside = Asides(1)
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Item] = deque()
        self._timers: set[asyncio.TimerHandle] = set()
        """Of what can't be written now."""
        self._wanted: set[TopicPartition] = set()
        """Partitions of which something is to be committed, though no delivery brings it."""
        self._pinned: set[TopicPartition] = set()
        """Those of which it is to be committed also if nothing was handed out; until it is."""
        self._under_way: frozenset[TopicPartition] = frozenset()
        self._something = asyncio.Event()
        self._ended = asyncio.Event()
        self._told: dict[str, str] = {}
        self._fails = 0
        self._closed = False
        self.troubled: BrokerError | None = None
        """Why nothing can be committed just now; None when all is well."""

    async def open(self) -> None:
        """Raises BrokerError; may be called again."""
        await self._aside.run(self._transactor.open)

    # ---- what is to be committed ------------------------------------------------------------------------------------

    def write(self, delivery: Delivery, part: Part, then: Then) -> None:
        """Commits these records with the end of the delivery."""
        self._waiting.append(_Item(delivery, part, then))
        self._something.set()

    def want(self, partitions: Iterable[TopicPartition], *, not_begun_too: bool = False) -> None:
        """Something else of these is to be said: an offset without deliveries, or that this run has begun."""
        self._wanted.update(partitions)
        if not_begun_too:
            self._pinned.update(partitions)
        self._something.set()

    async def last(self, partitions: Collection[Partition], deadline: float) -> bool:
        """Says of partitions that are being taken away what there is to say, and that they ended well; whether that is committed in
        time. What is not is for their next owner to read."""
        deadline = max(deadline, self._loop.time() + LAST_S)
        for partition in partitions:
            partition.guard.ended_well()
        ids = {partition.id for partition in partitions if partition.begun}
        self.want(ids)
        while (left_s := deadline - self._loop.time()) > 0 and not ids.isdisjoint(self._wanted | self._under_way):
            self._ended.clear()
            try:
                await asyncio.wait_for(self._ended.wait(), min(0.05, left_s))
            except TimeoutError:
                continue
        done = ids.isdisjoint(self._wanted | self._under_way)
        self._wanted -= ids
        self._pinned.difference_update(partition.id for partition in partitions)
        return done

    # ---- the walk of a transaction ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commits what there is, for ever."""
        while True:
            await self._something.wait()
            self._something.clear()
            while self._worker.may_commit and (self._waiting or self._wanted):
                identity = self._worker.intake.identity
                if identity is None and self._worker.engine.partitions:
                    await asyncio.sleep(LOOK_S)  # the group has put this member out, and the intake is about to say so
                    continue
                items, offsets = self._take()
                if items or offsets:
                    await self._commit(items, offsets, identity or b"")

    async def _commit(self, items: list[_Item], offsets: dict[TopicPartition, Committed], identity: bytes) -> None:
        work = Work([item.part for item in items], offsets, self._worker.plan.group, identity)
        self._under_way = frozenset(offsets)
        ended = await self._aside.run(lambda: self._transactor.run(work))
        self._under_way = frozenset()
        match ended.outcome:
            case "committed":
                self._committed(items, offsets)
            case "aborted":
                await self._aborted(items, offsets, ended)
            case "unknown":
                await self._rewind(items, ended.error)
        self._ended.set()

    def _take(self) -> tuple[list[_Item], dict[TopicPartition, Committed]]:
        """What goes into the next one. Of a partition that is gone nothing does."""
        items: list[_Item] = []
        by_partition: dict[Partition, list[_Item]] = {}
        records = 0
        while self._waiting and len(items) < MOST and records < MOST_RECORDS:
            item = self._waiting.popleft()
            partition = item.delivery.partition
            if partition.state is GONE:
                self._worker.settle(item.delivery)  # it came too late to count
                continue
            records += len(item.part.records)
            items.append(item)
            by_partition.setdefault(partition, []).append(item)
        return self._with_offsets(items, by_partition)

    def _with_offsets(
        self, items: list[_Item], by_partition: dict[Partition, list[_Item]]
    ) -> tuple[list[_Item], dict[TopicPartition, Committed]]:
        wanted, self._wanted = self._wanted, set()
        for where in wanted:
            partition = self._worker.engine.partitions.get(where)
            if partition is not None:
                by_partition.setdefault(partition, [])
        offsets: dict[TopicPartition, Committed] = {}
        left_over: set[Partition] = set()
        text = 0
        for partition, mine in by_partition.items():
            if text > MOST_TEXT:
                left_over.add(partition)
                self.want([partition.id])
                continue
            # A replay holds no offset back. But what it emits is refused with the offset, should the partition have another owner.
            live = [item.delivery for item in mine if item.delivery.run is None]
            committed = partition.take_with(live, not_begun_too=partition.id in self._pinned or len(live) < len(mine))
            if committed is not None:
                offsets[partition.id] = committed
                text += len(committed.metadata)
        if left_over:
            self._waiting.extendleft(item for item in reversed(items) if item.delivery.partition in left_over)
            items = [item for item in items if item.delivery.partition not in left_over]
        return items, offsets

    def _committed(self, items: Sequence[_Item], offsets: dict[TopicPartition, Committed]) -> None:
        self._fails = 0
        if self.troubled is not None or self._told:
            if self.troubled is not None:
                _log.warning("transactions go through again")
            self.troubled = None
            self._told.clear()
        self._worker.counters.transactions += 1
        self._pinned.difference_update(offsets)
        if offsets:
            self._worker.membership.committed([CommitResult(offsets, None)])
        for item in items:
            item.then(None)

    # ---- ending badly -----------------------------------------------------------------------------------------------

    async def _aborted(self, items: Sequence[_Item], offsets: dict[TopicPartition, Committed], ended: Ended) -> None:
        """Nothing of it is there. What can't be written leaves it, the rest is in the next."""
        error = ended.error or StateError("a transaction was aborted, and nothing was said of why")
        self._worker.counters.aborted += 1
        for where in offsets:
            partition = self._worker.engine.partitions.get(where)
            if partition is not None:
                partition.refused()
        self.want(offsets)
        again = [item for number, item in enumerate(items) if number not in ended.refused and number not in ended.hindered]
        self._waiting.extendleft(reversed(again))
        for number, problem in ended.hindered.items():
            self._wait(items[number], problem)
        for number, problem in ended.refused.items():
            items[number].then(problem)
        if isinstance(error, BrokerError) and error.code == FENCED:
            await self._troubled(error)
        elif ended.hindered:
            # Perhaps a record of it is still on its way, and would be taken for one of the next transaction (KIP-890).
            await self._open_again()
        elif not ended.refused:
            await self._troubled(error)

    def _wait(self, item: _Item, problem: BrokerError) -> None:
        self._worker.counters.broker_errors += 1
        delay_s = _delay_s(item.tries)
        item.tries += 1
        handler = item.delivery.route.name
        if self._told.get(handler) != problem.code:
            self._told[handler] = problem.code
            _log.warning("%s: %s; its key waits, trying again every %.1f to %.0f s", handler, problem, AGAIN_FIRST_S, AGAIN_MOST_S)

        def again() -> None:
            self._timers.discard(timer)
            self._waiting.append(item)
            self._something.set()

        timer = self._loop.call_later(delay_s, again)
        self._timers.add(timer)

    async def _troubled(self, error: Exception) -> None:
        code = error.code if isinstance(error, BrokerError) else ""
        if code == METADATA_TOO_LARGE:
            what = "effects=kafka keeps what is finished beside the offset: raise the broker's offset.metadata.max.bytes to 4096"
            self._give_up(BrokerError(f"{error}; {what}", code=code, retriable=False))
            return
        if code == FENCED and self._shared_id:
            self._give_up(BrokerError(f"{error}; give each worker its own, and start this one again", code=code, retriable=False))
            return
        if code in MOVED or code == FENCED:
            self._fails += 1
            if code in (FENCED, "_STATE"):
                await self._open_again()
            await asyncio.sleep(min(AGAIN_FIRST_S, LOOK_S * 2 ** min(self._fails, MOST_DOUBLINGS)))
            return
        self._worker.counters.broker_errors += 1
        if self.troubled is None or str(self.troubled) != str(error):
            _log.warning("%s; nothing is lost, events wait, trying again every %.1f to %.0f s", error, AGAIN_FIRST_S, AGAIN_MOST_S)
        self.troubled = error if isinstance(error, BrokerError) else BrokerError(str(error))
        await asyncio.sleep(_delay_s(self._fails))
        self._fails += 1
        await self._open_again()

    def _give_up(self, error: BrokerError) -> None:
        """Nothing can be committed any more, so nothing is waited for."""
        self._drop_all()
        self._worker.failed(error)

    def _drop_all(self, items: Sequence[_Item] = ()) -> None:
        """Forgets all that is ours, without a commit: it is about to be read again, here or elsewhere. What waits goes when its turn comes."""
        self._worker.membership.drop_all()
        for item in items:
            self._worker.settle(item.delivery)  # it came too late to count
        self._wanted.clear()
        self._pinned.clear()

    async def _rewind(self, items: Sequence[_Item], error: BrokerError | None) -> None:
        """Nobody knows whether it was committed: everything is read again from what Kafka has."""
        self._worker.counters.rewinds += 1
        why = error or "a transaction's end is unknown"
        _log.warning("%s; whether its transaction was committed is not known: the group reads again from what Kafka says is committed", why)
        if error is not None and error.code == FENCED and self._shared_id:
            await self._troubled(error)
            return
        self._drop_all(items)
        await self._open_again()
        self._worker.intake.rewind(f"{why}; reading again")

    async def _open_again(self) -> None:
        tries = 0
        while not self._closed:
            try:
                await self.open()
            except BrokerError as error:
                if not error.retriable:
                    raise
                if not tries:
                    _log.warning("%s; nothing is lost, events wait, trying again every %.1f to %.0f s", error, AGAIN_FIRST_S, AGAIN_MOST_S)
                self.troubled = error
                await asyncio.sleep(_delay_s(tries))
                tries += 1
            else:
                return

    async def close(self, timeout_s: float) -> None:
        """Ends the transactor; one that does not answer is left to its own end."""
        self._closed = True
        for timer in self._timers:
            timer.cancel()
        try:
            await asyncio.wait_for(self._aside.run(self._transactor.close), timeout_s)
        except TimeoutError:
            _log.warning("a transaction is still under way; Kafka commits it, or aborts it when its time is over")


def _delay_s(tries: int) -> float:
    return min(AGAIN_MOST_S, AGAIN_FIRST_S * 2.0 ** min(tries, MOST_DOUBLINGS))
