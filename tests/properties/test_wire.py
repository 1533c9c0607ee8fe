"""The wire, for all payloads and all bytes: what is written is read again, and what can't be read is a DecodeError."""

import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import msgspec
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from choreo.codec import JsonCodec, format_timestamp
from choreo.envelope import Envelope, read_wire
from choreo.errors import DecodeError
from choreo.events import AnyEvent, DataclassEvent, Event, EventLike
from choreo.pydantic import PydanticEvent
from choreo.record import Record

CODEC = JsonCodec()


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Line(msgspec.Struct):
    sku: str
    price: Decimal
    sizes: tuple[int, ...] = ()


class Order(Event, type="order", topic="orders", key="id"):
    id: str
    count: int
    ratio: float
    flag: bool
    note: str | None
    colour: Colour
    at: datetime
    day: date
    took: timedelta
    customer: UUID
    raw: bytes
    lines: list[Line]
    stock: dict[int, list[str]]
    words: dict[str, float | None]


@dataclass(frozen=True)
class Stock(DataclassEvent, type="stock", topic="stock", key="sku"):
    sku: str
    amount: int | None
    lines: list[Line]


class ModelLine(BaseModel):
    sku: str
    price: Decimal


class Model(PydanticEvent, type="model", topic="models", key="id"):
    id: str
    count: int
    ratio: float
    colour: Colour
    day: date
    lines: list[ModelLine]
    words: dict[str, int | None]


text = st.text(max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
decimals = st.decimals(allow_nan=False, allow_infinity=False, places=2)
long = st.integers(-(2**63), 2**64 - 1)
moments = st.datetimes(timezones=st.just(UTC))
lines = st.builds(Line, sku=text, price=decimals, sizes=st.lists(long, max_size=3).map(tuple))
payloads = st.one_of(
    st.builds(
        Order,
        id=text,
        count=st.integers(),
        ratio=finite,
        flag=st.booleans(),
        note=st.none() | text,
        colour=st.sampled_from(Colour),
        at=moments,
        day=st.dates(),
        took=st.timedeltas(timedelta(days=-1000), timedelta(days=1000)),
        customer=st.uuids(),
        raw=st.binary(max_size=20),
        lines=st.lists(lines, max_size=3),
        stock=st.dictionaries(st.integers(-(2**62), 2**62), st.lists(text, max_size=2), max_size=3),
        words=st.dictionaries(text, st.none() | finite, max_size=3),
    ),
    st.builds(Stock, sku=text, amount=st.none() | long, lines=st.lists(lines, max_size=3)),
    st.builds(
        Model,
        id=text,
        count=long,
        ratio=finite,
        colour=st.sampled_from(Colour),
        day=st.dates(),
        lines=st.lists(st.builds(ModelLine, sku=text, price=decimals), max_size=3),
        words=st.dictionaries(text, st.none() | long, max_size=3),
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
DECODERS = [CODEC.decoder(cls) for cls in (Order, Stock, AnyEvent, Model)]


def decided(value: bytes) -> list[str]:
    """What each decoder, and the reader of types, makes of a value; any exception but DecodeError goes through."""
    found = []
    for read in (*DECODERS, CODEC.event_type):
        try:
            read(value)
            found.append("read")
        except DecodeError as error:
            found.append(str(error))
    return found


# ---- round trips ----------------------------------------------------------------------------------------------------


@given(payload=payloads, at=st.datetimes(timezones=st.timezones() | st.just(UTC)))
@settings(deadline=None)
def test_what_is_written_is_read_again(payload: EventLike, at: datetime) -> None:
    event_type = payload.__event__.type
    try:
        in_utc = at.astimezone(UTC)
    except OverflowError:
        return

    actual = CODEC.decoder(type(payload))(CODEC.encode(event_type, at, payload))

    assert (actual, actual.timestamp.tzinfo) == (Envelope(event_type, in_utc, payload), UTC)


@given(payload=payloads)
@settings(deadline=None)
def test_the_type_is_read_from_what_was_written(payload: EventLike) -> None:
    actual = CODEC.event_type(CODEC.encode(payload.__event__.type, datetime(2026, 11, 22, tzinfo=UTC), payload))

    assert actual == payload.__event__.type


@given(payload=payloads)
@settings(deadline=None)
def test_what_is_written_is_json_to_others_with_exactly_three_fields(payload: EventLike) -> None:
    value = CODEC.encode(payload.__event__.type, datetime(2026, 11, 22, tzinfo=UTC), payload)

    actual = orjson.loads(value)

    assert list(actual) == ["type", "timestamp", "payload"]


@given(payload=payloads)
@settings(deadline=None)
def test_any_event_reads_what_was_written(payload: EventLike) -> None:
    value = CODEC.encode(payload.__event__.type, datetime(2026, 11, 22, tzinfo=UTC), payload)

    actual = CODEC.decoder(AnyEvent)(value).payload.fields

    assert actual == msgspec.json.decode(value)["payload"]


@given(fields=st.dictionaries(text, json_values, max_size=4))
@settings(deadline=None)
def test_any_event_reads_every_json_object(fields: dict[str, Any]) -> None:
    value = msgspec.json.encode({"type": "t", "timestamp": "2026-11-22T22:37:07Z", "payload": fields})

    actual = CODEC.decoder(AnyEvent)(value).payload.fields

    assert actual == fields


@given(at=st.datetimes(timezones=st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)))
@settings(deadline=None)
def test_a_written_timestamp_has_27_characters_and_sorts_by_time(at: datetime) -> None:
    try:
        later = at.astimezone(UTC) + timedelta(microseconds=1)
    except OverflowError:
        return

    actual = (format_timestamp(at), format_timestamp(later))

    assert (len(actual[0]), actual[0] < actual[1]) == (27, True)


# ---- bytes from strangers -------------------------------------------------------------------------------------------


@given(value=st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_read_or_refused_with_a_decode_error(value: bytes) -> None:
    started = time.perf_counter()

    actual = decided(value)

    assert (len(actual), time.perf_counter() - started < 2) == (5, True)


@given(payload=payloads, data=st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_events_are_read_or_refused_with_a_decode_error(payload: EventLike, data: st.DataObject) -> None:
    value = CODEC.encode(payload.__event__.type, datetime(2026, 11, 22, tzinfo=UTC), payload)
    at = data.draw(st.integers(0, len(value)))
    damage = data.draw(st.binary(max_size=6))
    length = data.draw(st.integers(0, 6))

    actual = decided(value[:at] + damage + value[at + length :])

    assert all(len(said) < 1_000 for said in actual)


@given(payload=json_values, event_type=json_values, timestamp=json_values)
@example(payload={"id": "a", "count": "x", "words": {"": []}}, event_type="order", timestamp="2026-11-22T22:37:07Z")
@settings(max_examples=300, deadline=None)
def test_any_json_is_read_or_refused_with_a_decode_error(payload: Any, event_type: Any, timestamp: Any) -> None:
    value = msgspec.json.encode({"type": event_type, "timestamp": timestamp, "payload": payload})

    actual = decided(value)

    assert all(said.isprintable() and len(said) < 1_000 for said in actual)


@given(payload=payloads, data=st.data())
@settings(max_examples=300, deadline=None)
def test_a_field_of_another_shape_is_named(payload: EventLike, data: st.DataObject) -> None:
    value = CODEC.encode(payload.__event__.type, datetime(2026, 11, 22, tzinfo=UTC), payload)
    written = msgspec.json.decode(value)
    name = data.draw(st.sampled_from(sorted(written["payload"])))
    written["payload"][name] = [{"what": "is this"}]

    actual = decided(msgspec.json.encode(written))

    said = actual[("order", "stock", "other", "model").index(payload.__event__.type)]
    assert said.startswith(f"payload of {payload.__event__.type}: {name}")


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(["choreo-id", "choreo-correlation-id", "choreo-causation-id", "choreo-source", "choreo-version", "traceparent"])
            | text,
            st.none() | st.binary(max_size=200) | text.map(str.encode),
        ),
        max_size=8,
    )
)
@settings(deadline=None)
def test_any_headers_give_printable_ids(headers: list[tuple[str, bytes | None]]) -> None:
    wire = read_wire(Record("orders", 3, 1842, 0, b"o-1", b"{}", headers))

    actual = [wire.event_id, wire.flow_id, wire.cause_id or "-", wire.source or "-", wire.traceparent or "-", str(wire.version)]

    assert all(said and said.isprintable() for said in actual)


@pytest.mark.parametrize("depth", [10, 100, 200])
def test_nesting_that_is_written_is_read(depth: int) -> None:
    nested: Any = 1
    for _ in range(depth):
        nested = {"a": [nested]}
    value = msgspec.json.encode({"type": "t", "timestamp": "2026-11-22T22:37:07Z", "payload": {"x": nested}})

    actual = CODEC.decoder(AnyEvent)(value).payload.fields

    assert actual == {"x": nested}
