"""What is committed when, and what has Kafka acknowledged? Offsets on a timer, with what stands beside them; at once what must
be there before an event is handed out (core/guard.py).

While somebody waits for an acknowledgement the intake polls in short turns, for it hears of commits only between them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from choreo.broker import METADATA_TOO_LARGE, CommitResult
from choreo.core.offset_map import NO_TOPIC_ID
from choreo.core.partition import GONE, LIVE, Partition
from choreo.record import Committed, TopicPartition

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.worker")

EVERY_S = 0.2
SHORT_CHARS = 100
"""A broker that takes not even so many takes no text at all."""
MAPS_EVERY = 5
"""Of so many timer's turns one also commits where the offset stands and only the map has changed."""


class Commits:
    """Owner: the event loop."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._engine = worker.engine
        self._loop = asyncio.get_running_loop()
        self._at_s = 0.0
        self._turns = 0
        self._waiting: dict[asyncio.Future[bool], tuple[Partition, dict[Partition, int]]] = {}
        """For whom, and what has to be acknowledged first: partitions, and up to which stamp."""
        self._asked: set[Partition] = set()
        """Whose batches wait for an acknowledgement."""

    def tick(self, now_s: float) -> None:
        """Called often; commits every EVERY_S."""
        if now_s - self._at_s < EVERY_S:
            return
        self._at_s = now_s
        self._worker.sends.hear()
        if not self._worker.may_commit:
            return
        self._turns += 1
        commits = self._engine.commits(also_maps=self._turns % MAPS_EVERY == 0)
        if commits:
            self._worker.commit(commits)
        self._look_who_waits()
        self._worker.feeding.look_again()

    def ask(self, partition: Partition) -> None:
        """Commits what is to be said before a batch of it is handed out; `feeding` hears when it is acknowledged."""
        if partition not in self._asked:
            self._asked.add(partition)
            self._now(partition)
            self._look_who_waits()

    async def recorded(self, partition: Partition) -> bool:
        """Commits all that is known now, of every partition (that an event before this one ended well is a part of it), and waits
        until it is acknowledged; False when `partition` is being taken away."""
        if partition.state is not LIVE or not self._worker.may_commit:
            return False
        commits = self._engine.commits(also_maps=True)
        if commits:
            self._worker.commit(commits)
        waiting: asyncio.Future[bool] = self._loop.create_future()
        self._waiting[waiting] = (partition, {state: state.stamp for state in self._engine.partitions.values()})
        self._look_who_waits()
        return await waiting

    def _look_who_waits(self) -> None:
        for waiting, (partition, stamps) in list(self._waiting.items()):
            if waiting.done():
                del self._waiting[waiting]
            elif partition.state is not LIVE:
                waiting.set_result(False)
                del self._waiting[waiting]
            elif not any(state.state is not GONE and state.awaits(stamp) for state, stamp in stamps.items()):
                waiting.set_result(True)
                del self._waiting[waiting]
        self._worker.intake.urgent = bool(self._waiting or self._asked or self._engine.suspects)

    def _now(self, partition: Partition) -> None:
        committed = partition.take(also_maps=True) if self._worker.may_commit else None
        if committed is not None:
            self._worker.commit({partition.id: committed})

    def ended(self, result: CommitResult) -> None:
        """How a commit ended; errors other than a text that is too long are said elsewhere."""
        if result.error is None:
            self._acknowledged(result.offsets)
        elif result.error.code == METADATA_TOO_LARGE:
            self._shorten(result.offsets)
        else:
            for where in result.offsets:
                partition = self._engine.partitions.get(where)
                if partition is not None:
                    partition.refused()  # where the consumer tries again by itself, the newer one wins

    def _acknowledged(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        for where, committed in offsets.items():
            partition = self._engine.partitions.get(where)
            if partition is not None and partition.acknowledged(committed.stamp) and partition in self._asked:
                self._asked.discard(partition)
                self._worker.feeding.look_again()
        self._look_who_waits()

    def _shorten(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        for where, committed in offsets.items():
            partition = self._engine.partitions.get(where)
            if partition is None:
                continue
            self._worker.counters.maps_left_out += 1
            if partition.bare and len(committed.metadata) < SHORT_CHARS:
                partition.topic_id = NO_TOPIC_ID  # not even the crash counts: then without any text
                partition.guard.off()
            else:
                _log.warning(
                    "%s: the broker takes no %d characters beside an offset (offset.metadata.max.bytes): after a crash what is finished"
                    " above the committed offset runs again",
                    where,
                    len(committed.metadata),
                )
            partition.bare = True
            self._now(partition)

    def give_up(self, partitions: Collection[Partition]) -> None:
        """They are being taken away, and the intake waits for that: no acknowledgement comes any more."""
        self._asked.difference_update(partitions)
        self._look_who_waits()
