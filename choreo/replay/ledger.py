"""Which letters does a service have, and what was tried with them? The fold of ``.letters`` and ``.replay``.

`fold` is pure; `read_ledger` reads what it folds, outside of any group and without writing. What stands in these topics
and is not ours is listed as unreadable and never stops anybody (CRASH_MATRIX Q9).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from choreo.broker import Broker, LogReader, TopicInfo
from choreo.errors import BrokerError, ConfigurationError, DecodeError, did_you_mean
from choreo.letter import (
    LetterState,
    Place,
    ReplayOutcome,
    Request,
    Run,
    dlq_topic,
    letters_topic,
    read_replay,
    read_state,
    replay_topic,
)
from choreo.record import Record, TopicPartition
from choreo.runtime.history import read_partitions

_LETTERS = ".letters"
_GONE = frozenset({"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"})


class LetterId(NamedTuple):
    """One event that died in one handler."""

    handler: str
    event_id: str


@dataclass(slots=True)
class RunView:
    """One run of a replay as the log tells it. `begun` None: its first record is gone or unreadable."""

    run: str
    begun: Run | None = None
    requests: dict[LetterId, Request] = field(default_factory=dict)
    outcomes: dict[LetterId, ReplayOutcome] = field(default_factory=dict)

    def take(self, entry: Run | Request | ReplayOutcome) -> None:
        """The log's next entry of this run. The first outcome of a request counts: a later one is of another owner, too late."""
        if isinstance(entry, Run):
            self.begun = entry
        elif isinstance(entry, Request):
            self.requests[LetterId(entry.handler, entry.event_id)] = entry
        else:
            self.outcomes.setdefault(LetterId(entry.handler, entry.event_id), entry)

    def waiting(self) -> list[Request]:
        """The requests without an outcome, in the order they were made."""
        return [request for letter, request in self.requests.items() if letter not in self.outcomes]

    def never_requested(self) -> int:
        """Letters the run announced and never asked for: whoever began it died half-way."""
        return 0 if self.begun is None else max(0, self.begun.letters - len(self.requests))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """All letters of one service in source order, whatever their state, and all runs, the oldest first."""

    service: str
    letters: Sequence[LetterState]
    runs: Mapping[str, RunView]
    unreadable: Sequence[str] = ()
    dlq_ends: Mapping[TopicPartition, tuple[int, int]] = field(default_factory=dict)
    retention_ms: int | None = None
    """Of the dlq, where its topic says so."""

    def open(self) -> list[LetterState]:
        """The letters that nobody has resolved or discarded."""
        return [letter for letter in self.letters if letter.state == "open"]

    def waiting_in(self, letter: LetterState) -> str | None:
        """The run that has asked for this letter and has no outcome of it yet."""
        wanted = LetterId(letter.handler, letter.event_id)
        found = (view.run for view in self.runs.values() if wanted in view.requests and wanted not in view.outcomes)
        return next(found, None)

    def is_gone(self, letter: LetterState) -> bool:
        """Whether Kafka's retention has deleted its record."""
        return not self.holds(letter.dlq)

    def holds(self, place: Place) -> bool:
        """Whether the dlq has an offset there now."""
        first, end = self.dlq_ends.get(TopicPartition(place.topic, place.partition), (0, 0))
        return first <= place.offset < end


def fold(service: str, states: Iterable[Record], log: Iterable[Record]) -> Ledger:
    """The ledger of these records of ``.letters`` and ``.replay``, each partition's in offset order."""
    letters, unreadable = fold_states(states)
    runs: dict[str, RunView] = {}
    for record in log:
        try:
            entry = read_replay(record)
        except DecodeError as error:
            unreadable.append(str(error))
            continue
        runs.setdefault(entry.run, RunView(entry.run)).take(entry)
    return Ledger(service=service, letters=letters, runs=runs, unreadable=unreadable)


def fold_states(records: Iterable[Record]) -> tuple[list[LetterState], list[str]]:
    """The latest state of each letter in source order, and what can't be read.

    An event that was written twice, to two partitions, and died twice has two letters: their states may stand in two
    partitions of ``.letters``, so the partition is part of what tells letters apart.
    """
    latest: dict[tuple[bytes, int], LetterState] = {}
    unreadable: list[str] = []
    for record in records:
        key = record.key or b""
        if key.startswith(b"owner|"):
            continue
        try:
            state = read_state(record)
        except DecodeError as error:
            unreadable.append(str(error))
            continue
        if isinstance(state, LetterState) and key.startswith(b"letter|"):
            latest[key, record.partition] = state
        elif state is None and key.startswith(b"letter|"):
            latest.pop((key, record.partition), None)
        else:
            unreadable.append(f"{record.origin} has the key {key[:40]!r}, which is no letter's")
    return sorted(latest.values(), key=source_order), unreadable


def source_order(letter: LetterState) -> tuple[str, int, int, str]:
    """Sorts letters as their events stand in their topics."""
    return letter.origin.topic, letter.origin.partition, letter.origin.offset, letter.handler


# ---- reading --------------------------------------------------------------------------------------------------------


def read_ledger(broker: Broker, service: str, names: Callable[[str], str]) -> Ledger:
    """Reads everything of one service. Raises ConfigurationError when Kafka knows no such service, BrokerError."""
    topics = _topics(broker)
    dlq, states, log = (names(of(service)) for of in (dlq_topic, letters_topic, replay_topic))
    missing = [topic for topic in (states, dlq, log) if topic not in topics]
    if missing:
        prefix = states.removesuffix(f"{service}{_LETTERS}")
        known = [name.removeprefix(prefix).removesuffix(_LETTERS) for name in topics if name.endswith(_LETTERS) and name.startswith(prefix)]
        raise ConfigurationError(
            f"no service {service!r}: Kafka has no topic {', '.join(missing)}, or this user may not see it{did_you_mean(service, known)}"
        )
    reader = broker.reader()
    try:
        ends = {topic: reader.ends(topic) for topic in (states, log, dlq)}
        records = read_partitions(reader, {**ends[states], **ends[log]})
    finally:
        reader.close()
    ledger = fold(service, *([record for record in records if record.topic == topic] for topic in (states, log)))
    return Ledger(
        service=service,
        letters=ledger.letters,
        runs=ledger.runs,
        unreadable=ledger.unreadable,
        dlq_ends=ends[dlq],
        retention_ms=_number(topics[dlq].config.get("retention.ms")),
    )


def read_all(reader: LogReader, topic: str) -> list[Record]:
    """Everything a topic holds at this moment, each partition in offset order."""
    return read_partitions(reader, reader.ends(topic))


def open_by_topic(broker: Broker, letters: str) -> dict[str, int]:
    """How many open letters came from each topic; none where there is no topic `letters` yet."""
    reader = broker.reader()
    try:
        states, _ = fold_states(read_all(reader, letters))
    except BrokerError as error:
        if error.code not in _GONE:
            raise
        return {}
    finally:
        reader.close()
    counts: dict[str, int] = {}
    for state in states:
        if state.state == "open":
            counts[state.origin.topic] = counts.get(state.origin.topic, 0) + 1
    return counts


def _topics(broker: Broker) -> Mapping[str, TopicInfo]:
    cluster = broker.cluster()
    try:
        return cluster.topics()
    finally:
        cluster.close()


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdecimal() else None
