"""What does a handler's answer become on the wire? Records with ids that are the same each time it runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from choreo.codec import Codec
from choreo.envelope import (
    BAGGAGE,
    CAUSATION_ID,
    CONTENT_TYPE,
    CORRELATION_ID,
    ID,
    SOURCE,
    TRACEPARENT,
    TRACESTATE,
    VERSION,
    Wire,
    child_id_of,
    child_traceparent,
    emitter_part,
    header_text,
)
from choreo.errors import ConfigurationError, PermanentError, UndeclaredEmitError
from choreo.events import AnyEvent, Tombstone, key_of, own_spec
from choreo.handler import Emit, HandlerSpec
from choreo.record import Outgoing
from choreo.store import OutboxRow

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")


class _Kind(msgspec.Struct, frozen=True):
    """What is the same for every event of one class: looked up once."""

    cls: type
    event_type: str
    topic: str
    key: str | None
    version: bytes | None


class _Voice(msgspec.Struct, frozen=True):
    """What is the same for every event of one handler."""

    source: tuple[str, bytes]
    id_part: str


class Emitter:
    """Makes the records that a service's handlers emit. `names` maps a logical topic to the broker's."""

    def __init__(self, service: str, codec: Codec, names: Callable[[str], str]) -> None:
        self._service = service
        self._codec = codec
        self._names = names
        self._content_type = (CONTENT_TYPE, codec.content_type.encode())
        self._kinds: dict[type, _Kind] = {}
        self._voices: dict[tuple[str, str], _Voice] = {}

    def outgoing(self, spec: HandlerSpec, wire: Wire, answer: object, *, run: str, traceparent: str | None) -> list[Outgoing]:
        """The records of one answer. Raises UndeclaredEmitError and PermanentError."""
        kind = self._kinds.get(type(answer))
        if kind is not None:
            # One plain event, as most answers are.
            return [self._child(spec, wire, kind, _PLAIN, answer, "0", run, traceparent)]
        return [_at_once(spec.name, emit, record) for _, emit, record in self._made(spec, wire, answer, run, traceparent)]

    def rows(self, spec: HandlerSpec, wire: Wire, answer: object, *, run: str, traceparent: str | None) -> list[OutboxRow]:
        """The same records as rows of an outbox, each with its event's type and id. Raises as `outgoing`."""
        return [_row(kind, emit, record) for kind, emit, record in self._made(spec, wire, answer, run, traceparent)]

    def _made(
        self, spec: HandlerSpec, wire: Wire, answer: object, run: str, traceparent: str | None
    ) -> Iterator[tuple[_Kind, Emit[Any], Outgoing]]:
        counts: dict[tuple[str, str], int] = {}
        for item in emitted(answer):
            emit, event = (item, item.event) if type(item) is Emit else (_PLAIN, item)
            cls = event.of if type(event) is Tombstone else type(event)
            kind = self._kinds.get(cls) or self._kind(cls, spec.name)
            nth = emit.id_key if emit.id_key is not None else _nth(counts, kind.event_type, _key(kind, emit, event) or "")
            yield kind, emit, self._child(spec, wire, kind, emit, event, nth, run, traceparent)

    def _child(
        self, spec: HandlerSpec, wire: Wire, kind: _Kind, emit: Emit[Any], event: Any, nth: str, run: str, traceparent: str | None
    ) -> Outgoing:
        if spec.emits is not None and kind.cls not in spec.emits:
            raise UndeclaredEmitError(
                f"{spec.name} emitted {kind.event_type}, which its return annotation does not name; "
                f"add {kind.cls.__name__} to it (the contract is read from there)"
            )
        voice = self._voices.get((spec.name, run)) or self._voice(spec, run)
        key = _key(kind, emit, event)
        parent, flow = wire.event_id, wire.flow_id
        event_id = child_id_of(parent, voice.id_part, kind.event_type, key or "", nth)
        headers: list[tuple[str, bytes | None]] = [
            (ID, event_id.encode()),
            (CAUSATION_ID, parent.encode()),
            (CORRELATION_ID, flow.encode()),
            voice.source,
            (TRACEPARENT, (traceparent or child_traceparent(wire.traceparent, flow, event_id)).encode()),
            self._content_type,
        ]
        by_name = wire.by_name
        if BAGGAGE in by_name and wire.text(BAGGAGE) is not None:
            headers.append((BAGGAGE, by_name[BAGGAGE]))
        if TRACESTATE in by_name and wire.traceparent is not None and wire.text(TRACESTATE) is not None:
            headers.append((TRACESTATE, by_name[TRACESTATE]))
        return self._record(kind, emit, event, key, headers)

    def _voice(self, spec: HandlerSpec, run: str) -> _Voice:
        source = (SOURCE, f"{self._service}/{spec.name}".encode())
        voice = _Voice(source, emitter_part(self._service, spec.identity, run))
        if not run:
            self._voices[spec.name, run] = voice
        return voice

    def root(self, event: Any, *, event_id: str, flow_id: str, traceparent: str | None, source: str) -> Outgoing:
        """The record of an event that no event caused. Raises ConfigurationError for what is no event, and for a timer."""
        _, emit, record = self._root(event, event_id, flow_id, traceparent, source)
        try:
            return _at_once(source, emit, record)
        except PermanentError as error:
            raise ConfigurationError(str(error)) from error

    def root_row(self, event: Any, *, event_id: str, flow_id: str, traceparent: str | None, source: str) -> OutboxRow:
        """The same as a row of an outbox; a timer is welcome."""
        return _row(*self._root(event, event_id, flow_id, traceparent, source))

    def _root(self, event: Any, event_id: str, flow_id: str, traceparent: str | None, source: str) -> tuple[_Kind, Emit[Any], Outgoing]:
        emit, inner = (event, event.event) if isinstance(event, Emit) else (_PLAIN, event)
        cls = inner.of if isinstance(inner, Tombstone) else type(inner)
        try:
            kind = self._kinds.get(cls) or self._kind(cls, source)
        except PermanentError as error:
            raise ConfigurationError(str(error)) from error
        headers: list[tuple[str, bytes | None]] = [
            (ID, event_id.encode()),
            (CORRELATION_ID, flow_id.encode()),
            (SOURCE, source.encode()),
            (TRACEPARENT, (traceparent or child_traceparent(None, flow_id, event_id)).encode()),
            self._content_type,
        ]
        return kind, emit, self._record(kind, emit, inner, _key(kind, emit, inner), headers)

    def _kind(self, cls: Any, who: str) -> _Kind:
        known = own_spec(cls)
        if known is None or cls is AnyEvent:
            raise PermanentError(f"{who} emitted {cls.__name__}, which is no event type of its own; return an event, an Emit or None")
        version = None if known.version == 1 else str(known.version).encode()
        kind = self._kinds[cls] = _Kind(cls, known.type, self._names(known.topic), known.key, version)
        return kind

    def _record(self, kind: _Kind, emit: Emit[Any], event: Any, key: str | None, headers: list[tuple[str, bytes | None]]) -> Outgoing:
        if kind.version is not None:
            headers.append((VERSION, kind.version))
        for name, text in emit.headers.items():
            if name.startswith("choreo-"):
                raise PermanentError(f"header {name!r}: names that begin with choreo- are choreo's own")
            if not name or not name.isprintable():
                raise PermanentError(f"header {name!r}: a name is text that can be printed")  # others end the process in librdkafka
            headers.append((name, text.encode()))
        value = None if type(event) is Tombstone else self._codec.encode(kind.event_type, None, event)
        topic = kind.topic if emit.topic is None else self._names(emit.topic)
        if emit.topic is not None and not _TOPIC.fullmatch(topic):
            raise PermanentError(f"topic {topic!r}: letters, digits, '.', '_' and '-', at most 249 of them")
        return Outgoing(topic, None if key is None else key.encode(), value, headers)


def _row(kind: _Kind, emit: Emit[Any], record: Outgoing) -> OutboxRow:
    return OutboxRow(record, kind.event_type, header_text(dict(record.headers)[ID]) or "", emit.after if emit.at is None else emit.at)


def _at_once(who: str, emit: Emit[Any], record: Outgoing) -> Outgoing:
    """Raises PermanentError for a timer where there is no outbox that it could wait in."""
    if emit.after is not None or emit.at is not None:
        raise PermanentError(
            f"{who}: Emit(after=, at=) waits in the outbox of the service's database: use Handler[..., Connection] with a store that was "
            "named, or service.outbox.add"
        )
    return record


def emitted(answer: object) -> Iterable[Any]:
    """The answer as events, Emits and Tombstones. Raises PermanentError for anything else."""
    if hasattr(answer, "__event__") or isinstance(answer, Emit | Tombstone):
        return (answer,)
    if answer is None:
        return ()
    if isinstance(answer, Iterable) and not isinstance(answer, str | bytes | Mapping):
        return list(answer)
    raise PermanentError(f"handle returned {type(answer).__name__}; return an event, an Emit, a list of them, or None")


def _nth(counts: dict[tuple[str, str], int], event_type: str, key: str) -> str:
    nth = counts.get((event_type, key), 0)
    counts[event_type, key] = nth + 1
    return str(nth)


def _key(kind: _Kind, emit: Emit[Any], event: Any) -> str | None:
    if emit.key is not None:
        return emit.key
    if kind.key is not None and type(event) is not Tombstone and type(value := getattr(event, kind.key)) is str:
        return value
    if isinstance(event, Tombstone):
        return event.key
    if kind.key is None:
        return None
    try:
        return key_of(event)
    except ConfigurationError as error:
        raise PermanentError(str(error)) from error


_NOTHING: Any = None
_PLAIN: Emit[Any] = Emit(event=_NOTHING)
