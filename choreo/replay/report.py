"""What died, grouped by how? Pure: letters in, groups of one failure out, with their counts over time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from choreo.letter import UNREADABLE, LetterState

BUCKETS = 8
LEAST_GROUP_CHARS = 4
_FIX = "; fix the producer "
"""Before the producer's name in a letter's message, see runtime/dead_letters.py::describe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Letters of one failure: the same error at the same place. `name` is as much of `fingerprint` as tells it apart here.

    `trend` counts their last failures in BUCKETS equal spans of the report's window, the newest last. `example` is the first
    letter that failed itself.
    """

    name: str
    fingerprint: str
    handlers: tuple[str, ...]
    failed: int
    parked: int
    first: datetime
    last: datetime
    trend: tuple[int, ...]
    versions: tuple[str, ...]
    example: LetterState


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Open letters by group, the largest first. `window` reaches from the oldest failure to now."""

    groups: tuple[Group, ...]
    letters: int
    parked: int
    keys: int
    oldest: datetime | None
    window: timedelta


def report(letters: Sequence[LetterState], now: datetime) -> Report:
    """Groups the letters; `letters` in source order."""
    oldest = min((letter.first_failed_at for letter in letters), default=None)
    window = timedelta(0) if oldest is None else max(now - oldest, timedelta(seconds=1))
    by_fingerprint: dict[str, list[LetterState]] = {}
    for letter in letters:
        by_fingerprint.setdefault(letter.fingerprint, []).append(letter)
    names = short_names(list(by_fingerprint))
    groups = [_group(names[fingerprint], found, now - window, window) for fingerprint, found in by_fingerprint.items()]
    return Report(
        groups=tuple(sorted(groups, key=lambda group: (-group.failed - group.parked, group.first))),
        letters=len(letters),
        parked=sum(letter.kind == "parked" for letter in letters),
        keys=len({(letter.origin.topic, letter.key) for letter in letters if letter.key is not None}),
        oldest=oldest,
        window=window,
    )


def _group(name: str, letters: Sequence[LetterState], since: datetime, window: timedelta) -> Group:
    parked = sum(letter.kind == "parked" for letter in letters)
    return Group(
        name=name,
        fingerprint=letters[0].fingerprint,
        handlers=tuple(handler for handler, _ in Counter(letter.handler for letter in letters).most_common()),
        failed=len(letters) - parked,
        parked=parked,
        first=min(letter.first_failed_at for letter in letters),
        last=max(letter.last_failed_at for letter in letters),
        trend=trend([letter.last_failed_at for letter in letters], since, window),
        versions=tuple(sorted({letter.version for letter in letters if letter.version})),
        example=next((letter for letter in letters if letter.kind != "parked"), letters[0]),
    )


def trend(times: Sequence[datetime], since: datetime, window: timedelta) -> tuple[int, ...]:
    """How many fall into each of BUCKETS equal spans; what lies outside counts in the first or the last."""
    counts = [0] * BUCKETS
    for at in times:
        counts[max(0, min(BUCKETS - 1, int((at - since) / window * BUCKETS)))] += 1
    return tuple(counts)


def short_names(fingerprints: Sequence[str]) -> dict[str, str]:
    """For each fingerprint its shortest beginning, from LEAST_GROUP_CHARS on, that no other has."""
    names: dict[str, str] = {}
    for fingerprint in fingerprints:
        others = [other for other in fingerprints if other != fingerprint]
        chars = LEAST_GROUP_CHARS
        while chars < len(fingerprint) and any(other.startswith(fingerprint[:chars]) for other in others):
            chars += 1
        names[fingerprint] = fingerprint[:chars]
    return names


def what_failed(letter: LetterState, stack: str = "") -> str:
    """``ReadTimeout gateway.py:41: timed out``; the place comes from the letter's `stack`, where there is one."""
    message = letter.message.removeprefix(f"{letter.origin}: ")
    if letter.kind == "undecodable":
        return message.rpartition(_FIX)[0] or message
    place = innermost_frame(stack)
    head = f"{letter.error_type} {place}" if place else letter.error_type
    return f"{head}: {message}" if message and message != letter.error_type else head


def producer(letter: LetterState) -> str:
    """Who sent what can't be read, as the letter says it; empty where it doesn't."""
    return letter.message.rpartition(_FIX)[2].removesuffix(", then replay") if _FIX in letter.message else ""


def innermost_frame(stack: str) -> str:
    """``gateway.py:41``: the last frame of a stack outside of installed packages and of choreo's runtime; empty for none."""
    for line in reversed(stack.splitlines()):
        file, separator, rest = line.strip().removeprefix('File "').partition('", line ')
        if separator and "site-packages" not in file and "/choreo/runtime/" not in file:
            return f"{file.replace(chr(92), '/').rpartition('/')[2]}:{rest.partition(',')[0]}"
    return ""


def shown_handler(letter: LetterState) -> str:
    """The handler's name; ``(decode)`` where the event's type could not be read."""
    return "(decode)" if letter.handler == UNREADABLE else letter.handler
