"""What is an event on the wire? Three fields, the ids beside them, and the context that ties events into a flow.

DESIGN section 3: the value has exactly `type`, `timestamp`, `payload`; everything else is a header of UTF-8 text.
Root ids are UUIDv7; the ids of emitted events are UUIDv5 of what caused them, so that a handler that runs again
emits the same ids. tests/golden/ holds the bytes; they are never regenerated to pass.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Generic
from urllib.parse import unquote

import msgspec
from typing_extensions import TypeVar

from choreo.errors import ConfigurationError
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
_SPAN_ID = re.compile(r"(?!0{16})[0-9a-f]{16}")
_TRACE_ID = re.compile("(?!0{32})[0-9a-f]{32}")
_TRACEPARENT = re.compile("00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_LATER_VERSION = re.compile("(?!00|ff)[0-9a-f]{2}-.{52}(-.*)?")
_FLAGS = {digit: f"0{int(digit, 16) & 3}" for digit in "0123456789abcdef"}
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

    Raises ConfigurationError without parts, and for a None among them: every request would be the same event.

    >>> derived_id("checkout", "cart-17") == derived_id("checkout", "cart-17")
    True
    """
    if not parts or None in parts:
        raise ConfigurationError(f"derived_id{parts!r}: every request would be one event; give what tells this one apart, and no None")
    return _uuid5(_DERIVED, *(str(part) for part in parts))


def child_id(parent: str, service: str, handler: str, run: str, event_type: str, key: str, nth: str) -> str:
    """The id of an event emitted by `service`/`handler` while it handled `parent`.

    `run` is the run id of a forced replay, else ``""``; `nth` counts the events of that type and key in one call
    (``"0"``, ``"1"``, ...) or is the emit's `id_key`.
    """
    return child_id_of(parent, emitter_part(service, handler, run), event_type, key, nth)


def emitter_part(service: str, handler: str, run: str) -> str:
    """What the child ids of one emitter have in common, for `child_id_of`."""
    return f"{len(service)}:{service}{len(handler)}:{handler}{len(run)}:{run}"


def child_id_of(parent: str, emitter: str, event_type: str, key: str, nth: str) -> str:
    """`child_id` with its middle made before: this is done for every emitted event."""
    return _uuid5_of(f"{len(parent)}:{parent}{emitter}{len(event_type)}:{event_type}{len(key)}:{key}{len(nth)}:{nth}")


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
    return _uuid5_of("".join(f"{len(part)}:{part}" for part in parts))


def _uuid5_of(name: str) -> str:
    digest = hashlib.sha1(_NAMESPACE + name.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-5{digest[13:16]}-{_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"


# The first hex digit of the fourth group says the variant: its two high bits become 10.
_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


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


class Wire(msgspec.Struct, gc=False):
    """The ids and context that came with a record; what is not asked for is not parsed.

    Ids are printable: one with a NUL or an escape sequence could not be stored, and would act on terminals. Without a
    usable `choreo-id` the event is plain: a derived id, a flow of its own.
    """

    record: Record
    by_name: Mapping[str, bytes | None]
    _event_id: str | None = None

    @property
    def event_id(self) -> str:
        found = self._event_id
        if found is None:
            found = self._event_id = _printable_id(self.by_name.get(ID)) or plain_id(self.record)
        return found

    @property
    def flow_id(self) -> str:
        return _printable_id(self.by_name.get(CORRELATION_ID)) or self.event_id

    @property
    def cause_id(self) -> str | None:
        return _printable_id(self.by_name.get(CAUSATION_ID))

    @property
    def source(self) -> str | None:
        text = header_text(self.by_name.get(SOURCE))
        return text if text is not None and text.isprintable() else None

    @property
    def traceparent(self) -> str | None:
        """The `traceparent` header, in the form of version 00, where it is valid (W3C Trace Context), else None."""
        text = header_text(self.by_name.get(TRACEPARENT))
        if text is None or valid_traceparent(text):
            return text
        # A later version may say more after 55 characters; what it has in common with version 00 still counts.
        common = f"00{text[2:55]}"
        return common if _LATER_VERSION.fullmatch(text) and valid_traceparent(common) else None

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
    """The ids and context of a record."""
    return Wire(record, dict(record.headers))


def _printable_id(value: bytes | None) -> str | None:
    if not value or len(value) > MAX_ID_CHARS:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() else None


def text_headers(headers: Headers) -> dict[str, str]:
    """Every readable header as text, the last readable one of a repeated name.

    Null values, what is not UTF-8, and what is over MAX_HEADER_CHARS bytes are left out; empty ones are there.
    """
    return {name: text for name, value in headers if (text := "" if value == b"" else header_text(value)) is not None}


# ---- W3C Trace Context and Baggage ----------------------------------------------------------------------------------


def valid_traceparent(text: str) -> bool:
    """Whether it is a version-00 traceparent with a non-zero trace id and span id."""
    return _TRACEPARENT.fullmatch(text) is not None


def root_trace_id(flow_id: str) -> str:
    """The trace id (32 hex digits) of a flow that starts without a trace: the flow's UUID itself, so that both find it."""
    digits = flow_id.replace("-", "")
    if _TRACE_ID.fullmatch(digits):
        return digits
    return hashlib.sha256(flow_id.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def child_traceparent(parent: str | None, flow_id: str, event_id: str) -> str:
    """The traceparent of an event when no span was recorded: the parent's trace, a span id from the event's id.

    Of the parent's flags the two that W3C defines are kept, sampled (1) and random trace id (2); the others must be 0.
    """
    span_id = event_id[19:23] + event_id[24:]  # the half of a UUID that is random, or a hash
    if parent is None:
        made = f"00-{flow_id.replace('-', '')}-{span_id}-00"
    else:
        made = f"{parent[:36]}{span_id}-{_FLAGS[parent[-1]]}"
    if _TRACEPARENT.fullmatch(made):
        return made
    if not _SPAN_ID.fullmatch(span_id):
        span_id = hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"00-{root_trace_id(flow_id)}-{span_id}-00" if parent is None else f"{parent[:36]}{span_id}-{made[-2:]}"


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
