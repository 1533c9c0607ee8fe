"""How do three fields become bytes, and bytes a typed event? The port, and JSON: written by orjson, read by msgspec."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Protocol

import msgspec
import orjson

from choreo.envelope import JSON, Envelope
from choreo.errors import DecodeError, PermanentError
from choreo.events import EventLike

Decode = Callable[[bytes], Envelope[Any]]

MAX_SHOWN_CHARS = 40


class Head(msgspec.Struct, frozen=True):
    """The envelope with its payload unread."""

    type: str
    timestamp: datetime
    payload: msgspec.Raw


class Codec(Protocol):
    """One way to write an event. Functions it returns may be called from any thread."""

    content_type: str

    def encode(self, event_type: str, timestamp: datetime, payload: EventLike) -> bytes:
        """The value. Raises PermanentError for what can't be written (a 70-bit integer, NaN)."""

    def decoder(self, cls: type[EventLike]) -> Decode:
        """A function from a value to an envelope with a `cls` in it; raises DecodeError. It doesn't look whose type it is."""

    def event_type(self, value: bytes) -> str:
        """The type a value says it has, its payload unread. Raises DecodeError."""


class JsonCodec:
    """``{"type": ..., "timestamp": ..., "payload": {...}}``. Unknown fields are ignored; of a repeated name the last counts."""

    content_type = JSON

    def __init__(self) -> None:
        self._head = msgspec.json.Decoder(_TypeOnly)

    def encode(self, event_type: str, timestamp: datetime, payload: EventLike) -> bytes:
        try:
            fields = _builtins(payload)
            value = orjson.dumps({"type": event_type, "timestamp": format_timestamp(timestamp), "payload": fields})
            if b"null" in value:
                _refuse_not_finite(fields)
            return value
        except (TypeError, ValueError, RecursionError) as error:
            raise PermanentError(f"{event_type}: can't be written as JSON: {error}") from error

    def decoder(self, cls: type[EventLike]) -> Decode:
        kind = cls.__event__.kind
        if kind == "any":
            return self._decode_any(cls)
        if kind == "pydantic":
            return self._decode_pydantic(cls)
        decode = msgspec.json.Decoder(Envelope[cls]).decode  # type: ignore[valid-type]
        event_type = cls.__event__.type

        def read(value: bytes) -> Envelope[Any]:
            try:
                return decode(value)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
                raise explain(error, value, event_type) from error

        return read

    def event_type(self, value: bytes) -> str:
        try:
            return self._head.decode(value).type
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
            raise explain(error, value, None) from error

    def _decode_any(self, cls: type[EventLike]) -> Decode:
        head = msgspec.json.Decoder(Envelope[msgspec.Raw]).decode

        def read(value: bytes) -> Envelope[Any]:
            try:
                envelope = head(value)
                fields = orjson.loads(bytes(envelope.payload))
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
                raise explain(error, value, None) from error
            if not isinstance(fields, dict):
                raise DecodeError("payload", f"expected object, got {type(fields).__name__}", path="payload", event_type=envelope.type)
            return Envelope(envelope.type, envelope.timestamp, cls(fields=fields))  # type: ignore[call-arg]

        return read

    def _decode_pydantic(self, cls: Any) -> Decode:
        head = msgspec.json.Decoder(Envelope[msgspec.Raw]).decode
        event_type = cls.__event__.type

        def read(value: bytes) -> Envelope[Any]:
            try:
                envelope = head(value)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
                raise explain(error, value, event_type) from error
            try:
                return Envelope(envelope.type, envelope.timestamp, cls.model_validate_json(bytes(envelope.payload)))
            except ValueError as error:
                first = error.errors()[0] if hasattr(error, "errors") else {"loc": (), "msg": str(error)}
                path = ".".join(["payload", *(str(part) for part in first["loc"])])
                shown = f"{first['msg']}, got {_show(first.get('input'))}"
                raise DecodeError("payload", shown, path=path, event_type=event_type) from error

        return read


class _TypeOnly(msgspec.Struct, frozen=True):
    type: str


def format_timestamp(at: datetime) -> str:
    """RFC 3339, UTC, microseconds: ``2026-11-22T22:37:07.000000Z``. Raises ValueError for a naive time."""
    if at.tzinfo is not UTC:
        if at.tzinfo is None:
            raise ValueError(f"timestamp {at.isoformat()} has no time zone; use datetime.now(UTC)")
        at = at.astimezone(UTC)
    return at.isoformat(timespec="microseconds")[:-6] + "Z"


def _builtins(payload: Any) -> Any:
    if hasattr(payload, "model_dump"):
        return payload.model_dump(mode="json", by_alias=True)
    return msgspec.to_builtins(payload)


def _refuse_not_finite(found: Any) -> None:
    # orjson writes NaN and the infinities as null: an amount would be gone without a word.
    if isinstance(found, float) and not isfinite(found):
        raise ValueError(f"{found} is no JSON number")
    for part in found.values() if isinstance(found, dict) else found if isinstance(found, list | tuple) else ():
        _refuse_not_finite(part)


def explain(error: Exception, value: bytes, event_type: str | None) -> DecodeError:
    """A decoder's complaint as field, expectation and what came instead."""
    text = str(error)
    if isinstance(error, RecursionError):
        return DecodeError("value", "nested too deep", event_type=event_type)
    if isinstance(error, UnicodeDecodeError) or not isinstance(error, msgspec.ValidationError):
        return DecodeError("value", f"not JSON: {text[:200]}" if value else "empty; a tombstone is null, not empty", event_type=event_type)
    detail, _, where = text.partition(" - at `")
    path = where.rstrip("`").removeprefix("$").removeprefix(".")
    detail = (detail[0].lower() + detail[1:]).replace("`", "")
    if ", got " in detail and path and "..." not in path:
        expected, _, got = detail.partition(", got ")
        detail = f"{expected.removesuffix('`')}, got {got}{_found(value, path)}"
    missing = detail.removeprefix("object missing required field ")
    if missing != detail:
        return DecodeError(_reason(path), f"missing required field {missing}", path=path, event_type=event_type)
    return DecodeError(_reason(path), detail, path=path, event_type=event_type)


def _reason(path: str) -> str:
    return "payload" if path.startswith("payload") else "envelope"


def _found(value: bytes, path: str) -> str:
    """`` '12.50'``: the value at a path such as ``payload.items[3].price``, shortened; nothing where it can't be found."""
    try:
        found = orjson.loads(value)
        for part in path.replace("[", ".").replace("]", "").split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return "" if isinstance(found, dict | list) or found is None else f" {_show(found)}"


def _show(found: object) -> str:
    text = repr(found)
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 1] + "…"
