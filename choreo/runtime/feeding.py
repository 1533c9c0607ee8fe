"""Is there room for what has come? Between the intake's inbox and the engine: decodes, looks claims up, holds and pauses.

A batch enters the engine when it fits under its partition's in-flight bound, and its partition's guard lets it (core/guard.py:
what must be acknowledged first is); until then it is held, and the intake waits (a fast stream needs no more than that). A
partition that has taken nothing for a while is paused in Kafka.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection

from choreo.core.engine import IN_FLIGHT_BOUND, Engine
from choreo.core.partition import GONE, THREADS, Partition
from choreo.errors import DecodeError
from choreo.record import Batch, TopicPartition
from choreo.runtime.claims import Claims
from choreo.runtime.intake import Intake
from choreo.runtime.reading import Reader
from choreo.telemetry.counters import Counters

PAUSE_AFTER_S = 1.0
"""A pause throws away what librdkafka has fetched ahead: only for a partition that has taken nothing for so long."""
RESUME_AT = IN_FLIGHT_BOUND // 4


class _Held:
    """The batches of one partition that wait for room."""

    __slots__ = ("batches", "paused", "since_s")

    def __init__(self, since_s: float) -> None:
        self.batches: deque[Batch] = deque()
        self.since_s = since_s
        self.paused = False

    def records(self) -> int:
        return sum(len(batch.records) for batch in self.batches)


class Feeding:
    """Owner: the event loop. `received` is called when the engine got something."""

    def __init__(
        self,
        engine: Engine,
        reader: Reader,
        claims: Claims | None,
        intake: Intake,
        counters: Counters,
        *,
        received: Callable[[], None],
        ask: Callable[[Partition], None],
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._claims = claims
        self._intake = intake
        self._counters = counters
        self._received = received
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._held: dict[TopicPartition, _Held] = {}
        self._arrival = asyncio.Event()

    def arrived(self) -> None:
        """The inbox has something, or a partition has room."""
        self._arrival.set()

    async def run(self) -> None:
        """Gives the engine what the intake handed over, in order, as far as there is room. Raises StoreError when claims can't
        be looked up: what comes after a batch that was dropped must not be fed, or its offset would pass what is missing."""
        inbox = self._intake.inbox
        while True:
            await self._arrival.wait()
            self._arrival.clear()
            for wanted in list(self._held):
                await self._feed_held(wanted)
            while inbox:
                await self._feed(inbox.popleft())

    async def _feed(self, batch: Batch) -> None:
        partition = self._engine.partitions.get(batch.partition)
        held = self._held.get(batch.partition)
        if partition is None:
            self._intake.accept(len(batch.records))
        else:
            if held is None:
                taken = self._admitted(partition, batch, batch)
                if taken == len(batch.records):
                    self._intake.accept(taken)
                    await self._receive(partition, batch)
                    return
                held = self._held[batch.partition] = _Held(self._loop.time())
            held.batches.append(batch)
            if held.paused:
                self._intake.accept(len(batch.records))
            await self._feed_held(batch.partition)

    def _admitted(self, partition: Partition, batch: Batch, last: Batch) -> int:
        """How many of its records may enter the engine now, from the first on. `last` is the last batch that is there."""
        records = batch.records
        first, end = records[0].offset, records[-1].offset + 1
        guard = partition.guard
        if not partition.begun:
            partition.begun = True
            if partition.start is None:
                partition.start = first
        if not partition.in_flight:
            guard.gap(first)
        top = guard.may_hand_out(first, end)
        if top < end and guard.asks(last.records[-1].offset + 1):
            self._ask(partition)
        if top <= first or not self._engine.has_room(partition, len(records)):
            return 0
        return len(records) if top >= end else sum(record.offset < top for record in records)

    async def _feed_held(self, wanted: TopicPartition) -> None:
        held, partition = self._held.get(wanted), self._engine.partitions.get(wanted)
        if held is None or partition is None:
            return
        while self._held.get(wanted) is held and held.batches and (taken := self._admitted(partition, held.batches[0], held.batches[-1])):
            batch = held.batches.popleft()
            if taken < len(batch.records):
                held.batches.appendleft(Batch(batch.partition, batch.records[taken:]))
                batch = Batch(batch.partition, batch.records[:taken])
            held.since_s = self._loop.time()
            if not held.paused:
                self._intake.accept(len(batch.records))
            await self._receive(partition, batch)
        if self._held.get(wanted) is not held:
            return  # taken away while its claims were looked up: `forget` has counted what was left
        if held.batches or held.paused:
            self._ask_for_room(partition, held)
        else:
            del self._held[wanted]

    def _ask_for_room(self, partition: Partition, held: _Held) -> None:
        if held.batches and self._engine.has_room(partition, len(held.batches[0].records)):
            # It waits for an acknowledgement, or for the suspects before it, and hears of that; those may take long.
            if partition.guard.suspects and not held.paused:
                self._pause(wanted=partition.id, held=held)
            return
        partition.wake_at = IN_FLIGHT_BOUND - len(held.batches[0].records) if held.batches else RESUME_AT
        if partition.in_flight <= partition.wake_at:
            self.room(partition)  # there is room already, and perhaps nothing left that would settle and tell us

    async def _receive(self, partition: Partition, batch: Batch) -> None:
        read = self._reader.read
        events = [(record.offset, read(record, partition)) for record in batch.records]
        if self._claims is not None:
            # Bursts look theirs up themselves, in their transactions.
            await self._claims.look_up(
                d for _, deliveries in events for d in deliveries if type(d.event) is not DecodeError and d.route.queue <= THREADS
            )
        if partition.state is GONE:
            return
        self._counters.received += len(events)
        self._counters.restored += self._engine.receive_all(partition, events)
        self._received()

    def room(self, partition: Partition) -> None:
        """Its in-flight events have fallen to `wake_at`."""
        partition.wake_at = -1
        held = self._held.get(partition.id)
        if held is None:
            return
        if held.batches:
            self._arrival.set()
        elif held.paused:
            del self._held[partition.id]
            self._intake.resume(partition.id)

    def look_again(self) -> None:
        """Something that held batches back may be over."""
        if self._held:
            self._arrival.set()

    def _pause(self, wanted: TopicPartition, held: _Held) -> None:
        held.paused = True
        self._intake.pause(wanted)
        self._intake.accept(held.records())

    def pause_slow(self) -> None:
        """Pauses what has taken nothing for PAUSE_AFTER_S; its records no longer count against the intake's lead."""
        now_s = self._loop.time()
        for partition, held in self._held.items():
            if not held.paused and held.batches and now_s - held.since_s > PAUSE_AFTER_S:
                self._pause(partition, held)

    def forget(self, gone: Collection[TopicPartition]) -> None:
        """They are taken away: what waits of theirs is dropped; whoever gets them reads it again."""
        inbox = self._intake.inbox
        kept = [batch for batch in inbox if batch.partition not in gone]
        dropped = sum(len(batch.records) for batch in inbox) - sum(len(batch.records) for batch in kept)
        inbox.clear()
        inbox.extend(kept)
        for partition in gone:
            held = self._held.pop(partition, None)
            if held is not None and not held.paused:
                dropped += held.records()
        self._intake.accept(dropped)
