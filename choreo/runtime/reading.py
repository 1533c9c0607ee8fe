"""What is this record, and who gets it? Decodes each record once and makes a delivery for each handler of its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from choreo.codec import Codec
from choreo.core.partition import Delivery, Partition, Route
from choreo.core.retry import RetryPolicy
from choreo.envelope import CONTENT_TYPE, EVENT_HEADERS, VERSION, Envelope, Wire, read_wire
from choreo.errors import DecodeError
from choreo.events import AnyEvent, EventLike, Tombstone
from choreo.handler import HandlerSpec
from choreo.letter import UNREADABLE, forged_control_headers
from choreo.record import Record
from choreo.telemetry.counters import Counters


class _Reading(msgspec.Struct):
    """One payload class of one type, and the handlers that want it in that class."""

    decode: Callable[[bytes], Envelope[Any]]
    version: int
    routes: list[Route]


class _Topic(msgspec.Struct):
    """What a topic's records may be. `guess` is the type that came last: most topics repeat themselves."""

    by_type: dict[str, list[_Reading]] = {}
    any_type: list[_Reading] = []
    tombstones: list[tuple[Route, type[EventLike]]] = []
    guess: str = ""
    guessed: _Reading | None = None


class Reader:
    """The table (topic, type) -> handlers, and the decoding of what comes. Owner: the event loop.

    `names` maps a logical topic to the broker's.
    """

    def __init__(
        self, specs: Sequence[tuple[HandlerSpec, Route]], codec: Codec, names: Callable[[str], str], counters: Counters, *, strict: bool
    ) -> None:
        self._codec = codec
        self._counters = counters
        self._strict = strict
        self._unreadable = Route(index=-1, name=UNREADABLE, retry=RetryPolicy(max_attempts=1))
        self._topics: dict[str, _Topic] = {}
        self._by_name = {name: route for spec, route in specs for name in (spec.name, *spec.aliases)}
        for spec, route in specs:
            for topic in spec.topics:
                self._topics.setdefault(names(topic), _Topic())
            for cls in spec.payloads:
                self._add(spec, route, cls, names)
            for cls in spec.tombstones:
                self._topics[names(cls.__event__.topic)].tombstones.append((route, cls))

    def _add(self, spec: HandlerSpec, route: Route, cls: type[EventLike], names: Callable[[str], str]) -> None:
        decode = self._codec.decoder(cls)
        if cls is AnyEvent:
            for topic in spec.topics:
                self._topics[names(topic)].any_type.append(_Reading(decode, 0, [route]))
            return
        known = self._topics[names(cls.__event__.topic)].by_type.setdefault(cls.__event__.type, [])
        known.append(_Reading(decode, cls.__event__.version, [route]))

    @property
    def topics(self) -> list[str]:
        """The broker's names of the topics to subscribe to."""
        return list(self._topics)

    def read(self, record: Record, partition: Partition) -> list[Delivery]:
        """A delivery for each handler; none when nobody wants it. What can't be decoded is delivered as its DecodeError."""
        value = record.value
        topic = self._topics[record.topic]
        if value is None:
            return self._tombstones(record, topic, partition)
        wire = read_wire(record)
        by_name = wire.by_name
        if not by_name.keys() <= EVENT_HEADERS and forged_control_headers(by_name):
            self._counters.forged_headers += 1
        guessed = topic.guessed
        if guessed is not None and VERSION not in by_name and by_name.get(CONTENT_TYPE) in _JSON_TYPES:
            try:
                event = guessed.decode(value)
            except DecodeError:
                pass
            else:
                if event.type == topic.guess:
                    route, key = guessed.routes[0], record.key
                    return [
                        Delivery(partition, route, record, wire, event, (route.index, key) if key is not None and route.ordered else None)
                    ]
        return self._read_slowly(record, topic, partition, wire)

    def read_for(self, record: Record, handler: str, partition: Partition) -> Delivery | None:
        """The delivery for one handler alone (a replay); None when this service has no such handler for it."""
        topic = self._topics.get(record.topic)
        if topic is None:
            return None
        found = (
            self._tombstones(record, topic, partition)
            if record.value is None
            else self._read_slowly(record, topic, partition, read_wire(record))
        )
        wanted = self._by_name.get(handler)
        for delivery in found:
            if delivery.route is wanted or delivery.route is self._unreadable:
                return delivery
        return None

    def _read_slowly(self, record: Record, topic: _Topic, partition: Partition, wire: Wire) -> list[Delivery]:
        value = record.value
        assert value is not None
        try:
            self._check_content_type(wire)
            event_type = self._codec.event_type(value)
        except DecodeError as error:
            return [_delivery(partition, self._unreadable, record, wire, _as_value(error))]
        readings = topic.by_type.get(event_type, [])
        deliveries: list[Delivery] = []
        for reading in (*readings, *topic.any_type):
            event = self._decode(reading, value, wire, event_type)
            deliveries += [_delivery(partition, route, record, wire, event) for route in reading.routes]
        if not deliveries:
            if self._strict:
                unknown = DecodeError("type", f"{event_type!r} has no handler here, and strict=True", event_type=event_type)
                return [_delivery(partition, self._unreadable, record, wire, unknown)]
            self._counters.skipped_type += 1
        elif len(readings) == 1 and not topic.any_type and readings[0].version == 1:
            topic.guess, topic.guessed = event_type, readings[0]
        return deliveries

    def _check_content_type(self, wire: Wire) -> None:
        written = wire.by_name.get(CONTENT_TYPE)
        if written in _JSON_TYPES:
            return
        text = (wire.text(CONTENT_TYPE) or "?").split(";", 1)[0].strip().lower()
        if text != self._codec.content_type:
            raise DecodeError("value", f"content-type {text!r} can't be read; expected {self._codec.content_type}")

    def _decode(self, reading: _Reading, value: bytes, wire: Wire, event_type: str) -> Envelope[Any] | DecodeError:
        version = wire.version
        if reading.version and version != reading.version:
            shown = wire.text(VERSION) if version is None else version
            return DecodeError("version", f"expected {reading.version}, got {shown}", event_type=event_type)
        try:
            event = reading.decode(value)
        except DecodeError as error:
            return _as_value(error)
        if event.type != event_type:
            return DecodeError("envelope", f"its type is both {event_type!r} and {event.type!r}", path="type", event_type=event_type)
        return event

    def _tombstones(self, record: Record, topic: _Topic, partition: Partition) -> list[Delivery]:
        if not topic.tombstones:
            self._counters.skipped_tombstone += 1
            return []
        wire = read_wire(record)
        key = "" if record.key is None else record.key.decode("utf-8", "replace")
        at = datetime.fromtimestamp(min(max(record.timestamp_ms, 0) / 1000, LAST_S), UTC)
        return [
            _delivery(partition, route, record, wire, Envelope(cls.__event__.type, at, Tombstone(of=cls, key=key)))
            for route, cls in {route.index: (route, cls) for route, cls in reversed(topic.tombstones)}.values()
        ]


LAST_S = 253_402_300_799
"""The last second of the year 9999: later ones are no datetime."""
_JSON_TYPES = frozenset({None, b"application/json"})


def _as_value(error: DecodeError) -> DecodeError:
    """The error without the way it came. Its frames lead to the batch, the batch to its deliveries, and they to the error: a ring
    that the garbage collector, which doesn't follow deliveries, would never free (tests/runtime/test_memory_is_freed.py)."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _delivery(partition: Partition, route: Route, record: Record, wire: Wire, event: Any) -> Delivery:
    key = record.key
    return Delivery(partition, route, record, wire, event, (route.index, key) if key is not None and route.ordered else None)


def rename(prefix: str, names: Mapping[str, str]) -> Callable[[str], str]:
    """The broker's name of a logical topic: mapped by `names`, else the same, with `prefix` before it."""

    def broker_name(logical: str) -> str:
        return prefix + names.get(logical, logical)

    return broker_name
