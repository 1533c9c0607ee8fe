"""What did an event cause? Builds the causal tree of one flow, purely, from what stands on Kafka.

Kafka alone tells: the events, what caused each and which handler emitted it, dead letters through their states, replays
and how they ended. It doesn't tell of a handler that emitted nothing and never died: whoever knows of it (the claims of
a store do) says so with `Handled`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from choreo.codec import JsonCodec
from choreo.envelope import read_wire
from choreo.errors import DecodeError
from choreo.letter import UNREADABLE, LetterState, Place, ReplayOutcome, Run, payload_hash
from choreo.record import Record

_EVER = datetime.max.replace(tzinfo=UTC)

Ending = Literal["done", "dead", "parked", "discarded"]


class Letter(NamedTuple):
    """One state of one letter, as ``<service>.letters`` has it."""

    service: str
    state: LetterState


class Ended(NamedTuple):
    """What one replay made of one letter, as ``<service>.replay`` has it."""

    service: str
    outcome: ReplayOutcome


class Handled(NamedTuple):
    """A handler has succeeded with an event; somebody knows."""

    service: str
    handler: str
    event_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was found of a flow. `letters` and `outcomes` are in the order of their logs."""

    records: Sequence[Record]
    letters: Sequence[Letter] = ()
    runs: Mapping[str, Run] = field(default_factory=dict)
    outcomes: Sequence[Ended] = ()
    handled: Sequence[Handled] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEvent:
    """One event of the flow. `type` None: it can't be read. `places`: more than one when it was written again; `differing`:
    then not with the same payload, so a handler doesn't answer the same each time. `at` is the record's own time."""

    event_id: str
    flow_id: str
    cause_id: str | None
    source: str | None
    type: str | None
    key: str | None
    at: datetime | None
    places: tuple[Place, ...]
    differing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one handler (`who`: service/handler) made of one event: the ids of what it emitted, its letter through its states,
    oldest first, and what replays made of that."""

    who: str
    emitted: tuple[str, ...]
    letter: tuple[LetterState, ...]
    outcomes: tuple[ReplayOutcome, ...]

    @property
    def ending(self) -> Ending:
        if not self.letter or self.letter[-1].state == "resolved":
            return "done"
        if self.letter[-1].state == "discarded":
            return "discarded"
        return "parked" if self.letter[-1].kind == "parked" else "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The tree, flat: `steps` by the id of the event they handled; `roots` are the events that none of the others caused.

    A root with a cause has lost it: it wasn't found, or (ids that a foreign producer made up) it comes after its own effect.
    """

    events: Mapping[str, FlowEvent]
    steps: Mapping[str, tuple[Step, ...]]
    roots: tuple[str, ...]
    runs: Mapping[str, Run]


def build(evidence: Evidence, event_type: Callable[[bytes], str] | None = None) -> Flow:
    """The tree. `event_type` reads an event's type from its bytes (default: JSON's) and may raise DecodeError."""
    events = _events(evidence.records, event_type or JsonCodec().event_type)
    roots = _roots(events)
    caused: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for event in sorted(events.values(), key=_when):
        if event.event_id not in roots and event.cause_id is not None:
            caused[event.cause_id][event.source or "?"].append(event.event_id)
    for handled in evidence.handled:
        if handled.event_id in events:
            caused[handled.event_id][f"{handled.service}/{handled.handler}"] += ()
    letters: defaultdict[tuple[str, str], list[LetterState]] = defaultdict(list)
    for letter in evidence.letters:
        if letter.state.event_id in events:
            who = f"{letter.service}/{letter.state.handler}"
            caused[letter.state.event_id][who] += ()
            letters[letter.state.event_id, who].append(letter.state)
    steps = {
        event_id: tuple(
            sorted(
                (_step(event_id, who, emitted, letters[event_id, who], evidence.outcomes) for who, emitted in by_handler.items()),
                key=lambda step: _began(step, events),
            )
        )
        for event_id, by_handler in caused.items()
    }
    return Flow(events=events, steps=steps, roots=tuple(sorted(roots, key=lambda one: _when(events[one]))), runs=evidence.runs)


def _events(records: Iterable[Record], event_type: Callable[[bytes], str]) -> dict[str, FlowEvent]:
    same: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        same[read_wire(record).event_id].append(record)
    return {event_id: _event(event_id, sorted(found, key=_written), event_type) for event_id, found in same.items()}


def _event(event_id: str, records: Sequence[Record], event_type: Callable[[bytes], str]) -> FlowEvent:
    first = records[0]
    wire = read_wire(first)
    try:
        read = event_type(first.value) if first.value is not None else "(tombstone)"
    except DecodeError:
        read = None
    return FlowEvent(
        event_id=event_id,
        flow_id=wire.flow_id,
        cause_id=wire.cause_id,
        source=wire.source,
        type=read,
        key=None if first.key is None else first.key.decode("utf-8", "replace"),
        at=datetime.fromtimestamp(first.timestamp_ms / 1000, UTC) if first.timestamp_ms >= 0 else None,
        places=tuple(Place(record.topic, record.partition, record.offset) for record in records),
        differing=len({payload_hash(record.value) for record in records}) > 1,
    )


def _roots(events: Mapping[str, FlowEvent]) -> set[str]:
    """The events that none of the others caused; of a ring, which honest producers can't make, its earliest."""
    roots = {event.event_id for event in events.values() if event.cause_id not in events}
    effects: defaultdict[str, list[str]] = defaultdict(list)
    for event in events.values():
        if event.cause_id is not None:
            effects[event.cause_id].append(event.event_id)
    unreached = set(events)
    waiting = list(roots)
    while True:
        while waiting:
            one = waiting.pop()
            if one in unreached:
                unreached.discard(one)
                waiting += effects[one]
        if not unreached:
            return roots
        earliest = min(unreached, key=lambda one: _when(events[one]))
        roots.add(earliest)
        waiting.append(earliest)


def _step(event_id: str, who: str, emitted: Sequence[str], letter: Sequence[LetterState], ended: Iterable[Ended]) -> Step:
    outcomes = tuple(o for service, o in ended if (f"{service}/{o.handler}", o.event_id) == (who, event_id))
    return Step(who=who, emitted=tuple(emitted), letter=tuple(letter), outcomes=outcomes)


def _began(step: Step, events: Mapping[str, FlowEvent]) -> tuple[datetime, str]:
    times = [event.at for event in map(events.__getitem__, step.emitted) if event.at is not None]
    times += [state.first_failed_at for state in step.letter]
    return min(times, default=_EVER), step.who


def _when(event: FlowEvent) -> tuple[datetime, str, int, int]:
    place = event.places[0]
    return event.at or _EVER, place.topic, place.partition, place.offset


def _written(record: Record) -> tuple[int, str, int, int]:
    return record.timestamp_ms, record.topic, record.partition, record.offset


def shown_handler(who: str) -> str:
    """As screens write it: a letter that no handler could read died in decoding."""
    service, _, handler = who.partition("/")
    return f"{service}/(decode)" if handler == UNREADABLE else who
