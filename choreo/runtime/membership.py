"""Which partitions are ours, from where, and how do we let go of them? The worker's side of the group's decisions.

Called by the intake thread, which waits: `assigned` says where to start, `revoked` lets what runs come to its end within a
budget and says what to commit, `lost` forgets at once. A late outcome of a partition that is gone changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING

from choreo.broker import METADATA_TOO_LARGE, CommitResult, Edge, Start
from choreo.core.offset_map import NO_TOPIC_ID, Ignored, OffsetMap, read_map
from choreo.core.partition import GONE, Partition
from choreo.core.start import OffsetsLost, decide_start
from choreo.errors import BrokerError
from choreo.record import Committed, TopicPartition

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.worker")

MARK_S = 2.0
TOPIC_IDS_EVERY_S = 60.0
"""A topic that is deleted and made again has other events at the same offsets: after so long it is noticed (B17)."""


class Membership:
    """See `choreo.runtime.intake.Member`. Owner: the event loop."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._plan = worker.plan
        self._engine = worker.engine
        self._counters = worker.counters

    def arrived(self) -> None:
        self._worker.feeding.arrived()

    def failed(self, error: BaseException) -> None:
        self._worker.failed(error)

    def troubled(self, error: BrokerError) -> None:
        """The consumer met an error that it waits out."""
        self._counters.broker_errors += 1
        if self._worker.trouble is None or str(self._worker.trouble) != str(error):
            _log.warning("%s", error)
        self._worker.trouble = error

    def committed(self, results: Sequence[CommitResult]) -> None:
        for result in results:
            self._counters.commits += 1
            self._worker.commits.ended(result)
            if result.error is None:
                self._worker.trouble = None
                self._mark(result.offsets)
                continue
            self._counters.commit_errors += 1
            if result.error.code == METADATA_TOO_LARGE:
                continue
            level = logging.WARNING if result.error.retriable else logging.ERROR
            _log.log(level, "%s; the events may come again, none is lost", result.error)

    # ---- coming -----------------------------------------------------------------------------------------------------

    async def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
        self._counters.rebalances += 1
        starts: dict[TopicPartition, Start] = {p: found.offset for p, found in committed.items() if found is not None}
        topic_ids = await self._worker.history.topic_ids({p.topic for p in committed})
        self._need_topic_ids(committed, topic_ids)
        maps = self._maps({p: found for p, found in committed.items() if found is not None}, topic_ids, starts)
        await self._drop_what_the_logs_have_lost(maps)
        if self._plan.accept_lost_offsets:
            starts.update(await self._out_of_their_logs(starts))
        fresh = [p for p, found in committed.items() if found is None]
        self._mark(p for p, start in starts.items() if start is not Edge.BEGINNING)
        if fresh:
            starts.update(await self._first_starts(fresh))
        partitions = [
            self._engine.assign(
                partition,
                start=start if isinstance(start, int) else None,
                topic_id=topic_ids.get(partition.topic, NO_TOPIC_ID),
                restored=maps.get(partition) if isinstance(start, int) else None,
            )
            for partition, start in starts.items()
        ]
        self._tell_suspects()
        if self._worker.stop_by < inf:
            self._engine.stop(starts)  # a stop begins nothing new, also when the group doesn't know of it yet
        _log.info("assigned %s", ", ".join(map(str, sorted(starts))))
        self._worker.replays.assigned(partitions)
        return starts

    def _need_topic_ids(self, partitions: Iterable[TopicPartition], topic_ids: Mapping[str, bytes]) -> None:
        """With transactions, what is finished above the committed offset has to stand beside it; and it is of one topic, not of any of
        that name."""
        missing = sorted({p.topic for p in partitions if p.topic not in topic_ids})
        if self._worker.atomic is not None and missing:
            raise BrokerError(
                f"effects=kafka: the brokers have no topic id for {', '.join(missing)}: it takes Kafka 2.8 or newer",
                code="UNSUPPORTED_VERSION",
                retriable=False,
            )

    def _maps(
        self, committed: Mapping[TopicPartition, Committed], topic_ids: Mapping[str, bytes], starts: dict[TopicPartition, Start]
    ) -> dict[TopicPartition, OffsetMap]:
        """What earlier runs left beside the committed offsets. `starts` is corrected where the offset itself is another topic's."""
        maps: dict[TopicPartition, OffsetMap] = {}
        ignored: dict[str, list[str]] = {}
        for partition, place in committed.items():
            found = read_map(place.metadata, topic_id=topic_ids.get(partition.topic, NO_TOPIC_ID), offset=place.offset)
            if isinstance(found, OffsetMap):
                maps[partition] = found
            elif isinstance(found, Ignored):
                self._counters.maps_ignored += 1
                ignored.setdefault(found.why, []).append(f"{partition}@{place.offset}")
                if found.other_topic:
                    self._refuse_offset_of_another_topic(partition, place.offset)
                    starts[partition] = Edge.BEGINNING
        for why, places in ignored.items():
            _log.warning(
                "%s: what stands beside the committed offset is ignored: %s; what was finished above it runs again", ", ".join(places), why
            )
        return maps

    async def _drop_what_the_logs_have_lost(self, maps: dict[TopicPartition, OffsetMap]) -> None:
        """A leader that was not in sync may have cut the log: what is written at those offsets now are other events."""
        ends = await self._worker.history.ends([p for p, found in maps.items() if (found.reach or 0) > found.offset])
        for partition, end in ends.items():
            if (maps[partition].reach or 0) > end:
                self._counters.maps_ignored += 1
                _log.error(
                    "%s: the log ends at %d, and events up to %d were received: a broker lost them (unclean leader election?); what stands"
                    " beside the committed offset is ignored",
                    partition,
                    end,
                    maps[partition].reach,
                )
                del maps[partition]

    def _refuse_offset_of_another_topic(self, partition: TopicPartition, offset: int) -> None:
        what = f"{partition}: group {self._plan.group} committed offset {offset} of a topic of this name that was deleted; this is another"
        if not self._plan.accept_lost_offsets:
            raise BrokerError(f"{what}; to begin with what it holds: --accept-lost-offsets", code="LOST_OFFSETS", retriable=False)
        _log.error("%s: going on with what is there", what)

    def _tell_suspects(self) -> None:
        if self._engine.suspects:
            _log.warning(
                "the process that had %s ended %d times in a row without getting further: up to where it got, one event runs at a time; one"
                " that ends the process each time is dead-lettered",
                ", ".join(sorted(str(state.id) for state in self._engine.suspects)),
                max(state.guard.unclean for state in self._engine.suspects) - 1,
            )

    async def watch_topics(self) -> None:
        """Looks now and then whether each topic is still the one whose offsets we know."""
        while True:
            await asyncio.sleep(TOPIC_IDS_EVERY_S)
            try:
                topic_ids = await self._worker.history.topic_ids({p.topic for p in self._engine.partitions})
            except BrokerError as error:
                self.troubled(error)
                continue
            for state in list(self._engine.partitions.values()):
                known = topic_ids.get(state.id.topic)
                if known is not None and state.topic_id not in (known, NO_TOPIC_ID):
                    self._stop_recreated(state)

    def _stop_recreated(self, state: Partition) -> None:
        _log.error(
            "%s: the topic was deleted and made again under its name: offsets mean other events now; nothing of it is handled or"
            " committed any more. Restart with --accept-lost-offsets to begin with what it holds",
            state.id,
        )
        self._counters.broker_errors += 1
        self._worker.intake.pause(state.id)
        self._forget([state.id], self._engine.stop([state.id]))
        self._worker.cut_short([state])

    async def _out_of_their_logs(self, committed: Mapping[TopicPartition, Start]) -> dict[TopicPartition, Start]:
        """Where to begin a partition whose committed offset its log doesn't have (retention took it, or the topic was made anew):
        with what is there. The loss is accepted, and said."""
        found: dict[TopicPartition, Start] = {}
        for partition, (first, end) in (await self._worker.history.logs(list(committed))).items():
            offset = committed[partition]
            if isinstance(offset, int) and not first <= offset <= end:  # else it is said already
                found[partition] = Edge.BEGINNING
                _log.error("%s: committed is %d, the log has %d to %d: going on with what is there", partition, offset, first, end)
        return found

    async def _first_starts(self, fresh: Sequence[TopicPartition]) -> dict[TopicPartition, Start]:
        history = self._worker.history
        starts: dict[TopicPartition, Start] = {}
        for partition in fresh:
            decision = decide_start(partition, history.partitions_at_first, accept_lost_offsets=self._plan.accept_lost_offsets)
            if isinstance(decision, OffsetsLost):
                raise BrokerError(
                    f"{partition}: group {self._plan.group} has read it before, but its committed offset is gone (expired or deleted); "
                    f"to start by the start policy ({self._plan.start}) all the same: --accept-lost-offsets",
                    code="LOST_OFFSETS",
                    retriable=False,
                )
            starts[partition] = Edge.BEGINNING if decision.at == "beginning" else self._by_policy(partition)
        ends = await history.ends([p for p, start in starts.items() if start is Edge.END])
        starts.update(ends)
        if ends:
            # "latest" is now, not at the next crash: pin it before anything is read.
            self._worker.pin({p: Committed(end) for p, end in ends.items()})
        return starts

    def _by_policy(self, partition: TopicPartition) -> Start:
        if isinstance(self._plan.start, datetime):
            return self._plan.start
        if self._plan.start == "refuse":
            raise BrokerError(
                f'{partition}: group {self._plan.group} has no committed offset, and start="refuse"; say where to begin: '
                "--start earliest, latest or a time",
                code="LOST_OFFSETS",
                retriable=False,
            )
        return Edge.BEGINNING if self._plan.start == "earliest" else Edge.END

    def _mark(self, committed: Iterable[TopicPartition]) -> None:
        # Not before there is a committed offset: who dies before the first commit, or has an empty partition, never ran.
        unmarked = self._worker.history.unmarked(committed)
        if unmarked:
            self._worker.run_beside(self._worker.history.remember(unmarked))

    async def marked(self) -> None:
        """Waits a moment for the marks of what was committed last."""
        until = asyncio.get_running_loop().time() + MARK_S
        while self._worker.history.marking and asyncio.get_running_loop().time() < until:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(0.01)

    # ---- going ------------------------------------------------------------------------------------------------------

    async def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        self._counters.rebalances += 1
        stopped = self._engine.stop(partitions)
        self._worker.commits.give_up(stopped)
        self._worker.feeding.forget(partitions)
        deadline = min(asyncio.get_running_loop().time() + self._plan.revoke_s, self._worker.stop_by)
        await self.drain(stopped, deadline)
        atomic = self._worker.atomic
        if atomic is not None and self._worker.may_commit:
            await atomic.last(stopped, deadline)
        commits = self._engine.forget(stopped)
        self._worker.replays.forget(stopped)
        _log.info("revoked %s", ", ".join(map(str, sorted(partitions))))
        # With transactions nothing is committed beside them.
        return commits if self._worker.may_commit and atomic is None else {}

    async def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._counters.rebalances += 1
        stopped = self._engine.stop(partitions)
        self._forget(partitions, stopped)
        self._worker.cut_short(stopped)
        _log.warning("lost %s: another member has them; what ran here may run there again", ", ".join(map(str, sorted(partitions))))

    def drop_all(self) -> None:
        """Forgets all that is ours, without a commit: it is about to be read again."""
        stopped = self._engine.stop(list(self._engine.partitions))
        self._forget([state.id for state in stopped], stopped)
        self._worker.cut_short(stopped)

    def _forget(self, partitions: Sequence[TopicPartition], stopped: Sequence[Partition]) -> None:
        """Without a commit."""
        self._worker.commits.give_up(stopped)
        self._worker.feeding.forget(partitions)
        self._engine.forget(stopped)
        self._worker.replays.forget(stopped)

    async def drain(self, partitions: Sequence[Partition], deadline: float) -> bool:
        """Waits until all that may still run has settled, and what was replayed is answered; cuts short what has not settled at
        `deadline`. Whether all had, and was."""
        loop = asyncio.get_running_loop()
        with self._worker.draining() as changed:
            while not self._at_rest(partitions) and loop.time() < deadline and not self._worker.ending:
                changed.clear()
                try:
                    await asyncio.wait_for(changed.wait(), min(0.05, max(0.0, deadline - loop.time())))
                except TimeoutError:
                    pass
        if self._at_rest(partitions):
            return True
        if all(partition.drained() for partition in partitions if partition.state is not GONE):
            _log.warning("replays have ended whose outcomes were not acknowledged in time; whoever gets their partitions answers them")
            return False
        _log.warning("%d deliveries did not end in time; they are cut short and will run again", self._engine.running(partitions))
        self._engine.halt(partitions)
        self._worker.cut_short(partitions)
        await asyncio.sleep(0.01)
        return False

    def _at_rest(self, partitions: Sequence[Partition]) -> bool:
        # What is gone has nothing to wait for any more.
        here = [partition for partition in partitions if partition.state is not GONE]
        return all(partition.drained() for partition in here) and not self._worker.replays.unfinished(here)
