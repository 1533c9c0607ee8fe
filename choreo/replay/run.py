"""How does a replay run? Its requests go into ``<service>.replay``; the owners of the letters answer there.

Everything a run is stands in that log, so whoever began it may go away: it goes on, and any process may follow it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from choreo.broker import Broker, LogReader, Producer, Report
from choreo.errors import BrokerError, DecodeError
from choreo.letter import LetterState, ReplayEntry, ReplayOutcome, Request, Result, Run, read_replay, replay_record
from choreo.record import Outgoing, Record, TopicPartition
from choreo.replay.ledger import RunView

READ_S = 0.2
WRITE_S = 30.0


def new_run_id(known: Collection[str]) -> str:
    """Eight hex digits that no run in the log has: short enough to say aloud. Of a forced replay it is the epoch of claims."""
    while (run := secrets.token_hex(4)) in known:
        pass
    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Who asked for a run, why, and whether it goes past a success."""

    by: str
    why: str = ""
    forced: bool = False


def run_entries(run: str, letters: Sequence[LetterState], reason: Reason, at: datetime) -> list[ReplayEntry]:
    """What the log gets: the run, then a request for each letter, in order."""
    begun = Run(run=run, by=reason.by, reason=reason.why, forced=reason.forced, letters=len(letters), at=at)
    return [begun, *(_request(run, letter, reason, at) for letter in letters)]


def _request(run: str, letter: LetterState, reason: Reason, at: datetime) -> Request:
    return Request(
        run=run,
        handler=letter.handler,
        event_id=letter.event_id,
        origin=letter.origin,
        dlq=letter.dlq,
        by=reason.by,
        reason=reason.why,
        forced=reason.forced,
        at=at,
    )


def write_run(broker: Broker, topic: str, entries: Sequence[ReplayEntry]) -> int:
    """Writes them; the offset of the first, where following begins. Raises BrokerError that says how many were written."""
    producer = broker.producer()
    reports: list[Report] = []
    try:
        for entry in entries:
            _send(producer, replay_record(topic, entry), reports.append)
        producer.flush(WRITE_S)
    finally:
        producer.close(0)
    problem = next((report.error for report in reports if report.error is not None), None)
    if problem is not None:
        written = sum(report.error is None for report in reports)
        raise BrokerError(
            f"run {entries[0].run}: {written} of {len(entries)} records were written, the others not: {problem}",
            code=problem.code,
            retriable=problem.retriable,
        )
    return min(report.offset for report in reports)


def _send(producer: Producer, record: Outgoing, report: Callable[[Report], None]) -> None:
    while True:
        try:
            producer.send(record, report)
        except BufferError:
            producer.poll(0.1)
        else:
            return


def follow(reader: LogReader, topic: str, view: RunView, start: int, *, silence_s: float) -> Iterator[RunView]:
    """Gives `view`, which has the run's requests, after each read that told something new of it; ends when no request waits,
    or after `silence_s` seconds without news."""
    log = TopicPartition(topic, 0)
    reader.assign({log: start})
    heard_at = time.monotonic()
    while view.waiting():
        news = [entry for record in reader.read(READ_S) if (entry := _entry_of(record, view.run)) is not None]
        for entry in news:
            view.take(entry)
        if news:
            heard_at = time.monotonic()
            yield view
        elif time.monotonic() - heard_at >= silence_s:
            return


def _entry_of(record: Record, run: str) -> ReplayEntry | None:
    try:
        entry = read_replay(record)
    except DecodeError:
        return None  # not ours; `dlq ls` counts it
    return entry if entry.run == run else None


def tally(outcomes: Collection[ReplayOutcome]) -> dict[Result, int]:
    """How many ended how."""
    counts: dict[Result, int] = {"resolved": 0, "already-done": 0, "failed-again": 0, "refused": 0}
    for outcome in outcomes:
        counts[outcome.result] += 1
    return counts
