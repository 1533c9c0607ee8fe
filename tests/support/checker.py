"""Did it keep its promises? The oracle of CRASH_MATRIX: pure functions from a history to named violations.

I1 lost · I2 doubled · I3 order of a key · I4 committed beyond unfinished, or back · I5 a letter's bytes · I7 not caught up in
time · I8 not clean after a clean stop; besides them SUM (a running sum or an amount that is wrong), LOG (an acknowledged record
that the log does not have) and PHANTOM (an effect of an event that nobody wrote).

What a redelivery may do. A crash makes a group read again from its committed offset: of each key a *suffix* comes again, in
log order. Where effects are not in the transaction of their claim, a key's effects may therefore read ``A B | A B C``. Of the
order this leaves two rules, and they are the ones that are checked:

- the first effects of a key's events come in log order, always: nothing admits ``B A``, for B overtook A;
- a repeated effect is admitted only for a pair (handler, event id) that the caller admits (in flight at a kill); then it may
  also come after the first effect of a later event, ``A B | A``, because the suffix that comes again begins before that event.
  Each going back is counted as a *rewind* of its lane, and `rewinds_per_lane` limits them to the number of crashes.

Doubles and rewinds are counted also where they are admitted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from choreo.record import Headers, TopicPartition
from tests.support.facts import Admitted, Facts
from tests.support.history import History, Letter, Produced

DLQ_PREFIX = "choreo-dlq-"
MAX_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: which, and what shows it."""

    name: str
    detail: str

    def __str__(self) -> str:
        return f"{self.name}: {self.detail}"


@dataclass(frozen=True)
class Report:
    """What the checker found: the violations, counts of everything, and which promises the history said nothing about."""

    violations: Sequence[Violation]
    counts: dict[str, int]
    unchecked: frozenset[str]

    @property
    def ok(self) -> bool:
        return not self.violations

    @property
    def names(self) -> set[str]:
        """Of the promises that were broken."""
        return {violation.name for violation in self.violations}

    def table(self) -> str:
        """One line a count, one a promise, and the first violations of each broken one."""
        lines = [f"{name:<28}{count:>9,}" for name, count in self.counts.items()]
        found = Counter(violation.name for violation in self.violations)
        for name, (what, _) in PROMISES.items():
            state = "not checked" if name in self.unchecked else f"{found[name]} broken" if found[name] else "kept"
            lines.append(f"{name:<8}{what:<40}{state:>14}")
        for name in found:
            shown = [violation for violation in self.violations if violation.name == name]
            lines += [f"  {violation}" for violation in shown[:MAX_SHOWN]]
            lines += [f"  {name}: and {len(shown) - MAX_SHOWN} more"] if len(shown) > MAX_SHOWN else []
        return "\n".join(lines)

    def require(self) -> None:
        """AssertionError with the table unless every promise was kept."""
        assert self.ok, "the oracle says no\n" + self.table()


def check(history: History, admitted: Admitted | None = None) -> Report:
    """Judges a whole run."""
    facts = Facts(history, admitted or Admitted())
    violations = [
        Violation(name, detail) for name, (_, broken) in PROMISES.items() if name not in _unchecked(history) for detail in broken(facts)
    ]
    return Report(violations, _counts(facts), _unchecked(history))


def lost(facts: Facts) -> Iterator[str]:
    """I1: every event in Kafka is handled, dead-lettered or skipped with audit, for each handler of its topic."""
    for event in facts.written:
        for handler in facts.handlers_of(event.topic):
            if facts.finished_at_s(event, handler) == inf:
                yield f"{event} is unaccounted for by {handler}"


def doubled(facts: Facts) -> Iterator[str]:
    """I2: at most one effect of each (handler, event id, epoch), but for what is admitted."""
    surplus = 0
    for (handler, event_id, epoch), count in facts.effect_counts.items():
        if count > 1:
            surplus += count - 1
            if not facts.admitted.double(handler, event_id):
                yield f"{handler} had {count} effects of {event_id}" + (f" in run {epoch}" if epoch else "")
    limit = facts.admitted.max_doubles
    if limit is not None and surplus > limit:
        yield f"{surplus} surplus effects in all; {limit} are admitted"


def disordered(facts: Facts) -> Iterator[str]:
    """I3: the effects of a key in log order; the page's head says what a redelivery may do."""
    limit = facts.admitted.rewinds_per_lane
    for (handler, place, key), rows in facts.lanes.items():
        highest = -1
        seen: set[str] = set()
        for offset, effect in rows:
            first = effect.event_id not in seen
            seen.add(effect.event_id)
            if offset < highest and (first or not facts.admitted.double(handler, effect.event_id)):
                what = "first effect" if first else "repeated effect"
                yield f"{handler}: key {key!r} of {place}: {what} of {effect.event_id} @{offset} came after that of @{highest}"
            highest = max(highest, offset)
        if limit is not None and facts.rewinds[handler, place, key] > limit:
            yield f"{handler}: key {key!r} of {place} went back {facts.rewinds[handler, place, key]} times; {limit} are admitted"


def committed_wrongly(facts: Facts) -> Iterator[str]:
    """I4: no commit beyond an event that was not finished when the commit was seen, and none that goes back."""
    finished: dict[TopicPartition, list[tuple[int, float, Produced]]] = defaultdict(list)
    for event in facts.written:
        finished_at_s = max((facts.finished_at_s(event, handler) for handler in facts.handlers_of(event.topic)), default=-inf)
        finished[event.place].append((event.offset, finished_at_s, event))
    latest = {place: list(accumulate(sorted(rows, key=lambda row: row[0]), _later)) for place, rows in finished.items()}
    highest: dict[TopicPartition, int] = {}
    for commit in facts.history.commits:
        before = highest.get(commit.partition, -1)
        if commit.offset < before and commit.partition not in facts.admitted.resets:
            yield f"{commit.partition}: committed {commit.offset} after {before}"
        highest[commit.partition] = max(before, commit.offset)
        rows = latest.get(commit.partition, [])
        below = bisect_left(rows, commit.offset, key=lambda row: row[0])
        if below and rows[below - 1][1] > commit.at_s:
            _, finished_at_s, event = rows[below - 1]
            when = "never" if finished_at_s == inf else f"{finished_at_s - commit.at_s:.3f} s later"
            yield f"{commit.partition}: {commit.offset} was committed, and {event} was finished {when}"


def altered_letters(facts: Facts) -> Iterator[str]:
    """I5: a letter has its source's key, value and headers, byte for byte; beside them only choreo-dlq-* headers."""
    sources = {(event.place, event.offset): (event.key, event.value, event.headers) for event in facts.written}
    for record in facts.history.log or ():
        sources[TopicPartition(record.topic, record.partition), record.offset] = (record.key, record.value, record.headers)
    for letter in facts.history.letters:
        source = sources.get((letter.source, letter.offset))
        where = f"the letter of {letter.source}@{letter.offset} for {letter.handler}"
        if source is None:
            yield f"{where} has no source"
            continue
        for part, was, became in zip(("key", "value", "headers"), source, _carried(letter), strict=True):
            same = _listed(was) == _listed(became) if part == "headers" else was == became
            if not same:
                yield f"{where}: {part} was {_shown(was)}, became {_shown(became)}"


def late(facts: Facts) -> Iterator[str]:
    """I7: everything caught up within the deadline after the last fault was healed."""
    recovery = facts.history.recovery
    assert recovery is not None
    if recovery.caught_up_at_s is None:
        yield f"not caught up {recovery.deadline_s:g} s after healing"
    elif recovery.caught_up_at_s - recovery.healed_at_s > recovery.deadline_s:
        yield f"caught up {recovery.caught_up_at_s - recovery.healed_at_s:.1f} s after healing; {recovery.deadline_s:g} s are admitted"


def unclean(facts: Facts) -> Iterator[str]:
    """I8: after a clean stop nothing was in flight, and nothing that was finished, at a known time, came again."""
    history = facts.history
    again = [(call.handler, call.event_id, call.began_s) for call in history.calls] or [
        (effect.handler, effect.event_id, effect.at_s) for effect in history.effects
    ]
    for stop in history.clean_stops:
        for handler, event_id, at_s in again:
            if at_s > stop.at_s and -inf < facts.settled_at_s.get((handler, event_id), inf) <= stop.at_s:
                yield f"{event_id} was finished by {handler} before a clean stop and came again {at_s - stop.at_s:.3f} s after it"
        for call in history.calls:
            if call.pid in stop.pids and (call.ended_s is None or call.ended_s > stop.at_s):
                yield f"{call.handler} was still at {call.event_id} when its process {call.pid} ended"


def wrong_sums(facts: Facts) -> Iterator[str]:
    """SUM: every running sum is the one before it plus the amount; amount and key are the event's."""
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for effect in facts.history.effects:
        expected = sums[effect.handler, effect.key] + effect.amount
        if effect.running_sum != expected:
            yield f"{effect.handler}: the sum of key {effect.key} was {effect.running_sum} after {effect.event_id}, not {expected}"
        sums[effect.handler, effect.key] = effect.running_sum
        for event in facts.places.get(effect.event_id, ())[:1]:
            if (effect.amount, effect.key) != (event.amount, _text(event.key)):
                yield f"{event}: {effect.handler} booked {effect.amount} for key {effect.key!r}, not {event.amount} for {_text(event.key)!r}"


def missing_from_log(facts: Facts) -> Iterator[str]:
    """LOG: every acknowledged event is in the log, where the broker said, with the bytes it was sent with."""
    log = {(record.topic, record.partition, record.offset): record for record in facts.history.log or ()}
    for event in facts.history.produced:
        if event.outcome == "ok":
            record = log.get((event.topic, event.partition, event.offset))
            if record is None or (record.key, record.value) != (event.key, event.value):
                yield f"{event} was acknowledged, and the log has {'nothing' if record is None else 'something else'} there"
        elif event.outcome == "fail" and event.event_id in facts.logged_ids:
            yield f"{event.event_id} failed for certain, and the log has it"


def phantoms(facts: Facts) -> Iterator[str]:
    """PHANTOM: every effect is of an event that was written, or may have been."""
    possible = {event.event_id for event in facts.history.produced if event.outcome != "fail"}
    for effect in facts.history.effects:
        if effect.event_id not in possible:
            yield f"{effect.handler} had an effect of {effect.event_id}, which nobody wrote"


PROMISES: dict[str, tuple[str, Callable[[Facts], Iterator[str]]]] = {
    "I1": ("no event unaccounted for", lost),
    "I2": ("one effect of each event", doubled),
    "I3": ("effects of a key in log order", disordered),
    "I4": ("commits behind unfinished, never back", committed_wrongly),
    "I5": ("letters byte for byte", altered_letters),
    "I7": ("caught up in time", late),
    "I8": ("clean after a clean stop", unclean),
    "SUM": ("running sums add up", wrong_sums),
    "LOG": ("acknowledged means written", missing_from_log),
    "PHANTOM": ("no effect without an event", phantoms),
}


def _unchecked(history: History) -> frozenset[str]:
    absent = {
        "I4": not history.commits,
        "I5": not history.letters,
        "I7": history.recovery is None,
        "I8": not history.clean_stops,
        "LOG": history.log is None,
    }
    return frozenset(name for name, missing in absent.items() if missing)


def _counts(facts: Facts) -> dict[str, int]:
    history = facts.history
    outcomes = Counter(event.outcome for event in history.produced)
    calls = Counter((call.handler, call.event_id) for call in history.calls)
    doubles = {key: count - 1 for key, count in facts.effect_counts.items() if count > 1}
    return {
        "produced ok": outcomes["ok"],
        "produced fail": outcomes["fail"],
        "produced unknown": outcomes["unknown"],
        "effects": len(history.effects),
        "doubled": sum(doubles.values()),
        "doubled, admitted": sum(count for (handler, event, _), count in doubles.items() if facts.admitted.double(handler, event)),
        "lanes": len(facts.lanes),
        "rewinds of lanes": sum(facts.rewinds.values()),
        "rewinds of the worst lane": max(facts.rewinds.values(), default=0),
        "calls": len(history.calls),
        "calls that came again": sum(calls.values()) - len(calls),
        "letters": len(history.letters),
        "letters, copies collapsed": len({(letter.handler, letter.event_id, letter.source, letter.offset) for letter in history.letters}),
        "skips": len(history.skips),
        "commits seen": len(history.commits),
    }


def _later(a: tuple[int, float, Produced], b: tuple[int, float, Produced]) -> tuple[int, float, Produced]:
    """Of everything up to b's offset, what was finished last."""
    return (b[0], b[1], b[2]) if b[1] >= a[1] else (b[0], a[1], a[2])


def _carried(letter: Letter) -> tuple[bytes | None, bytes | None, Headers]:
    return letter.key, letter.value, [header for header in letter.headers if not header[0].startswith(DLQ_PREFIX)]


def _listed(headers: object) -> list[tuple[str, bytes | None]]:
    assert isinstance(headers, Sequence)
    return [(name, value) for name, value in headers]


def _shown(part: object) -> str:
    text = repr(part)
    return text if len(text) <= 200 else f"{text[:200]}… ({len(text)} characters)"


def _text(key: bytes | None) -> str:
    return "" if key is None else key.decode(errors="backslashreplace")
