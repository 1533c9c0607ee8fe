"""What does a dlq hold that its letters' states don't tell? Records nobody can read, and copies that no state points to."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from choreo.broker import Broker, LogReader
from choreo.errors import BrokerError, DecodeError
from choreo.letter import Place, dlq_headers, source_record
from choreo.record import Record, TopicPartition
from choreo.replay.ledger import Ledger, LetterId
from choreo.runtime.history import read_partitions

FETCH_S = 15.0
MAX_SCANNED = 10_000
"""A dlq with more records than this is only read whole when somebody asks for it."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A dlq record that is no letter. `opaque`: it does not say what it is; `abandoned`: a copy that no state points to (its
    writer died between the two, or the letter was settled long ago). Neither is ever replayed."""

    place: Place
    kind: Literal["opaque", "abandoned"]
    why: str
    bytes: int


def strays(ledger: Ledger, records: Iterable[Record]) -> list[Stray]:
    """The records that are no letters. A letter that died again left its older copy behind: that one belongs to it."""
    known = {LetterId(letter.handler, letter.event_id) for letter in ledger.letters}
    found = []
    for record in records:
        place = Place(record.topic, record.partition, record.offset)
        headers = dlq_headers(record)
        size = len(record.value or b"")
        letter = LetterId(headers.get("handler", ""), headers.get("event-id", ""))
        try:
            source_record(record)
        except DecodeError as error:
            found.append(Stray(place, "opaque", error.detail, size))
            continue
        if not all(letter):
            found.append(Stray(place, "opaque", f"{place} does not say which handler and event it is of", size))
        elif letter not in known:
            found.append(Stray(place, "abandoned", f"{letter.event_id} of {letter.handler}: no state points to it", size))
    return found


def dlq_size(ledger: Ledger) -> int:
    """How many records the dlq may hold, by its offsets."""
    return sum(end - first for first, end in ledger.dlq_ends.values())


def read_dlq(broker: Broker, ledger: Ledger) -> list[Record]:
    """All records of the dlq. Raises BrokerError."""
    reader = broker.reader()
    try:
        return read_partitions(reader, ledger.dlq_ends)
    finally:
        reader.close()


def fetch_places(broker: Broker, ledger: Ledger, places: Iterable[Place]) -> dict[Place, Record]:
    """The records at these places of the dlq; those that retention has deleted, or that never were, are not in it.

    One place of each partition at a time, all partitions together: a seek waits for the fetch that is under way. Raises
    BrokerError.
    """
    wanted = sorted({place for place in places if ledger.holds(place)}, key=lambda place: place.offset)
    found: dict[Place, Record] = {}
    reader = broker.reader()
    try:
        while wanted:
            first: dict[TopicPartition, int] = {}
            for place in wanted:
                first.setdefault(TopicPartition(place.topic, place.partition), place.offset)
            _fetch(reader, first, set(wanted), found)
            # What is neither read nor ahead of what was read is not there: compacted, or deleted while we looked.
            wanted = [p for p in wanted if p not in found and p.offset > first[TopicPartition(p.topic, p.partition)]]
    finally:
        reader.close()
    return found


def _fetch(reader: LogReader, starts: dict[TopicPartition, int], wanted: set[Place], found: dict[Place, Record]) -> None:
    """Reads on in each partition until the place it starts at has come, or been passed."""
    reader.assign(starts)
    left = dict(starts)
    until = time.monotonic() + FETCH_S
    while left:
        for record in reader.read(0.1):
            place = Place(record.topic, record.partition, record.offset)
            if place in wanted:
                found[place] = record
        # The position also passes what is not there any more.
        left = {partition: offset for partition, offset in left.items() if reader.position()[partition] <= offset}
        if left and time.monotonic() > until:
            raise BrokerError(f"reading {', '.join(map(str, left))} took longer than {FETCH_S:.0f} s; is a broker down?", code="_TIMED_OUT")
