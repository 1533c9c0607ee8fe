"""What does a dead letter look like? Names and formats of the three topics every service has.

- ``<service>.dlq``: letters and nothing else: key, value and headers as they came, plus ``choreo-dlq-*`` headers.
- ``<service>.letters``: compacted; the state of each letter under ``letter|handler|event id``, and
  ``owner|topic|partition`` for each partition a member has begun to read.
- ``<service>.replay``: a log of one partition: runs and requests from operators, outcomes from owners.

A dlq record that no state points to is not a letter (DESIGN section 6). tests/golden/ holds the bytes.
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from choreo.envelope import EVENT_HEADERS, MAX_ID_CHARS, header_text
from choreo.errors import DecodeError
from choreo.record import Headers, Outgoing, Record, TopicPartition

PREFIX = "choreo-dlq-"
MAX_MESSAGE_CHARS = 1000
MAX_STACK_BYTES = 8192
UNREADABLE = "*"
"""The handler of a letter whose event type can't be read."""

Kind = Literal["failed", "undecodable", "crash-loop", "parked"]
State = Literal["open", "resolved", "discarded"]
Result = Literal["resolved", "already-done", "failed-again", "refused"]


def dlq_topic(service: str) -> str:
    return f"{service}.dlq"


def letters_topic(service: str) -> str:
    return f"{service}.letters"


def replay_topic(service: str) -> str:
    return f"{service}.replay"


class Death(msgspec.Struct, frozen=True):
    """Why and how a delivery died. Times are aware, UTC."""

    kind: Kind
    handler: str
    group: str
    event_id: str
    event_type: str | None
    error_type: str
    message: str
    stack: str
    fingerprint: str
    attempts: int
    first_failed_at: datetime
    last_failed_at: datetime
    version: str
    host: str


class Place(msgspec.Struct, frozen=True):
    """One record of one partition. Prints as ``payments.dlq[3]@17``."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class LetterState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The state of one letter, as its owner writes it. `key` is base64 of the record's key, None for keyless."""

    v: int = 1
    state: State
    kind: Kind
    handler: str
    event_id: str
    event_type: str | None = None
    dlq: Place
    origin: Place
    origin_timestamp_ms: int = -1
    key: str | None = None
    payload_hash: str = ""
    error_type: str = ""
    message: str = ""
    fingerprint: str = ""
    attempts: int = 0
    first_failed_at: datetime
    last_failed_at: datetime
    version: str = ""
    run: str = ""
    epoch: int = 0

    def key_text(self) -> str | None:
        return None if self.key is None else base64.b64decode(self.key).decode("utf-8", "replace")


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """A partition has been read by this service. `partitions` is how many its topic had then, `position` in the replay log."""

    v: int = 1
    epoch: int
    position: int
    partitions: int


class Run(msgspec.Struct, frozen=True, kw_only=True, tag="run", tag_field="kind"):
    """An operator began a replay of `letters` letters."""

    v: int = 1
    run: str
    by: str
    reason: str
    forced: bool
    letters: int
    at: datetime


class Request(msgspec.Struct, frozen=True, kw_only=True, tag="request", tag_field="kind"):
    """One letter of a run is to run again, by the owner of its origin."""

    v: int = 1
    run: str
    handler: str
    event_id: str
    origin: Place
    dlq: Place
    by: str
    reason: str
    forced: bool
    at: datetime


class ReplayOutcome(msgspec.Struct, frozen=True, kw_only=True, tag="outcome", tag_field="kind"):
    """What became of one request."""

    v: int = 1
    run: str
    handler: str
    event_id: str
    result: Result
    attempts: int = 0
    error: str = ""
    at: datetime


ReplayEntry = Run | Request | ReplayOutcome


def source_of(letter: LetterState | Request) -> TopicPartition:
    """The partition its event stood in: whoever owns it owns the letter."""
    return TopicPartition(letter.origin.topic, letter.origin.partition)


_state = msgspec.json.Decoder(LetterState)
_owner = msgspec.json.Decoder(Owner)
_entry: msgspec.json.Decoder[ReplayEntry] = msgspec.json.Decoder(ReplayEntry)


# ---- the dlq record -------------------------------------------------------------------------------------------------


def dead_letter(topic: str, record: Record, death: Death) -> Outgoing:
    """The letter: everything as it came, plus why it died. Headers of an earlier death are replaced, its origin stays."""
    added = {
        "kind": death.kind,
        "handler": death.handler,
        "group": death.group,
        "event-id": death.event_id,
        "error-type": death.error_type,
        "error-message": death.message[:MAX_MESSAGE_CHARS],
        "error-stack": _utf8(death.stack)[-MAX_STACK_BYTES:].decode("utf-8", "replace"),
        "fingerprint": death.fingerprint,
        "attempts": str(death.attempts),
        "first-failed-at": _rfc3339(death.first_failed_at),
        "last-failed-at": _rfc3339(death.last_failed_at),
        "version": death.version,
        "host": death.host,
        "topic": record.topic,
        "partition": str(record.partition),
        "offset": str(record.offset),
        "timestamp": str(record.timestamp_ms),
    }
    if death.event_type is not None:
        added["event-type"] = death.event_type
    own = [(PREFIX + name, _utf8(value)) for name, value in added.items()]
    return Outgoing(topic, record.key, record.value, [*without_dlq_headers(record.headers), *own])


def source_record(letter: Record) -> Record:
    """The record that died, as it came from its own topic. Raises DecodeError when the letter doesn't say where that was."""
    found = {name: header_text(value) for name, value in letter.headers if name.startswith(PREFIX)}
    topic = found.get(PREFIX + "topic")
    numbers = [found.get(PREFIX + name) for name in ("partition", "offset", "timestamp")]
    if topic is None or any(text is None or not text.lstrip("-").isdecimal() or len(text) > 19 for text in numbers):
        raise DecodeError("letter", f"{letter.origin} has no readable {PREFIX}topic, -partition, -offset and -timestamp")
    partition, offset, timestamp_ms = (int(text) for text in numbers if text is not None)
    return Record(topic, partition, offset, timestamp_ms, letter.key, letter.value, without_dlq_headers(letter.headers))


def without_dlq_headers(headers: Headers) -> list[tuple[str, bytes | None]]:
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


def dlq_headers(letter: Record) -> dict[str, str]:
    """The ``choreo-dlq-*`` headers of a letter by their short names."""
    return {name.removeprefix(PREFIX): header_text(value, 65536) or "" for name, value in letter.headers if name.startswith(PREFIX)}


def forged_control_headers(names: Iterable[str]) -> bool:
    """Whether an ordinary record carries ``choreo-*`` headers that only choreo's own topics may carry."""
    return any(name.startswith("choreo-") and name not in EVENT_HEADERS for name in names)


# ---- the state topic ------------------------------------------------------------------------------------------------


def letter_key(handler: str, event_id: str) -> bytes:
    return f"letter|{handler}|{event_id[:MAX_ID_CHARS]}".encode("utf-8", "replace")


def owner_key(partition: TopicPartition) -> bytes:
    return f"owner|{partition.topic}|{partition.partition}".encode()


def state_partition(source: TopicPartition, partitions: int) -> int:
    """Where the records of one source partition stand in ``.letters``: all in one, so that its owner's marker fences them."""
    return zlib.crc32(f"{source.topic}|{source.partition}".encode()) % partitions


def state_record(topic: str, state: LetterState, partitions: int) -> Outgoing:
    source = source_of(state)
    return Outgoing(topic, letter_key(state.handler, state.event_id), _json(state), (), state_partition(source, partitions))


def owner_record(topic: str, source: TopicPartition, owner: Owner, partitions: int) -> Outgoing:
    return Outgoing(topic, owner_key(source), _json(owner), (), state_partition(source, partitions))


def letter_state(record: Record, dlq: Place, death: Death, *, state: State, run: str) -> LetterState:
    """The state of a letter whose dlq record was acknowledged at `dlq`."""
    return LetterState(
        state=state,
        kind=death.kind,
        handler=death.handler,
        event_id=death.event_id,
        event_type=death.event_type,
        dlq=dlq,
        origin=Place(record.topic, record.partition, record.offset),
        origin_timestamp_ms=record.timestamp_ms,
        key=None if record.key is None else base64.b64encode(record.key).decode(),
        payload_hash=payload_hash(record.value),
        error_type=death.error_type,
        message=death.message[:MAX_MESSAGE_CHARS],
        fingerprint=death.fingerprint,
        attempts=death.attempts,
        first_failed_at=death.first_failed_at,
        last_failed_at=death.last_failed_at,
        version=death.version,
        run=run,
    )


def read_state(record: Record) -> LetterState | Owner | None:
    """What a record of ``.letters`` says; None for a tombstone. Raises DecodeError for what isn't ours."""
    if record.value is None:
        return None
    decoder = _owner if (record.key or b"").startswith(b"owner|") else _state
    try:
        return decoder.decode(record.value)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DecodeError("value", f"{record.origin} is no letter state: {error}") from error


# ---- the replay log -------------------------------------------------------------------------------------------------


def replay_record(topic: str, entry: ReplayEntry) -> Outgoing:
    return Outgoing(topic, _utf8(entry.run), _json(entry), (), 0)


def read_replay(record: Record) -> ReplayEntry:
    """What a record of ``.replay`` says. Raises DecodeError for what isn't ours."""
    try:
        return _entry.decode(record.value or b"")
    except (msgspec.DecodeError, RecursionError) as error:
        raise DecodeError("value", f"{record.origin} is no replay entry: {error}") from error


def payload_hash(value: bytes | None) -> str:
    """SHA-256 of the encoded payload alone; of the whole value where no payload can be found."""
    if value is None:
        return ""
    return payload_digest(value).hex()


def payload_digest(value: bytes) -> bytes:
    """The 32 bytes of that hash."""
    try:
        return hashlib.sha256(_payload.decode(value).payload).digest()
    except (msgspec.DecodeError, RecursionError):
        return hashlib.sha256(value).digest()


class _PayloadOnly(msgspec.Struct):
    payload: msgspec.Raw


_payload = msgspec.json.Decoder(_PayloadOnly)


def _json(value: msgspec.Struct) -> bytes:
    """Its JSON, whatever its texts hold: what can't be UTF-8 (a lone surrogate, as in a file name that is not) is escaped.

    A letter whose error says such a thing must be written all the same, or its event would end each worker that gets it.
    """
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(msgspec.to_builtins(value)))


def _escaped(value: object) -> object:
    match value:
        case str():
            return _utf8(value).decode()
        case dict():
            return {name: _escaped(item) for name, item in value.items()}
        case _:
            return value


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
