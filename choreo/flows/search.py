"""Which records belong to a flow? Reads logs by position, the newest records of each, within bounds that it owns up to."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from choreo.broker import LogReader
from choreo.envelope import read_wire
from choreo.errors import DecodeError
from choreo.flows.tree import Ended, Evidence, Letter
from choreo.letter import LetterState, ReplayOutcome, Run, read_replay, read_state
from choreo.record import Record, TopicPartition


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How far one search goes: the newest `max_records` of its topics, `max_found` finds, `deadline_s` seconds."""

    max_records: int = 1_000_000
    max_found: int = 10_000
    deadline_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a search brought: `unread` records of its topics were not looked at, or not kept, for a bound was reached."""

    records: list[Record]
    read: int
    unread: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceTopics:
    """Where one service keeps its letters and replays (the broker's names)."""

    service: str
    letters: str
    replay: str


def search(reader: LogReader, topics: Collection[str], wanted: Callable[[Record], bool], bounds: Bounds) -> Found:
    """The records of `topics` that are `wanted`, as far as the bounds let it look. Raises BrokerError."""
    deadline = time.monotonic() + bounds.deadline_s
    ends = {partition: between for topic in topics for partition, between in reader.ends(topic).items()}
    starts = _newest({p: (first, end) for p, (first, end) in ends.items() if end > first}, bounds.max_records)
    found: list[Record] = []
    read = too_many = 0
    position: Mapping[TopicPartition, int] = starts
    if starts:
        reader.assign(starts)
    while any(position[p] < ends[p][1] for p in starts) and len(found) < bounds.max_found and time.monotonic() < deadline:
        for record in reader.read(0.1):
            if record.offset < ends[TopicPartition(record.topic, record.partition)][1]:
                read += 1
                if wanted(record) and len(found) < bounds.max_found:
                    found.append(record)
                elif len(found) >= bounds.max_found:
                    too_many += 1
        position = reader.position()
    before = sum(starts[p] - ends[p][0] for p in starts)
    after = sum(max(0, ends[p][1] - position[p]) for p in starts)
    return Found(found, read - too_many, before + after + too_many)


def _newest(ends: Mapping[TopicPartition, tuple[int, int]], max_records: int) -> dict[TopicPartition, int]:
    """Where to begin in each partition so that about `max_records` are read, of each its share."""
    total = sum(end - first for first, end in ends.values())
    share = min(1.0, max_records / total) if total else 1.0
    return {p: end - max(1, int((end - first) * share)) for p, (first, end) in ends.items()}


def find_flow(
    reader: LogReader, flow_id: str, topics: Collection[str], services: Sequence[ServiceTopics], bounds: Bounds
) -> tuple[Evidence, Found]:
    """All of a flow that stands in `topics`, with the letters and replays of its events; and how far the search for its
    events went. Raises BrokerError."""
    events = search(reader, topics, lambda record: read_wire(record).flow_id == flow_id, bounds)
    ids = {read_wire(record).event_id for record in events.records}
    letters = _letters(reader, {service.letters: service.service for service in services}, ids, bounds)
    died_in = {letter.service for letter in letters}
    runs, ended = _replays(reader, {service.replay: service.service for service in services if service.service in died_in}, ids, bounds)
    return Evidence(records=events.records, letters=letters, runs=runs, outcomes=ended), events


def _letters(reader: LogReader, services: Mapping[str, str], ids: Collection[str], bounds: Bounds) -> list[Letter]:
    """The states of letters of these events, in the order of each log; `services` by the topic of their letters."""
    found = search(reader, services, lambda record: _letter_of(record) in ids, bounds)
    states = ((record.topic, _read(read_state, record)) for record in found.records)
    return [Letter(services[topic], state) for topic, state in states if isinstance(state, LetterState)]


def _letter_of(record: Record) -> str | None:
    """The event whose letter's state this is; None for an owner's mark and for a tombstone."""
    if record.value is None or record.key is None or not record.key.startswith(b"letter|"):
        return None
    return record.key.decode("utf-8", "replace").split("|", 2)[2]


def _replays(reader: LogReader, services: Mapping[str, str], ids: Collection[str], bounds: Bounds) -> tuple[dict[str, Run], list[Ended]]:
    """The replays of these events' letters, and the runs they belong to; `services` by the topic of their replay logs."""
    found = search(reader, services, lambda _: True, bounds)
    entries = [(record.topic, _read(read_replay, record)) for record in found.records]
    ended = [Ended(services[topic], entry) for topic, entry in entries if isinstance(entry, ReplayOutcome) and entry.event_id in ids]
    runs = {outcome.run for _, outcome in ended}
    return {entry.run: entry for _, entry in entries if isinstance(entry, Run) and entry.run in runs}, ended


def _read(read: Callable[[Record], object], record: Record) -> object:
    """What the record says; None for one that is not ours, which the services' own logs complain about."""
    try:
        return read(record)
    except DecodeError:
        return None
