"""How does a flow look on a terminal? The tree as plain lines; marks carry the meaning, colour may be added.

``✓`` done, ``✗`` dead, ``⏸`` parked, ``–`` discarded. An event line has its place and time (UTC), a handler line what is
known of it. tests/unit/test_flow_tree.py has the golden text.
"""

from __future__ import annotations

import textwrap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from choreo.flows.tree import Ending, Flow, FlowEvent, Step, shown_handler
from choreo.letter import LetterState, ReplayOutcome

WIDTH = 100
_MARKS: dict[Ending, str] = {"done": "✓", "dead": "✗", "parked": "⏸", "discarded": "–"}
_GAP = 2
_MAX_INDENT = 60


class _Row(NamedTuple):
    """One event (`at` is its place) or one handler (`at` is None) of the drawing; `below` goes before its further lines."""

    label: str
    below: str
    at: str | None
    notes: Iterable[str]


def render(flow: Flow, *, now: datetime, width: int = WIDTH) -> list[str]:
    """The tree, `width` columns at most where the names allow it. Letters that are open are so until `now`."""
    rows = list(_rows(flow, now))
    events = [row for row in rows if row.at is not None]
    labels = max((len(row.label) for row in events), default=0) + _GAP
    places = max((len(row.at or "") for row in events), default=0) + _GAP
    column = max([labels + places, *(len(row.label) + _GAP for row in rows if row.at is None)])
    return [line for row in rows for line in _lines(row, labels, column, width)]


_ASCII = str.maketrans({"✓": "+", "✗": "x", "⏸": "=", "–": "-", "├": "|", "└": "`", "│": "|", "─": "-"})


def in_ascii(line: str) -> str:
    """The drawing for terminals that have no other characters."""
    return line.translate(_ASCII)


def _rows(flow: Flow, now: datetime) -> Iterator[_Row]:
    """From top to bottom; a stack and no recursion, and what is too deep starts anew below: flows may turn in circles."""
    roots = deque(flow.roots)
    waiting: list[tuple[str, str, FlowEvent | tuple[str, Step]]] = []
    while waiting or roots:
        first, below, item = waiting.pop() if waiting else ("", "", flow.events[roots.popleft()])
        if isinstance(item, FlowEvent):
            steps = flow.steps.get(item.event_id, ())
            yield _Row(first + (item.type or "(unreadable)"), _under(below, steps), str(item.places[0]), _event_notes(item, flow, now))
            waiting += reversed([(*_branch(below, step is steps[-1]), (item.event_id, step)) for step in steps])
            continue
        step = item[1]
        label = f"{first}{_MARKS[step.ending]} {shown_handler(step.who)}"
        yield _Row(label, _under(below, step.emitted), None, _step_notes(step, flow, now))
        if len(below) < _MAX_INDENT:
            waiting += reversed([(*_branch(below, one == step.emitted[-1]), flow.events[one]) for one in step.emitted])
        elif step.emitted:
            yield _Row(f"{below}└─ ... {flow.events[step.emitted[0]].places[0]}", below, None, ["goes on below"])
            roots.extendleft(reversed(step.emitted))


def _branch(below: str, last: bool) -> tuple[str, str]:
    return (f"{below}└─ ", f"{below}   ") if last else (f"{below}├─ ", f"{below}│  ")


def _under(below: str, following: Sequence[object]) -> str:
    return f"{below}│" if following else below


def _lines(row: _Row, labels: int, column: int, width: int) -> Iterator[str]:
    head = f"{row.label:<{labels}}{row.at}" if row.at is not None else row.label
    texts = [text for note in row.notes for text in textwrap.wrap(note, max(20, width - column), break_long_words=False)] or [""]
    for number, text in enumerate(texts):
        yield f"{head if number == 0 else row.below:<{column}}{text}".rstrip()


def _event_notes(event: FlowEvent, flow: Flow, now: datetime) -> Iterator[str]:
    time = _clock(event.at, now, millis=True) if event.at is not None else "(no time)"
    root = event.event_id in flow.roots
    yield f"{time}  by {event.source}" if root and event.source else time
    if root and event.cause_id is not None:
        yield f"caused by {event.cause_id}, which was not found"
    if len(event.places) > 1:
        others = ", ".join(map(str, event.places[1:4])) + (", ..." if len(event.places) > 4 else "")
        yield f"the same event again at {others}" + ("; its payloads differ!" if event.differing else "")


def _step_notes(step: Step, flow: Flow, now: datetime) -> Iterator[str]:
    """From the earliest to the latest."""
    if not step.letter:
        if not step.emitted:
            yield "emitted nothing"
        return
    last = step.letter[-1]
    died = next((state for state in step.letter if state.state == "open"), None)
    if step.ending == "parked":
        yield "parked behind an earlier event of its key"
    elif died is not None:
        yield f"died {_clock(died.last_failed_at, now)} after {_death(died)}"
    waits = f"open for {span((now - last.last_failed_at).total_seconds())}" if last.state == "open" else last.state
    yield f"dead letter {last.dlq}, {waits}"
    for outcome in step.outcomes:
        yield _replayed(outcome, flow, now)


def _replayed(outcome: ReplayOutcome, flow: Flow, now: datetime) -> str:
    run = flow.runs.get(outcome.run)
    by = f" by {run.by} ({run.reason})" if run is not None and run.reason else f" by {run.by}" if run is not None else ""
    return f"replayed {_clock(outcome.at, now)}, run {outcome.run}{by}: {outcome.result.replace('-', ' ')}"


def _death(state: LetterState) -> str:
    took_s = (state.last_failed_at - state.first_failed_at).total_seconds()
    attempts = f"{state.attempts} attempt{'' if state.attempts == 1 else 's'}" + (f" in {span(took_s)}" if state.attempts > 1 else "")
    return f"{attempts}, {state.error_type}: {state.message.removeprefix(f'{state.origin}: ')}"


def _clock(at: datetime, now: datetime, *, millis: bool = False) -> str:
    """The time of day, UTC, after the date unless that is today."""
    text = f"{at:%H:%M:%S}" + (f".{at.microsecond // 1000:03}" if millis else "")
    return text if at.date() == now.date() else f"{at:%m-%d} {text}"


def span(seconds: float) -> str:
    """A length of time in the two units that matter: ``12 ms``, ``7.6 s``, ``2 h 14 min``, ``13 d 21 h``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"
