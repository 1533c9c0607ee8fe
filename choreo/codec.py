"""How do three fields become bytes, and bytes a typed event? The port, and JSON by msgspec (payloads of pydantic by pydantic)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Protocol

import msgspec
import orjson

from choreo.envelope import JSON, Envelope
from choreo.errors import ConfigurationError, DecodeError, PermanentError, printable, told
from choreo.events import EventLike

Decode = Callable[[bytes], Envelope[Any]]

MAX_SHOWN_CHARS = 40
MAX_SEARCHED_BYTES = 256 * 1024
"""A value over this is not read again to say more about what is wrong with it."""
_QUOTING = ("invalid enum value ", "invalid value ", "object contains unknown field ")
MAX_LISTED_PROBLEMS = 1000
"""pydantic notes a problem for each bad item (12 MB of them: 4 GB to list); over this they are counted, not listed."""


class Codec(Protocol):
    """One way to write an event. Functions it returns may be called from any thread."""

    content_type: str

    def encode(self, event_type: str, timestamp: datetime | None, payload: EventLike) -> bytes:
        """The value; `timestamp` None is now. Raises PermanentError for what can't be written (NaN, a lone surrogate)."""

    def decoder(self, cls: type[EventLike]) -> Decode:
        """A function from a value to an envelope with a `cls` in it; raises DecodeError. It doesn't look whose type it is.

        Raises ConfigurationError when `cls` has a field that can't be read. Whatever the bytes are, and whatever the
        class's own validators raise: the function raises DecodeError and nothing else (but MemoryError).
        """

    def event_type(self, value: bytes) -> str:
        """The type a value says it has, its payload unread. Raises DecodeError."""


class JsonCodec:
    """``{"type": ..., "timestamp": ..., "payload": {...}}``. Unknown fields are ignored; of a repeated name the last counts.

    Integers are written and read exactly, also over 64 bits; other readers make floats of those. Time and memory are linear in
    the value.
    """

    content_type = JSON

    def __init__(self) -> None:
        self._head = msgspec.json.Decoder(_TypeOnly)
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode

    def encode(self, event_type: str, timestamp: datetime | None, payload: EventLike) -> bytes:
        try:
            at = now_text() if timestamp is None else format_timestamp(timestamp)
            fields = payload if payload.__event__.kind != "pydantic" else payload.model_dump(mode="json", by_alias=True)  # type: ignore[attr-defined]
            value = self._encode({"type": event_type, "timestamp": at, "payload": fields})
            if b"null" in value:
                _refuse_not_finite(_builtins(payload))
            return value
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PermanentError(f"{event_type}: can't be written as JSON: {printable(str(error), 400)}") from error

    def decoder(self, cls: type[EventLike]) -> Decode:
        kind = cls.__event__.kind
        if kind == "any":
            return self._decode_any(cls)
        if kind == "pydantic":
            return self._decode_pydantic(cls)
        event_type = cls.__event__.type
        try:
            decode = msgspec.json.Decoder(Envelope[cls]).decode  # type: ignore[valid-type]
        except (TypeError, NameError) as error:
            raise ConfigurationError(f"event {cls.__name__}: it can't be read from JSON: {error}") from error

        def read(value: bytes) -> Envelope[Any]:
            try:
                envelope = decode(value)
            except MemoryError:
                raise
            except Exception as error:  # a class's own __post_init__ may raise anything
                raise explain(error, value, event_type) from error
            return envelope if envelope.timestamp.tzinfo is UTC else _in_utc(envelope, event_type)

        return read

    def event_type(self, value: bytes) -> str:
        try:
            return self._head.decode(value).type
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise explain(error, value, None) from error

    def _decode_any(self, cls: type[EventLike]) -> Decode:
        # By msgspec and not orjson, which makes floats of integers over 64 bits.
        decode = msgspec.json.Decoder(Envelope[dict[str, object]]).decode

        def read(value: bytes) -> Envelope[Any]:
            try:
                envelope = decode(value)
            except (msgspec.DecodeError, RecursionError, ValueError) as error:
                raise explain(error, value, None) from error
            event = Envelope(envelope.type, envelope.timestamp, cls(fields=envelope.payload))  # type: ignore[call-arg]
            return event if event.timestamp.tzinfo is UTC else _in_utc(event, event.type)

        return read

    def _decode_pydantic(self, cls: Any) -> Decode:
        head = msgspec.json.Decoder(Envelope[msgspec.Raw]).decode
        event_type = cls.__event__.type

        def read(value: bytes) -> Envelope[Any]:
            try:
                envelope = head(value)
            except (msgspec.DecodeError, RecursionError, ValueError) as error:
                raise explain(error, value, event_type) from error
            try:
                event = Envelope(envelope.type, envelope.timestamp, cls.model_validate_json(bytes(envelope.payload)))
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - a validator may raise anything; it is raised below, as a DecodeError
                problem = explain_pydantic(error, len(value), event_type)
            else:
                return event if event.timestamp.tzinfo is UTC else _in_utc(event, event_type)
            raise problem  # here, without its context: pydantic's error holds, and prints, every item of the payload

        return read


class _TypeOnly(msgspec.Struct, frozen=True):
    type: str


def format_timestamp(at: datetime) -> str:
    """RFC 3339, UTC, microseconds: ``2026-11-22T22:37:07.000000Z``. Raises ValueError for a naive time."""
    if at.tzinfo is not UTC:
        if at.utcoffset() is None:
            raise ValueError(f"timestamp {at.isoformat()} has no time zone; use datetime.now(UTC)")
        at = at.astimezone(UTC)
    # Without its zone: asking an aware time for its offset costs more than all the rest of writing an event.
    return at.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def now_text() -> str:
    """Now, as `format_timestamp` writes it. A datetime costs eight times as much, and this is done for every emitted event."""
    global _this_second
    began_ns, text = _this_second  # read once: another thread may be a second further
    now_ns = time.time_ns()
    if not 0 <= now_ns - began_ns < 1_000_000_000:
        second = now_ns // 1_000_000_000
        began_ns, text = _this_second = (second * 1_000_000_000, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second)))
    return f"{text}{(now_ns - began_ns) // 1000:06d}Z"


_this_second = (-1_000_000_000, "")


def _in_utc(event: Envelope[Any], event_type: str) -> Envelope[Any]:
    # RFC 3339 allows any offset; handlers are promised UTC.
    try:
        return Envelope(event.type, event.timestamp.astimezone(UTC), event.payload)
    except OverflowError as error:
        detail = f"expected a time from year 1 to 9999 in UTC, got {event.timestamp.isoformat()}"
        raise DecodeError("envelope", detail, path="timestamp", event_type=event_type) from error


def _builtins(payload: Any) -> Any:
    if payload.__event__.kind == "pydantic":
        return payload.model_dump()  # not mode="json", which has made null of NaN already
    return msgspec.to_builtins(payload, str_keys=True, enc_hook=_plain)


def _plain(value: object) -> object:
    # A subclass of str or int is written as what it is.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    raise TypeError(f"{type(value).__name__} can't be written; use str, int, float, bool, None, lists, maps, dates, Decimal, UUID or bytes")


def _refuse_not_finite(found: Any) -> None:
    # msgspec and pydantic write NaN and the infinities as null: an amount would be gone without a word.
    if isinstance(found, float) and not isfinite(found):
        raise ValueError(f"{found} is no JSON number")
    for part in found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple | set | frozenset) else ():
        _refuse_not_finite(part)


# ---- saying what is wrong -------------------------------------------------------------------------------------------


def explain(error: Exception, value: bytes, event_type: str | None) -> DecodeError:
    """A decoder's complaint as field, expectation and what came instead."""
    text = told(error)
    if isinstance(error, RecursionError):
        return DecodeError("value", "nested too deep", event_type=event_type)
    if isinstance(error, msgspec.ValidationError):
        return _explain_mismatch(text, value, event_type)
    if isinstance(error, msgspec.DecodeError | UnicodeDecodeError):
        return DecodeError("value", _why_not_json(text, value), event_type=event_type)
    return DecodeError("payload", f"refused by its class: {type(error).__name__}: {text}", path="payload", event_type=event_type)


def _explain_mismatch(text: str, value: bytes, event_type: str | None) -> DecodeError:
    detail, separator, where = text.rpartition(" - at `")
    if not separator:
        detail, where = text, "$"
    # The place of a map's key reads: key` in `$.payload.prices
    of_key, _, place = where.rpartition("` in `")
    path = place.removesuffix("`").removeprefix("$").removeprefix(".")
    reason = "payload" if path.startswith("payload") else "envelope"
    detail = _lower_first(detail).replace("`", "") or "refused by its class"
    missing = detail.removeprefix("object missing required field ")
    if missing != detail:
        return DecodeError(reason, f"missing required field {missing}", path=path, event_type=event_type)
    if of_key:
        return DecodeError(reason, f"key: {detail}", path=path, event_type=event_type)
    for prefix in _QUOTING:
        if detail.startswith(prefix):
            return DecodeError(reason, prefix + _cut(detail.removeprefix(prefix)), path=path, event_type=event_type)
    expected, got, kind = detail.rpartition(", got ")
    known_kind = kind if got and expected.startswith("expected ") else None
    found = _find(value, path, known_kind)
    if found is not None and expected == f"expected {_kind_of(found[1]).split(' ')[0]}":
        found = None  # of a repeated name only the last is found, and an earlier one was refused
    if found is not None and (known_kind or not isinstance(found[1], dict)):
        path, what = found
        detail = f"{expected if known_kind else detail}, got {_kind_of(what)}"
    return DecodeError(reason, detail, path=path, event_type=event_type)


def _why_not_json(text: str, value: bytes) -> str:
    if not value:
        return "empty; a tombstone is null, not empty"
    if text == "Input data was truncated" and len(value) <= MAX_SEARCHED_BYTES:
        # msgspec says so of half a surrogate pair at the end of a string, too.
        try:
            orjson.loads(value)
        except ValueError as error:
            text = str(error)
    return f"not JSON: {text}"


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]


def _find(value: bytes, path: str, kind: str | None) -> tuple[str, object] | None:
    """The place that `path` means, and what is there; None unless it is one place.

    In ``payload.prices[...]`` msgspec does not say which key of the map: it is the one that holds a `kind`, if there is one.
    """
    if len(value) > MAX_SEARCHED_BYTES:
        return None
    try:
        places: list[tuple[str, Any]] = [("", msgspec.json.decode(value))]
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    for part in re.findall(r"\[\.\.\.\]|\[\d+\]|[^.\[\]]+", path):
        if part == "[...]":
            places = [(f"{at}[{_show(key)}]", inner) for at, found in places if isinstance(found, dict) for key, inner in found.items()]
        elif part[0] == "[":
            nth = int(part[1:-1])
            places = [(at + part, found[nth]) for at, found in places if isinstance(found, list) and nth < len(found)]
        else:
            places = [(f"{at}.{part}", found[part]) for at, found in places if isinstance(found, dict) and part in found]
    if len(places) > 1:
        places = [(at, found) for at, found in places if _kind_of(found).split(" ")[0] == kind]
    return (places[0][0].removeprefix("."), places[0][1]) if len(places) == 1 else None


def explain_pydantic(error: Exception, value_bytes: int, event_type: str) -> DecodeError:
    """The same for pydantic: its first problem."""
    count = getattr(error, "error_count", lambda: 0)()
    if not count:
        return explain(error, b"", event_type)
    if count > MAX_LISTED_PROBLEMS:
        return DecodeError("payload", f"{count} fields and items are not as declared", path="payload", event_type=event_type)
    listed = error.errors(include_url=False, include_context=False, include_input=value_bytes <= MAX_SEARCHED_BYTES)  # type: ignore[attr-defined]
    first = listed[0]
    if first["type"] == "json_invalid":
        return DecodeError("value", f"not JSON: {first['msg'].removeprefix('Invalid JSON: ')}", event_type=event_type)
    if first["type"] == "missing":
        *place, name = first["loc"]
        return DecodeError("payload", f"missing required field {name}", path=_path(place), event_type=event_type)
    message = first["msg"].replace("Input should be ", "expected ", 1)
    got = f", got {_kind_of(first['input'])}" if "input" in first else ""
    return DecodeError("payload", f"{_lower_first(message)}{got}", path=_path(first["loc"]), event_type=event_type)


def _path(parts: Iterable[object]) -> str:
    return "payload" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)


def _kind_of(found: object) -> str:
    """What came, in msgspec's words: ``str '12.50'``, ``null``, ``array of 3``, ``object``."""
    if found is None:
        return "null"
    if isinstance(found, dict | list):
        return "object" if isinstance(found, dict) else f"array of {len(found)}"
    return f"{type(found).__name__} {_show(found)}"


def _show(found: object) -> str:
    if isinstance(found, str):
        return _cut(repr(found[: MAX_SHOWN_CHARS + 1]))  # cut first: the repr of a long text is longer still
    if isinstance(found, int) and found.bit_length() > 256:
        return f"of {found.bit_length()} bits"  # one of 5,000 digits has no repr
    return _cut(repr(found))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
