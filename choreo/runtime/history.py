"""What has this service read before? Owner marks and open letters, read from ``<service>.letters`` when a worker starts."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

from choreo.broker import Broker, Cluster, LogReader
from choreo.errors import BrokerError, ConfigurationError, DecodeError
from choreo.letter import UNREADABLE, LetterState, Owner, letters_topic, owner_record, read_state, source_of
from choreo.record import Record, TopicPartition
from choreo.runtime.sends import Sends

_log = logging.getLogger("choreo.letters")
_R = TypeVar("_R")
READ_S = 60.0


class History:
    """Owner: the event loop. Reading blocks, so it happens `aside`, in a thread, with a reader of its own; not in the loop's
    executor, whose threads the handlers may have taken: a rebalance waits for it."""

    def __init__(
        self, service: str, names: Callable[[str], str], broker: Broker, sends: Sends, aside: Callable[[Callable[[], Any]], Awaitable[Any]]
    ) -> None:
        self._service = service
        self._broker = broker
        self._letters = names(letters_topic(service))
        self._sends = sends
        self._aside = aside
        self._cluster: Cluster | None = None
        self.state_partitions = 0
        """Of ``<service>.letters``."""
        self.open_letters = 0
        """When the worker started."""
        self.oldest_open_at: datetime | None = None
        self.partitions_at_first: dict[TopicPartition, int] = {}
        """For each partition that is known to have been read, how many its topic had when that began."""
        self.marking: set[TopicPartition] = set()
        """Whose marks are under way."""

    async def open(self, known: Collection[str]) -> None:
        """Reads ``<service>.letters``. Raises BrokerError when it isn't there, ConfigurationError when an open letter names a
        handler that is not among `known`: after a rename its replay would reach nobody."""

        def read(reader: LogReader) -> tuple[int, list[Record]]:
            ends = reader.ends(self._letters)
            return len(ends), read_partitions(reader, ends)

        self.state_partitions, records = await self._with_reader(read)
        self.partitions_at_first = owners(records)
        open_ones = open_letters(records)
        self.open_letters = len(open_ones)
        self.oldest_open_at = min((state.first_failed_at for state in open_ones), default=None)
        lost = {state.handler for state in open_ones if state.handler not in known and state.handler != UNREADABLE}
        if lost:
            raise ConfigurationError(
                f"open letters name handlers that this service does not have: {', '.join(sorted(lost))}; "
                "was one renamed? say aliases = (<former name>,) on it; was one removed? run the release that had it, and replay "
                f"its letters there (choreo replay {self._service})"
            )

    async def logs(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, tuple[int, int]]:
        """The first offset and the end (one past the last) of each."""
        if not partitions:
            return {}
        topics = {partition.topic for partition in partitions}
        found = await self._with_reader(lambda reader: {p: log for topic in topics for p, log in reader.ends(topic).items()})
        return {partition: found[partition] for partition in partitions}

    async def ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """One past the last offset of each."""
        return {partition: end for partition, (_, end) in (await self.logs(partitions)).items()}

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, bytes]:
        """What tells each from a topic made before or after it under its name; those that have no id are left out."""

        def look() -> Mapping[str, bytes]:
            cluster = self._cluster = self._cluster or self._broker.cluster()
            return cluster.topic_ids(sorted(topics))

        found: Mapping[str, bytes] = await self._aside(look) if topics else {}
        return found

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()

    def unmarked(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """Those that no mark names, and none that is under way."""
        return [p for p in partitions if p not in self.partitions_at_first and p not in self.marking]

    def remember(self, partitions: Sequence[TopicPartition]) -> Coroutine[Any, Any, None]:
        """Marks them as read, in that they have a committed offset. Where that fails, the next commit tries again."""
        self.marking.update(partitions)
        return self._remember(partitions)

    async def _remember(self, partitions: Sequence[TopicPartition]) -> None:
        try:
            counts = await self._with_reader(lambda reader: {p.topic: len(reader.ends(p.topic)) for p in partitions})
            await self._write_marks(partitions, counts)
        except BrokerError as error:
            _log.warning("%s; marking %s as read is tried again with the next commit", error, ", ".join(map(str, partitions)))
        else:
            self.partitions_at_first.update((p, counts[p.topic]) for p in partitions)
        finally:
            self.marking.difference_update(partitions)

    async def _write_marks(self, partitions: Sequence[TopicPartition], counts: Mapping[str, int]) -> None:
        marks = [
            owner_record(self._letters, p, Owner(epoch=1, position=0, partitions=counts[p.topic]), self.state_partitions)
            for p in partitions
        ]
        await self._sends.acknowledged(marks)

    async def _with_reader(self, read: Callable[[LogReader], _R]) -> _R:
        def run() -> _R:
            reader = self._broker.reader()
            try:
                return read(reader)
            finally:
                reader.close()

        answer: _R = await self._aside(run)
        return answer


def owners(records: Iterable[Record]) -> dict[TopicPartition, int]:
    """For each partition ever read, how many its topic had when that began."""
    seen: dict[TopicPartition, int] = {}
    for record in records:
        if record.key is not None and record.key.startswith(b"owner|"):
            owner = _said_by(record)
            topic, _, number = record.key.decode("utf-8", "replace").removeprefix("owner|").rpartition("|")
            if isinstance(owner, Owner) and number.isdecimal():
                seen.setdefault(TopicPartition(topic, int(number)), owner.partitions)
    return seen


def _said_by(record: Record) -> LetterState | Owner | None:
    """What a record of ``.letters`` says; None, and a warning, for what is not ours."""
    try:
        return read_state(record)
    except DecodeError as error:
        _log.warning("%s; left alone", error)
        return None


class LetterKey(NamedTuple):
    """What tells letters apart: an event that was written twice, to two partitions, may have died on both."""

    handler: str
    event_id: str
    source: TopicPartition


def letter_states(records: Iterable[Record]) -> dict[LetterKey, LetterState]:
    """The latest state of each letter; what is not ours is said and left alone.

    A state's key does not name its source. Where two sources share a partition of ``.letters``, compaction keeps the later
    letter only; until then both are here. A tombstone ends both.
    """
    states: dict[tuple[bytes, int], dict[LetterKey, LetterState]] = {}
    for record in records:
        if record.key is None or not record.key.startswith(b"letter|"):
            continue
        handler, separator, event_id = record.key.decode("utf-8", "replace").removeprefix("letter|").partition("|")
        state = _said_by(record) if separator else None
        if isinstance(state, LetterState):
            states.setdefault((record.key, record.partition), {})[LetterKey(handler, event_id, source_of(state))] = state
        elif record.value is None:
            states.pop((record.key, record.partition), None)
    return {key: state for same_key in states.values() for key, state in same_key.items()}


def open_letters(records: Iterable[Record]) -> list[LetterState]:
    """The letters that nobody has resolved or discarded."""
    return [state for state in letter_states(records).values() if state.state == "open"]


def read_partitions(reader: LogReader, ends: Mapping[TopicPartition, tuple[int, int]], *, deadline_s: float = READ_S) -> list[Record]:
    """The records between first offset and end of each partition, in order within each."""
    wanted = {p: end for p, (first, end) in ends.items() if end > first}
    if not wanted:
        return []
    reader.assign({p: ends[p][0] for p in wanted})
    found: list[Record] = []
    deadline = time.monotonic() + deadline_s
    while any(position < wanted[p] for p, position in reader.position().items() if p in wanted):
        found += [r for r in reader.read(0.1) if r.offset < wanted[TopicPartition(r.topic, r.partition)]]
        if time.monotonic() > deadline:
            raise BrokerError(
                f"reading {', '.join(map(str, wanted))} took longer than {deadline_s:.0f} s; is a broker down?", code="_TIMED_OUT"
            )
    return found
