"""What does a dlq hold that its letters' states don't tell? Records nobody can read, and copies that no state points to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from choreo.broker import Broker
from choreo.errors import DecodeError
from choreo.letter import LetterState, Place, dlq_headers, source_record
from choreo.record import Record
from choreo.replay.ledger import Ledger, LetterId
from choreo.runtime.history import read_partitions
from choreo.runtime.replays import fetch

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


def fetch_letters(broker: Broker, letters: Iterable[LetterState]) -> dict[Place, Record]:
    """The dlq records of these letters; those that retention has deleted are not in it."""
    return fetch_places(broker, [letter.dlq for letter in letters])


def fetch_places(broker: Broker, places: Iterable[Place]) -> dict[Place, Record]:
    """The records that stand there."""
    reader = broker.reader()
    try:
        found = ((place, fetch(reader, place)) for place in places)
        return {place: record for place, record in found if record is not None}
    finally:
        reader.close()
