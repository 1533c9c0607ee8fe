"""A member of a consumer group on real Kafka: the `Consumer` port over confluent_kafka.

Every call is made by one thread (TRAPS 5). How offsets are committed: commits.py beside this page.

What raises inside a rebalance callback ends the client: librdkafka has assigned without us by then, and what `consume` had
taken is gone with it. Nothing of that was handed over, so a new client reads it again from the committed offsets.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Message
from confluent_kafka import TopicPartition as Place

from choreo.broker import REBALANCE_FAILED, CommitResult, Edge, Rebalanced, Start
from choreo.errors import BrokerError
from choreo.kafka.cluster import first_and_end
from choreo.kafka.commits import OffsetCommits
from choreo.kafka.errors import broker_error
from choreo.kafka.records import record_of
from choreo.record import Batch, Committed, Record, TopicPartition

_LOOKUP_S = 10.0
_LOOKUP_TRIES = 3
_IDENTITY = b"CGMDv2:"
_GENERATION_AT = slice(7, 11)
"""In what librdkafka says of a member: 32 bits, the machine's own order."""
# Told by librdkafka while it mends the connection itself; shown, not raised.
_PASSING = frozenset({"_TRANSPORT", "_RESOLVE", "_TIMED_OUT", "_MAX_POLL_EXCEEDED"})


class KafkaConsumer:
    """See `choreo.broker.Consumer`. Owner: the thread that polls."""

    def __init__(self, properties: Mapping[str, Any], logger: logging.Logger) -> None:
        self._errors: deque[KafkaError | BrokerError] = deque()
        self._assigned: set[TopicPartition] = set()
        self._moved: set[TopicPartition] = set()
        """What went through a callback since the last record was taken."""
        self._paused_early: set[TopicPartition] = set()
        self._closed = False
        self._failing = False
        """It has raised: whoever closes it now may wait for a coordinator that doesn't answer."""
        self._listener: Rebalanced | None = None
        self._group = str(properties["group.id"])
        self._commits = OffsetCommits(self._group)
        self._client = Consumer({**properties, "error_cb": self._errors.append, "on_commit": self._commits.answered}, logger=logger)
        self._commits.client = self._client

    # ---- the group ----------------------------------------------------------------------------------------------

    def subscribe(self, topics: Sequence[str], listener: Rebalanced) -> None:
        self._listener = listener
        self._client.subscribe(list(topics), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def _on_assign(self, client: Consumer, places: list[Place]) -> None:
        if not places:
            client.incremental_assign([])
            return
        self._moved.update(_partitions(places))
        with self._ends_the_client():
            self._assign(client, places)

    def _assign(self, client: Consumer, places: list[Place]) -> None:
        assert self._listener is not None
        committed = {
            TopicPartition(place.topic, place.partition): Committed(place.offset, place.metadata or "") if place.offset >= 0 else None
            for place in self._look_up(client.committed, places, "committed offsets")
        }
        self._paused_early = set()
        starts = self._listener.assigned(committed)
        wanted = [_place(partition, start) for partition, start in starts.items()]
        by_time = [Place(p.topic, p.partition, _millis(s)) for p, s in starts.items() if isinstance(s, datetime)]
        if by_time:
            found = self._offsets_by_time(client, by_time)
            wanted = [Place(p.topic, p.partition, found.get((p.topic, p.partition), p.offset)) for p in wanted]
        client.incremental_assign(wanted)
        # A pause survives revoke and re-assign on the same client (TRAPS 10); one asked for by `assigned` counts.
        client.resume(wanted)
        # Where it begins elsewhere than at its committed offset, that may be before it.
        self._commits.begin({p: found.offset for p, found in committed.items() if found is not None and starts.get(p) == found.offset})
        self._assigned.update(starts)
        self.pause([partition for partition in starts if partition in self._paused_early])

    def _offsets_by_time(self, client: Consumer, places: list[Place]) -> dict[tuple[str, int], int]:
        """The first offset at or after each time. Where nothing is so late, the end as it was before asking: librdkafka would
        look up "the end" when it begins to fetch, and skip what has come in between."""
        try:
            ends = {(p.topic, p.partition): first_and_end(client, p)[1] for p in places}
        except KafkaException as error:
            raise broker_error(error, f"group {self._group}: ends of partitions") from error
        found = self._look_up(client.offsets_for_times, places, "offsets by time")
        return {(p.topic, p.partition): p.offset if p.offset >= 0 else ends[p.topic, p.partition] for p in found}

    def _on_revoke(self, client: Consumer, places: list[Place]) -> None:
        assert self._listener is not None
        partitions = _partitions(places)
        self._moved.update(partitions)
        with self._ends_the_client():
            offsets = self._listener.revoked(partitions)
            self._commits.commit_now({p: o for p, o in offsets.items() if p in self._assigned}, texts=not self._failing)
            self._drop(partitions)
            client.incremental_unassign(places)

    def _on_lost(self, client: Consumer, places: list[Place]) -> None:
        assert self._listener is not None
        partitions = _partitions(places)
        self._moved.update(partitions)
        self._drop(partitions)
        with self._ends_the_client():
            self._listener.lost(partitions)
            client.incremental_unassign(places)

    @contextmanager
    def _ends_the_client(self) -> Iterator[None]:
        """An error that could be waited out elsewhere can't be here: a new client is needed. See this file's first lines."""
        try:
            yield
        except BrokerError as error:
            if not error.retriable:
                raise
            raise BrokerError(str(error), code=REBALANCE_FAILED, retriable=False) from error
        except KafkaException as error:
            problem = broker_error(error, f"group {self._group}")
            if not problem.retriable:
                raise problem from error
            raise BrokerError(str(problem), code=REBALANCE_FAILED, retriable=False) from error

    def _drop(self, partitions: Sequence[TopicPartition]) -> None:
        self._assigned.difference_update(partitions)
        self._commits.drop(partitions)

    def _look_up(self, ask: Any, places: list[Place], what: str) -> list[Place]:
        for attempt in range(1, _LOOKUP_TRIES + 1):
            try:
                answer: list[Place] = ask(places, timeout=_LOOKUP_S)
            except KafkaException as error:
                problem = broker_error(error, f"group {self._group}: {what}")
                if attempt == _LOOKUP_TRIES or not problem.retriable:
                    raise problem from error
                continue
            for place in answer:
                if place.error is not None:
                    raise broker_error(place.error, f"{place.topic}[{place.partition}]: {what}")
            return answer
        raise AssertionError("unreachable")

    # ---- records ------------------------------------------------------------------------------------------------

    def poll(self, max_records: int, timeout_s: float) -> list[Batch]:
        if self._errors:
            self._raise_serious()
        with self._ends_the_client():
            messages = self._take(max_records, timeout_s)
        self._commits.go_on()
        return self._batches(messages) if messages else []

    def _take(self, max_records: int, timeout_s: float) -> list[Message]:
        first = self._client.poll(timeout_s)
        if first is None or max_records == 1:
            return [] if first is None else [first]
        self._moved.clear()
        # consume(n, t) waits for the n-th; so: poll for one, then take what is there (TRAPS 4).
        more = self._client.consume(max_records - 1, 0)
        if self._moved and TopicPartition(first.topic() or "", first.partition() or 0) in self._moved:
            # It was taken away, and perhaps given back, since: whoever has it now reads this record again.
            return more
        return [first, *more]

    def _batches(self, messages: list[Message]) -> list[Batch]:
        runs: dict[TopicPartition, list[Record]] = {}
        partition: TopicPartition | None = None
        records: list[Record] = []
        for message in messages:
            error = message.error()
            if error is not None:
                self._errors.append(self._told_of(message, error))
                continue
            topic, number = message.topic(), message.partition()
            if partition is None or partition[1] != number or partition[0] != topic:
                partition = TopicPartition(topic, number)  # type: ignore[arg-type]
                records = runs.setdefault(partition, [])
            records.append(record_of(message))
        return [Batch(partition, records) for partition, records in runs.items() if partition in self._assigned]

    def _told_of(self, message: Message, error: KafkaError) -> KafkaError | BrokerError:
        if error.name() == "_AUTO_OFFSET_RESET":
            return _out_of_range(message, error)
        return broker_error(error, f"group {self._group}: {message.topic()}") if message.topic() else error

    def _raise_serious(self) -> None:
        while self._errors:
            error = self._errors.popleft()
            problem = error if isinstance(error, BrokerError) else broker_error(error, f"group {self._group}")
            if problem.code not in _PASSING or problem.fatal:
                self._failing = True
                raise problem
            logging.getLogger("choreo.kafka").warning("%s", problem)

    # ---- pausing and committing ---------------------------------------------------------------------------------

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused_early.update(partitions)
        self._client.pause([Place(*p) for p in partitions if p in self._assigned])

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        self._paused_early.difference_update(partitions)
        self._client.resume([Place(*p) for p in partitions if p in self._assigned])

    def commit(self, offsets: Mapping[TopicPartition, Committed]) -> None:
        self._commits.commit({p: c for p, c in offsets.items() if p in self._assigned})

    def commit_results(self) -> list[CommitResult]:
        return self._commits.take_results()

    def identity(self) -> bytes | None:
        try:
            found: bytes = self._client.consumer_group_metadata()
        except RuntimeError:
            return None  # it is closed; within `close`, which calls `revoked`, it is not yet
        if not found.startswith(_IDENTITY):
            raise BrokerError(f"this librdkafka says {found[:7]!r} of a member, and choreo reads {_IDENTITY!r}", retriable=False)
        # Below 1 there is no generation, and the broker would take offsets from anybody who has none.
        return found if int.from_bytes(found[_GENERATION_AT], sys.byteorder, signed=True) > 0 else None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._client.close()


def _out_of_range(message: Message, error: KafkaError) -> BrokerError:
    return BrokerError(
        f"{message.topic()}[{message.partition()}]@{message.offset()}: {error.str()}; the events between the committed offset and"
        " the log's first are gone (retention, or the topic was re-created); to go on without them: --accept-lost-offsets",
        code="_AUTO_OFFSET_RESET",
        retriable=False,
    )


def _partitions(places: Sequence[Place]) -> list[TopicPartition]:
    return [TopicPartition(place.topic, place.partition) for place in places]


def _place(partition: TopicPartition, start: Start) -> Place:
    if start is Edge.BEGINNING:
        return Place(partition.topic, partition.partition, OFFSET_BEGINNING)
    if isinstance(start, int):
        return Place(partition.topic, partition.partition, start)
    return Place(partition.topic, partition.partition, OFFSET_END)


def _millis(at: datetime) -> int:
    return int(at.timestamp() * 1000)
