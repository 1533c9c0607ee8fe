"""How does a member of a group commit offsets, and the text beside them? Owner: the thread that polls.

Offsets are stored, then committed: that way librdkafka checks ownership and never goes back (TRAPS 2). It refuses the same offset
once more, so where the text beside it alone has changed, that is committed by name. The broker takes such a commit from any live
member and for any offset: it is made for partitions of the present assignment only, and never lower than what is known.

One asynchronous commit is under way at most; a synchronous one only while partitions are taken away (TRAPS 12). A request takes
so much text and no more: what is left goes with the next (TRAPS 3).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Place

from choreo import failpoint
from choreo.broker import METADATA_TOO_LARGE, CommitResult
from choreo.errors import BrokerError
from choreo.kafka.errors import broker_error
from choreo.record import Committed, TopicPartition

MOST_TEXT = 512 * 1024
"""Characters a request: the broker refuses all of one that is over a megabyte."""
_NOTHING_STORED = KafkaError._NO_OFFSET
_AGAIN_FIRST_S = 0.1
_AGAIN_MOST_S = 10.0


class OffsetCommits:
    """What one consumer wants committed, and what it knows to be. `client` is the confluent_kafka consumer."""

    def __init__(self, group: str) -> None:
        self.client: Any = None
        self._group = group
        self._results: list[CommitResult] = []
        self._wanted: dict[TopicPartition, Committed] = {}
        self._under_way: dict[TopicPartition, Committed] = {}
        """What the commit under way is about; without what was taken away meanwhile."""
        self._known: dict[TopicPartition, int] = {}
        """The committed offset, as far as this assignment knows it; nothing lower is committed."""
        self._one_by_one: dict[TopicPartition, Committed] = {}
        """Of a request that was refused for somebody's text: librdkafka doesn't say whose, and Kafka has taken the others."""
        self._committing = False
        self._moved_last = False
        self._refusals = 0
        self._commit_after_s = 0.0

    def begin(self, committed: Mapping[TopicPartition, int]) -> None:
        """Partitions that were assigned, and read on from their committed offsets."""
        self._known.update(committed)

    def drop(self, partitions: Sequence[TopicPartition]) -> None:
        """They are gone: nothing of them is committed any more."""
        for partition in partitions:
            self._wanted.pop(partition, None)
            self._under_way.pop(partition, None)
            self._one_by_one.pop(partition, None)
            self._known.pop(partition, None)

    def go_on(self) -> None:
        """Begins the next request, if something is wanted and none is under way."""
        if (self._wanted or self._one_by_one) and not self._committing and time.monotonic() >= self._commit_after_s:
            self._begin_request()

    def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        self._wanted.update(self._rising(offsets))
        self.go_on()

    def _rising(self, offsets: Mapping[TopicPartition, Committed]) -> dict[TopicPartition, Committed]:
        """Those that don't go back; the others are there already."""
        lower = {p: c for p, c in offsets.items() if c.offset < self._known.get(p, c.offset)}
        if lower:
            self._results.append(CommitResult(lower, None))
        return {p: c for p, c in offsets.items() if p not in lower}

    def _begin_request(self) -> None:
        if self._one_by_one:
            partition = next(iter(self._one_by_one))
            by_name, self._under_way = True, {partition: self._one_by_one.pop(partition)}
        else:
            self._wanted = self._rising(self._wanted)
            by_name, self._under_way = self._next_request(self._wanted)
        if not by_name:
            self._under_way = self._store(self._under_way)
        if failpoint.ACTIVE and self._moves(self._under_way):
            failpoint.hit("after_store_offsets")
        if not self._under_way:
            return
        try:
            if by_name:
                self.client.commit(offsets=[_at(p, c) for p, c in self._under_way.items()], asynchronous=True)
            else:
                self.client.commit(asynchronous=True)
            self._committing = True
        except KafkaException as error:
            self._refused(broker_error(error, f"group {self._group}: commit"))

    def _next_request(self, wanted: dict[TopicPartition, Committed]) -> tuple[bool, dict[TopicPartition, Committed]]:
        """What of it goes out next, taken out of `wanted`: offsets that moved, or (True) those whose text alone changed."""
        moved = {p: c for p, c in wanted.items() if c.offset != self._known.get(p)}
        if self._moved_last and len(moved) < len(wanted):
            moved = {}  # in turn: else a text never goes out while offsets move all the time
        request: dict[TopicPartition, Committed] = {}
        text = 0
        for partition, committed in wanted.items():
            if bool(moved) is (partition in moved):
                text += len(committed.metadata)
                if text > MOST_TEXT and request:
                    break
                request[partition] = committed
        for partition in request:
            del wanted[partition]
        self._moved_last = bool(moved)
        return not moved, request

    def _moves(self, committed: Mapping[TopicPartition, Committed]) -> bool:
        """Whether something was handled, and not only a text written."""
        return any(c.offset > self._known.get(p, c.offset) for p, c in committed.items())

    def _refused(self, problem: BrokerError) -> None:
        """librdkafka keeps what was stored; asking once more commits it. After a while: whatever it is won't pass at once."""
        self._results.append(CommitResult(self._under_way, problem))
        for partition, offset in self._under_way.items():
            self._wanted.setdefault(partition, offset)
        self._under_way = {}
        self._commit_after_s = time.monotonic() + min(_AGAIN_MOST_S, _AGAIN_FIRST_S * 2**self._refusals)
        self._refusals = min(self._refusals + 1, 10)

    def commit_now(self, offsets: Mapping[TopicPartition, Committed], *, texts: bool = True) -> None:
        """These, and waits: up to the session's timeout where the coordinator is out of reach. A text that is too long is left out:
        the offset counts more. `texts` False: nothing is waited for where the text alone has changed."""
        left = {p: c for p, c in self._rising(offsets).items() if texts or c.offset != self._known.get(p)}
        for partition in left:
            self._wanted.pop(partition, None)
        while left:
            same_offset, request = self._next_request(left)
            try:
                self._commit_and_wait(request, by_name=same_offset)
            except KafkaException as error:
                problem = broker_error(error, f"group {self._group}: commit")
                if problem.code != METADATA_TOO_LARGE:
                    self._results.append(CommitResult(request, problem))
                    return
                for partition, committed in request.items():
                    self._commit_one_now(partition, committed)

    def _commit_one_now(self, partition: TopicPartition, committed: Committed) -> None:
        """By name, for what is stored goes out together, and it isn't said whose text was too long."""
        for wanted in (committed, Committed(committed.offset, "", committed.stamp)):
            try:
                self._commit_and_wait({partition: wanted}, by_name=True)
            except KafkaException as error:
                problem = broker_error(error, f"group {self._group}: commit")
                if problem.code == METADATA_TOO_LARGE:
                    continue
                self._results.append(CommitResult({partition: wanted}, problem))
            return

    def _commit_and_wait(self, request: dict[TopicPartition, Committed], *, by_name: bool) -> None:
        places: Sequence[Place] | None
        if by_name:
            places = self.client.commit(offsets=[_at(p, c) for p, c in request.items()], asynchronous=False)
        else:
            request = self._store(request)
            try:
                places = self.client.commit(asynchronous=False)
            except KafkaException as error:
                if error.args[0].code() != _NOTHING_STORED:
                    raise
                places = None
            there = {(place.topic, place.partition): place.offset for place in places or ()}
            left_out = {p: c for p, c in request.items() if there.get((p.topic, p.partition)) != c.offset}
            if left_out:
                # An asynchronous commit was quicker; the text beside it may be another.
                places = [
                    *(places or ()),
                    *(self.client.commit(offsets=[_at(p, c) for p, c in left_out.items()], asynchronous=False) or ()),
                ]
        for place in places or ():
            if place.error is not None:
                raise KafkaException(place.error)
        self._went_through(request)

    def _store(self, offsets: Mapping[TopicPartition, Committed]) -> dict[TopicPartition, Committed]:
        stored: dict[TopicPartition, Committed] = {}
        for partition, committed in offsets.items():
            try:
                self.client.store_offsets(offsets=[_at(partition, committed)])
                stored[partition] = committed
            except KafkaException as error:
                problem = broker_error(error, f"{partition}: storing offset {committed.offset}")
                self._results.append(CommitResult({partition: committed}, problem))
        return stored

    def answered(self, error: KafkaError | None, places: list[Place]) -> None:
        self._committing = False
        if failpoint.ACTIVE and self._moves(self._under_way):
            failpoint.hit("after_commit")
        if error is not None and error.code() == _NOTHING_STORED:
            # A revoke's own commit was quicker, with what it had to say of these; the text goes out by name.
            self._look_what_went_through([])
            return
        told = {TopicPartition(p.topic, p.partition): p.error for p in places if p.error is not None}
        problem = error or next(iter(told.values()), None)
        if problem is None:
            self._refusals = 0
            self._look_what_went_through(places)
            return
        trouble = broker_error(problem, f"group {self._group}: commit")
        if told:
            self._went_through({p: c for p, c in self._under_way.items() if p not in told})
            self._under_way = {p: c for p, c in self._under_way.items() if p in told}
        if trouble.code == METADATA_TOO_LARGE and len(self._under_way) > 1:
            self._one_by_one.update(self._under_way)
        elif trouble.code == METADATA_TOO_LARGE:
            # Not again as it is: whoever wrote the text has to shorten it.
            self._results.append(CommitResult(self._under_way, trouble))
        else:
            self._refused(trouble)

    def _look_what_went_through(self, places: list[Place]) -> None:
        """librdkafka leaves out of a request what it holds for committed; the text beside it goes out by name."""
        there = {(place.topic, place.partition): place.offset for place in places}
        done = {p: c for p, c in self._under_way.items() if there.get((p.topic, p.partition)) == c.offset}
        for partition, committed in self._under_way.items():
            if partition not in done:
                self._known[partition] = max(committed.offset, self._known.get(partition, 0))
                self._wanted.setdefault(partition, committed)
        self._went_through(done)

    def _went_through(self, committed: dict[TopicPartition, Committed]) -> None:
        if committed:
            self._known.update((p, c.offset) for p, c in committed.items())
            self._results.append(CommitResult(committed, None))

    def take_results(self) -> list[CommitResult]:
        results, self._results = self._results, []
        return results


def _at(partition: TopicPartition, committed: Committed) -> Place:
    return Place(partition.topic, partition.partition, committed.offset, metadata=committed.metadata)
