"""What did each member of a group see? Clients that a test drives by hand, and that keep all they were given.

Nothing here knows which broker it is: the same test runs on real Kafka and in memory. Nothing sleeps: `wait_until` drives
members until a condition holds, or fails at its deadline with what they saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

from choreo.broker import Broker, CommitResult, Consumer, Edge, LogReader, Producer, Report, Start, Transactor
from choreo.record import Committed, Outgoing, Record, TopicPartition

DEADLINE_S = 30.0
STEP_S = 0.05

Revoked: TypeAlias = Callable[["Member", Sequence[TopicPartition]], Mapping[TopicPartition, int]]


class Noted(NamedTuple):
    """One call of a listener, for one partition."""

    member: str
    what: Literal["assigned", "revoked", "lost"]
    partition: TopicPartition


class Member:
    """A consumer and its listener, polled by `step`. Owner: the thread that steps it.

    `start` answers partitions without a committed offset; `on_revoked` answers a revoke (default: nothing to commit);
    `on_assigned` is called within `assigned`. `journal` may be shared between members: it is then in the order of the calls.
    """

    def __init__(
        self,
        consumer: Consumer,
        topics: Sequence[str],
        *,
        name: str = "",
        start: Start = Edge.BEGINNING,
        on_assigned: Callable[[Member, Sequence[TopicPartition]], None] | None = None,
        on_revoked: Revoked | None = None,
        journal: list[Noted] | None = None,
    ) -> None:
        self.consumer = consumer
        self.name = name
        self.records: list[Record] = []
        self.results: list[CommitResult] = []
        self.owned: set[TopicPartition] = set()
        self.committed: dict[TopicPartition, int | None] = {}
        self.texts: dict[TopicPartition, str] = {}
        self.journal: list[Noted] = [] if journal is None else journal
        self._start = start
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        consumer.subscribe(topics, self)

    # ---- the listener ---------------------------------------------------------------------------------------------------

    def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
        self.journal += [Noted(self.name, "assigned", partition) for partition in committed]
        self.owned.update(committed)
        self.committed.update((p, None if found is None else found.offset) for p, found in committed.items())
        self.texts.update((p, found.metadata) for p, found in committed.items() if found is not None)
        if self._on_assigned is not None:
            self._on_assigned(self, list(committed))
        return {partition: self._start if found is None else found.offset for partition, found in committed.items()}

    def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        answer = {} if self._on_revoked is None else self._on_revoked(self, partitions)
        self.journal += [Noted(self.name, "revoked", partition) for partition in partitions]
        self.owned.difference_update(partitions)
        return {partition: Committed(offset) for partition, offset in answer.items()}

    def lost(self, partitions: Sequence[TopicPartition]) -> None:
        self.journal += [Noted(self.name, "lost", partition) for partition in partitions]
        self.owned.difference_update(partitions)

    # ---- driving --------------------------------------------------------------------------------------------------------

    def step(self, max_records: int = 500, timeout_s: float = STEP_S) -> list[Record]:
        """One poll; what it gave. Checks what holds for every poll."""
        batches = self.consumer.poll(max_records, timeout_s)
        records = [record for batch in batches for record in batch.records]
        assert len(records) <= max_records, f"{len(records)} records came, {max_records} were asked for"
        for batch in batches:
            assert batch.partition in self.owned, f"records of {batch.partition} came, which {self.name or 'the member'} does not own"
            offsets = [record.offset for record in batch.records]
            assert offsets == sorted(set(offsets)), f"offsets of {batch.partition} don't rise: {offsets}"
            assert {(record.topic, record.partition) for record in batch.records} == {batch.partition}
        self.records += records
        self.results += self.consumer.commit_results()
        return records

    def next_offsets(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """One past the last record that came, for each of `partitions` that gave any."""
        seen = {TopicPartition(record.topic, record.partition): record.offset + 1 for record in self.records}
        return {partition: seen[partition] for partition in partitions if partition in seen}

    def values(self) -> list[bytes | None]:
        return [record.value for record in self.records]

    def has_committed(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """Whether successful results say so of each of them."""
        done = {(p, found.offset) for result in self.results if result.error is None for p, found in result.offsets.items()}
        return done >= set(offsets.items())

    def commit(self, offsets: Mapping[TopicPartition, int], deadline_s: float = DEADLINE_S, *, text: str = "") -> None:
        """Commits, with `text` beside each offset, and waits until it is done."""
        self.begin_commit(offsets, text=text)
        wait_until(lambda: self.has_committed(offsets), self, deadline_s=deadline_s)

    def begin_commit(self, offsets: Mapping[TopicPartition, int], *, text: str = "") -> None:
        self.consumer.commit({partition: Committed(offset, text) for partition, offset in offsets.items()})

    def __repr__(self) -> str:
        return (
            f"Member {self.name!r}: owns {', '.join(map(str, sorted(self.owned))) or 'nothing'}; {len(self.records)} records,"
            f" the last {[record.origin for record in self.records[-3:]]}; commit results {self.results[-3:]}; journal {self.journal[-12:]}"
        )


class Clients:
    """Makes a broker's clients for one test, and closes them at its end."""

    def __init__(self, broker: Broker, *, deadline_s: float = DEADLINE_S) -> None:
        self.broker = broker
        self.deadline_s = deadline_s
        self._close: list[Callable[[], object]] = []
        self._producer: Producer | None = None

    def member(
        self,
        group: str,
        topic: str,
        *,
        name: str = "",
        start: Start = Edge.BEGINNING,
        on_assigned: Callable[[Member, Sequence[TopicPartition]], None] | None = None,
        on_revoked: Revoked | None = None,
        journal: list[Noted] | None = None,
    ) -> Member:
        """A member that has subscribed and was not polled yet."""
        consumer = self.broker.consumer(group)
        self._close.append(consumer.close)
        return Member(consumer, [topic], name=name, start=start, on_assigned=on_assigned, on_revoked=on_revoked, journal=journal)

    def producer(self) -> Producer:
        producer = self.broker.producer()
        self._close.append(lambda: producer.close(self.deadline_s))
        return producer

    def transactor(self, transactional_id: str) -> Transactor:
        """One that was not opened yet."""
        transactor = self.broker.transactor(transactional_id)
        self._close.append(transactor.close)
        return transactor

    def reader(self) -> LogReader:
        reader = self.broker.reader()
        self._close.append(reader.close)
        return reader

    def send(self, *records: Outgoing) -> list[Report]:
        """Sends, waits for the reports, and gives them in the order of `records`."""
        if self._producer is None:
            self._producer = self.producer()
        reports: dict[int, Report] = {}
        for nth, record in enumerate(records):
            send_when_there_is_room(self._producer, record, partial(reports.__setitem__, nth))
        left = self._producer.flush(self.deadline_s)
        assert left == 0, f"{left} of {len(records)} sends were not reported within {self.deadline_s} s"
        return [reports[nth] for nth in range(len(records))]

    def read_all(self, topic: str) -> list[Record]:
        """All records of a topic that are there now, by partition, then offset."""
        reader = self.reader()
        ends = reader.ends(topic)
        reader.assign({partition: first for partition, (first, _) in ends.items()})
        records: list[Record] = []
        deadline = time.monotonic() + self.deadline_s
        while any(reader.position()[partition] < end for partition, (_, end) in ends.items()):
            assert time.monotonic() < deadline, f"{topic}: read to {reader.position()} of {ends} within {self.deadline_s} s"
            records += reader.read(STEP_S)
        return sorted(records, key=lambda record: (record.partition, record.offset))

    def close(self) -> None:
        for close in reversed(self._close):
            close()


def wait_until(condition: Callable[[], bool], *members: Member, max_records: int = 500, deadline_s: float = DEADLINE_S) -> None:
    """Steps the members in turn until `condition` holds; AssertionError after `deadline_s` seconds."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {deadline_s} s: {'; '.join(map(repr, members))}"
        for member in members:
            member.step(max_records)


def send_when_there_is_room(producer: Producer, record: Outgoing, report: Callable[[Report], None]) -> None:
    """Sends; while the producer's queue is full, polls it."""
    while True:
        try:
            return producer.send(record, report)
        except BufferError:
            producer.poll(STEP_S)
