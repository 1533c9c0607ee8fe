"""What was received above a committed offset, and is not finished? The text beside the offset in Kafka, and back.

A commit says where to read on; what stands above it may be finished or not. The map lists the *unfinished* offsets up to
the reach (one past the last received), so gaps cost nothing and the in-flight bound bounds it. With them go, for each
handler, whether it is through and how many attempts it has begun, and what `core/guard.py` counts about crashes.

It is ``choreo1:`` and base64 of: CRC-32 of the rest (4 bytes, big-endian), topic id (16 bytes), then unsigned LEB128 numbers:
offset it was committed with, flags (1: of the entries only those that ended processes), unclean ends, watched - offset,
reach - offset (not with flag 1), number of handlers, each handler's CRC-32 (4 bytes), number of entries, the entries. An entry
is ``2 * (its offset - the one before - 1)`` where nothing is known, else that plus 1, the handlers of which something is known
as a bit mask over the table, and for each of them 0: it is through, ``2 * attempts + 1``, or ``2 * attempts + 2`` and how many
of them ended the process. Golden bytes: tests/golden/test_offset_map_bytes.py.

A handler that an entry doesn't name may have begun nothing, or may not have been meant: which events are whose changes with
each release. So it is never taken for finished.

A map counts only beside the offset and for the topic that it was written for: a foreign tool leaves none, a mirror translates
offsets, a topic may be deleted and made again under its name.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import TypeAlias
from zlib import crc32

import msgspec

from choreo.errors import StateError

PREFIX = "choreo1:"
MAX_CHARS = 4095
"""What a broker takes that was not told otherwise: ``offset.metadata.max.bytes`` is 4096, and that many are refused (Kafka 4.3.1)."""
MAX_ENTRIES = 100_000
NO_TOPIC_ID = bytes(16)
_PER_FAMILY = "choreo"


class Begun(msgspec.Struct, frozen=True):
    """Attempts of one handler at one event that have ended. `fatal`: attempts with which the process ended."""

    attempts: int = 0
    fatal: int = 0


Entry: TypeAlias = Mapping[int, Begun | None] | None
"""What is known of an event by handler's number: begun, or (None) finished. None: nothing."""


class OffsetMap(msgspec.Struct, frozen=True):
    """What stands beside one committed offset.

    `reach`: one past the last received offset; what is below it and not in `unfinished` is finished. None: entries were
    left out, but those with `fatal`. `unclean`: runs that ended without an orderly end, this one counted until it has one. `watched`: below it
    events may have begun. `handlers`: those the entries speak of.
    """

    topic_id: bytes
    offset: int
    unclean: int
    watched: int
    reach: int | None
    handlers: tuple[int, ...] = ()
    unfinished: Mapping[int, Entry] = {}


class Ignored(msgspec.Struct, frozen=True):
    """A text that doesn't count, and why. `other_topic`: neither does the offset, which is one of a topic that is gone."""

    why: str
    other_topic: bool = False


def handler_number(identity: str) -> int:
    """What a handler is called in a map: the CRC-32 of the name it is stored under."""
    return crc32(identity.encode())


# ---- writing --------------------------------------------------------------------------------------------------------


def write_map(found: OffsetMap, *, limit: int = MAX_CHARS) -> str:
    """The text; without entries where it would be longer than `limit`."""
    text = _text(found)
    return text if len(text) <= limit else _text(without_entries(found))


def without_entries(found: OffsetMap) -> OffsetMap:
    """The same with less to say: what it knows of crashes. All that is not committed will come again."""
    fatal = {at: entry for at, entry in found.unfinished.items() if entry and any(begun and begun.fatal for begun in entry.values())}
    return OffsetMap(found.topic_id, found.offset, found.unclean, found.watched, None, found.handlers if fatal else (), fatal)


def _text(found: OffsetMap) -> str:
    body = bytearray(found.topic_id)
    _number(body, found.offset)
    _number(body, 0 if found.reach is not None else 1)
    _number(body, found.unclean)
    _number(body, found.watched - found.offset)
    if found.reach is not None:
        _number(body, found.reach - found.offset)
    _number(body, len(found.handlers))
    for handler in found.handlers:
        body += handler.to_bytes(4, "big")
    _number(body, len(found.unfinished))
    _entries(body, found)
    return PREFIX + binascii.b2a_base64(crc32(body).to_bytes(4, "big") + body, newline=False).decode()


def _entries(body: bytearray, found: OffsetMap) -> None:
    before = found.offset - 1
    for offset, entry in found.unfinished.items():
        step = 2 * (offset - before - 1)
        before = offset
        if entry is None:
            _number(body, step)
            continue
        _number(body, step + 1)
        _number(body, sum(1 << bit for bit, handler in enumerate(found.handlers) if handler in entry))
        for handler in found.handlers:
            if handler in entry:
                _known(body, entry[handler])


def _known(body: bytearray, begun: Begun | None) -> None:
    if begun is None:
        _number(body, 0)
    elif not begun.fatal:
        _number(body, 2 * begun.attempts + 1)
    else:
        _number(body, 2 * begun.attempts + 2)
        _number(body, begun.fatal)


def _number(body: bytearray, number: int) -> None:
    if number < 0:
        raise StateError("an offset map would list what is below its offset, or out of order")
    while number > 0x7F:
        body.append(number & 0x7F | 0x80)
        number >>= 7
    body.append(number)


# ---- reading --------------------------------------------------------------------------------------------------------


def read_map(text: str | None, *, topic_id: bytes, offset: int) -> OffsetMap | Ignored | None:
    """The map beside a committed `offset` of the topic that has the id `topic_id` now; None where there is no text.

    Whatever the text is: nothing is raised, and nothing is believed that isn't whole and meant for this place.
    """
    if not text:
        return None
    if not text.startswith(PREFIX):
        return Ignored("a later choreo wrote it" if text.startswith(_PER_FAMILY) else "another tool wrote it")
    try:
        raw = binascii.a2b_base64(text[len(PREFIX) :], strict_mode=True)
    except ValueError:
        return Ignored("it is damaged")
    if len(raw) < 4 + 16 or crc32(raw[4:]) != int.from_bytes(raw[:4], "big"):
        return Ignored("it is damaged")
    try:
        found = _read_body(raw[4:])
    except (_ImpossibleError, IndexError):
        return Ignored("it says what can't be")
    if found.topic_id == NO_TOPIC_ID or topic_id == NO_TOPIC_ID:
        return Ignored("nobody knows whether it is about this topic or one before it of the same name")
    if found.topic_id != topic_id:
        return Ignored("it is about a topic of the same name that was deleted", other_topic=True)
    if found.offset != offset:
        return Ignored(f"it was written beside offset {found.offset}, not {offset}: a tool moved or translated the offset")
    return found


class _ImpossibleError(Exception):
    """Whole, but no map."""


class _Numbers:
    def __init__(self, raw: bytes, at: int) -> None:
        self.raw = raw
        self.at = at

    def next(self, most: int = 1 << 63, *, bits: int = 63) -> int:
        number = shift = 0
        while True:
            byte = self.raw[self.at]
            self.at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > bits:
                raise _ImpossibleError
        if bits == 63 and number > most:
            raise _ImpossibleError
        return number

    def bytes(self, count: int) -> bytes:
        found = self.raw[self.at : self.at + count]
        if len(found) < count:
            raise _ImpossibleError
        self.at += count
        return found


def _read_body(raw: bytes) -> OffsetMap:
    numbers = _Numbers(raw, 16)
    offset = numbers.next()
    flags = numbers.next(1)
    unclean = numbers.next(1_000_000)
    watched = offset + numbers.next()
    reach = None if flags else offset + numbers.next()
    handlers = tuple(int.from_bytes(numbers.bytes(4), "big") for _ in range(numbers.next(1_000)))
    unfinished: dict[int, Entry] = {}
    before = offset - 1
    for _ in range(numbers.next(MAX_ENTRIES)):
        step = numbers.next()
        before += step // 2 + 1
        if reach is not None and before >= reach:
            raise _ImpossibleError
        unfinished[before] = _read_entry(numbers, handlers) if step & 1 else None
    _ends(numbers)
    return OffsetMap(raw[:16], offset, unclean, watched, reach, handlers, unfinished)


def _read_entry(numbers: _Numbers, handlers: tuple[int, ...]) -> dict[int, Begun | None]:
    mask = numbers.next(bits=max(63, len(handlers)))
    if mask >> len(handlers):
        raise _ImpossibleError
    entry: dict[int, Begun | None] = {}
    for bit, handler in enumerate(handlers):
        if mask >> bit & 1:
            packed = numbers.next(20_000)
            if packed == 0:
                entry[handler] = None
            else:
                attempts, fatal = divmod(packed - 1, 2)
                entry[handler] = Begun(attempts, numbers.next(10_000) if fatal else 0)
    return entry


def _ends(numbers: _Numbers) -> None:
    if numbers.at != len(numbers.raw):
        raise _ImpossibleError


# ---- asking ---------------------------------------------------------------------------------------------------------


def left_of(found: OffsetMap, offset: int, handler: int) -> Begun | None:
    """What one handler has begun of the event at `offset`; None when it is through with it."""
    entry = found.unfinished.get(offset, _NOT_LISTED)
    if entry is _NOT_LISTED:
        return None if found.reach is not None and offset < found.reach else _NOTHING
    return _NOTHING if entry is None else entry.get(handler, _NOTHING)


def speaks_of(found: OffsetMap) -> int:
    """One past the last offset that it says anything of."""
    return found.reach if found.reach is not None else max(found.unfinished, default=found.offset - 1) + 1


_NOT_LISTED: Entry = {}
_NOTHING = Begun()
