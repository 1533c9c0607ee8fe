"""What is an event on the wire? Three fields, the ids beside them, and the context that ties events into a flow.

DESIGN section 3: the value has exactly `type`, `timestamp`, `payload`; everything else is a header of UTF-8 text.
Root ids are UUIDv7; the ids of emitted events are UUIDv5 of what caused them, so that a handler that runs again
emits the same ids. tests/golden/ holds the bytes; they are never regenerated to pass.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Generic
from urllib.parse import unquote

import msgspec
from typing_extensions import TypeVar

from choreo.record import Headers, Record

P = TypeVar("P", covariant=True)

ID = "choreo-id"
CAUSATION_ID = "choreo-causation-id"
CORRELATION_ID = "choreo-correlation-id"
SOURCE = "choreo-source"
VERSION = "choreo-version"
CONTENT_TYPE = "content-type"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
BAGGAGE = "baggage"

EVENT_HEADERS = frozenset({ID, CAUSATION_ID, CORRELATION_ID, SOURCE, VERSION, CONTENT_TYPE, TRACEPARENT, TRACESTATE, BAGGAGE})
CONTROL_PREFIX = "choreo-"
MAX_HEADER_CHARS = 8192
MAX_ID_CHARS = 128

JSON = "application/json"

# The namespace of every derived id. A constant of the wire format: changing it changes every child id there is.
_NAMESPACE = bytes.fromhex("6ba7b8129dad11d180b400c04fd430c8")
_PLAIN = "choreo.plain"
_DERIVED = "choreo.derived"


class Envelope(msgspec.Struct, Generic[P], frozen=True):
    """One event as a handler sees it: exactly three fields.

    `timestamp` is when it happened (aware, UTC), said by the producer; it is data and steers nothing.
    """

    type: str
    timestamp: Annotated[datetime, msgspec.Meta(tz=True)]
    payload: P


# ---- ids ------------------------------------------------------------------------------------------------------------


def new_id() -> str:
    """A new root id: UUIDv7 (RFC 9562), sortable by its millisecond."""
    millis = time.time_ns() // 1_000_000
    raw = bytearray(millis.to_bytes(6, "big") + os.urandom(10))
    raw[6] = (raw[6] & 0x0F) | 0x70
    raw[8] = (raw[8] & 0x3F) | 0x80
    return _dashed(raw.hex())


def derived_id(*parts: object) -> str:
    """The same parts, the same id: makes a repeated request one event. UUIDv5 over the parts' text.

    >>> derived_id("checkout", "cart-17") == derived_id("checkout", "cart-17")
    True
    """
    return _uuid5(_DERIVED, *(str(part) for part in parts))


def child_id(parent: str, service: str, handler: str, run: str, event_type: str, key: str, nth: str) -> str:
    """The id of an event emitted by `service`/`handler` while it handled `parent`.

    `run` is the run id of a forced replay, else ``""``; `nth` counts the events of that type and key in one call
    (``"0"``, ``"1"``, ...) or is the emit's `id_key`.
    """
    return _uuid5(parent, service, handler, run, event_type, key, nth)


def plain_id(record: Record) -> str:
    """The id of an event that came without one: from where it stands *and* what it holds.

    A topic that is deleted and made again, or mirrored, reuses offsets; the record's time and content tell them apart.
    """
    content = hashlib.sha256()
    for part in (record.key, record.value):
        content.update(b"\x00" if part is None else b"\x01" + len(part).to_bytes(8, "big") + part)
    return _uuid5(_PLAIN, record.topic, str(record.partition), str(record.offset), str(record.timestamp_ms), content.hexdigest())


def _uuid5(*parts: str) -> str:
    # Length-prefixed, so that ("a", "bc") and ("ab", "c") differ.
    name = "".join(f"{len(part)}:{part}" for part in parts)
    digest = hashlib.sha1(_NAMESPACE + name.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    variant = "89ab"[int(digest[16], 16) & 3]
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{variant}{digest[17:20]}-{digest[20:32]}"


def _dashed(text: str) -> str:
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:32]}"


# ---- headers --------------------------------------------------------------------------------------------------------


def header_text(value: bytes | None, limit: int = MAX_HEADER_CHARS) -> str | None:
    """The header as text; None when it is absent, empty, over `limit` bytes or not UTF-8 (an unreadable header is no header)."""
    if not value or len(value) > limit:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


class Wire(msgspec.Struct, frozen=True, gc=False):
    """The ids and context that came with a record; what was not asked for was not parsed."""

    event_id: str
    flow_id: str
    by_name: Mapping[str, bytes | None]

    @property
    def cause_id(self) -> str | None:
        return header_text(self.by_name.get(CAUSATION_ID), MAX_ID_CHARS)

    @property
    def source(self) -> str | None:
        return header_text(self.by_name.get(SOURCE))

    @property
    def traceparent(self) -> str | None:
        """The `traceparent` header where it is valid (W3C Trace Context, version 00), else None."""
        text = header_text(self.by_name.get(TRACEPARENT), 55)
        return text if text is not None and valid_traceparent(text) else None

    def text(self, name: str) -> str | None:
        return header_text(self.by_name.get(name))

    @property
    def version(self) -> int | None:
        """`choreo-version`; 1 when absent, None when it is not a number from 1 to 999,999."""
        raw = self.by_name.get(VERSION)
        if raw is None:
            return 1
        text = header_text(raw, 6)
        return int(text) if text is not None and text.isascii() and text.isdigit() and int(text) > 0 else None


def read_wire(record: Record) -> Wire:
    """The ids of a record. Without a usable `choreo-id` the event is plain: derived id, a flow of its own."""
    by_name = dict(record.headers)
    event_id = header_text(by_name.get(ID), MAX_ID_CHARS)
    if event_id is None:
        event_id = plain_id(record)
    return Wire(event_id, header_text(by_name.get(CORRELATION_ID), MAX_ID_CHARS) or event_id, by_name)


def text_headers(headers: Headers) -> dict[str, str]:
    """Every readable header as text, the last of a repeated name; what is not UTF-8 is left out."""
    return {name: text for name, value in headers if (text := header_text(value)) is not None}


# ---- W3C Trace Context and Baggage ----------------------------------------------------------------------------------


def valid_traceparent(text: str) -> bool:
    """Whether it is a version-00 traceparent with a non-zero trace id and span id."""
    if len(text) != 55 or not text.startswith("00-") or text[35] != "-" or text[52] != "-":
        return False
    trace, span, flags = text[3:35], text[36:52], text[53:55]
    lower_hex = all(c in "0123456789abcdef" for c in trace + span + flags)
    return lower_hex and trace.strip("0") != "" and span.strip("0") != ""


def root_trace_id(flow_id: str) -> str:
    """The trace id (32 hex digits) of a flow that starts without a trace: the flow's UUID itself, so that both find it."""
    digits = flow_id.replace("-", "")
    if len(digits) == 32 and all(c in "0123456789abcdef" for c in digits) and digits.strip("0"):
        return digits
    return hashlib.sha256(flow_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def child_traceparent(parent: str | None, flow_id: str, event_id: str) -> str:
    """The traceparent of an event when no span was recorded: the parent's trace and flags, a span id from the event's id."""
    span_id = hashlib.sha1(event_id.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:16]
    if parent is None:
        return f"00-{root_trace_id(flow_id)}-{span_id}-00"
    return f"{parent[:36]}{span_id}{parent[52:]}"


def parse_baggage(text: str | None) -> dict[str, str]:
    """W3C Baggage as a mapping; entries that cannot be read are left out."""
    if not text:
        return {}
    found: dict[str, str] = {}
    for entry in text.split(","):
        name, separator, value = entry.split(";", 1)[0].partition("=")
        if separator and name.strip():
            found[name.strip()] = unquote(value.strip())
    return found
