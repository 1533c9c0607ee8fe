"""JSON: what is written, what is read, and what is said about what can't be read."""

import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
import orjson
import pytest
from pydantic import BaseModel, Field, field_validator

from choreo.codec import Decode, JsonCodec, format_timestamp
from choreo.envelope import Envelope
from choreo.errors import ConfigurationError, DecodeError, PermanentError
from choreo.events import AnyEvent, DataclassEvent, Event, EventMeta
from choreo.pydantic import PydanticEvent

AT = datetime(2026, 11, 22, 22, 37, 7, tzinfo=UTC)
CODEC = JsonCodec()


class Line(msgspec.Struct):
    sku: str
    price: int


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int = 0
    lines: list[Line] = []
    prices: dict[str, int] = {}


@dataclass(frozen=True)
class StockReserved(DataclassEvent, type="stock.reserved", topic="stock", key="sku"):
    sku: str
    lines: tuple[Line, ...] = ()


class PydanticLine(BaseModel):
    sku: str
    price: int


class RefundAsked(PydanticEvent, type="refund.asked", topic="payments", key="order_id"):
    order_id: str = Field(alias="orderId")
    total_cents: int = 0
    lines: list[PydanticLine] = []
    prices: dict[str, int] = {}
    amount: float | None = None
    anything: Any = None

    @field_validator("total_cents")
    @classmethod
    def refuse_some(cls, value: int) -> int:
        if value == -1:
            raise ValueError("Too little")
        if value == -2:
            raise KeyError("limit")
        return value


class Anything(Event, type="anything", topic="t", key=None):
    value: Any


def event_with(annotation: Any) -> EventMeta:
    """An event type with one field, `value`, of that type."""
    namespace = {"__annotations__": {"value": annotation}, "__module__": __name__}
    return EventMeta("Single", (Event,), namespace, type="single", topic="t", key=None)


def decoder(cls: Any) -> Decode:
    return CODEC.decoder(cls)


def value_of(payload: str, event_type: str = "order.placed", timestamp: str = "2026-11-22T22:37:07.000000Z") -> bytes:
    return f'{{"type":"{event_type}","timestamp":"{timestamp}","payload":{payload}}}'.encode()


def complaint(cls: Any, value: bytes) -> str:
    with pytest.raises(DecodeError) as refused:
        decoder(cls)(value)
    return str(refused.value)


# ---- writing --------------------------------------------------------------------------------------------------------


def test_an_event_is_three_fields() -> None:
    actual = CODEC.encode("order.placed", AT, OrderPlaced(order_id="o-1", lines=[Line("a", 3)]))

    assert actual == (
        b'{"type":"order.placed","timestamp":"2026-11-22T22:37:07.000000Z",'
        b'"payload":{"order_id":"o-1","total_cents":0,"lines":[{"sku":"a","price":3}],"prices":{}}}'
    )


def test_a_dataclass_event_is_written_the_same_way() -> None:
    actual = CODEC.encode("stock.reserved", AT, StockReserved(sku="a", lines=(Line("a", 3),)))

    assert actual == value_of('{"sku":"a","lines":[{"sku":"a","price":3}]}', "stock.reserved")


def test_a_pydantic_event_is_written_by_its_aliases() -> None:
    actual = CODEC.encode("refund.asked", AT, RefundAsked(orderId="o-1"))

    assert actual == value_of('{"orderId":"o-1","total_cents":0,"lines":[],"prices":{},"amount":null,"anything":null}', "refund.asked")


class Colour(Enum):
    RED = "red"


class Shade(StrEnum):
    DARK = "dark"


class Rank(IntEnum):
    FIRST = 1


class Loud(str):
    pass


class Cents(int):
    pass


class Ratio(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "null"),
        ("null", '"null"'),
        (2**63 - 1, "9223372036854775807"),
        (2**64 - 1, "18446744073709551615"),
        (-(2**63), "-9223372036854775808"),
        (2**70, "1180591620717411303424"),
        (-(2**63) - 1, "-9223372036854775809"),
        (0.1, "0.1"),
        (Decimal("12.50"), '"12.50"'),
        (b"abc", '"YWJj"'),
        (UUID(int=1), '"00000000-0000-0000-0000-000000000001"'),
        (date(2026, 11, 22), '"2026-11-22"'),
        (AT, '"2026-11-22T22:37:07Z"'),
        (timedelta(days=1), '"P1D"'),
        (Colour.RED, '"red"'),
        (Rank.FIRST, "1"),
        ({1: "a", Rank.FIRST: "b"}, '{"1":"b"}'),
        ({Shade.DARK: 1, Loud("x"): 2}, '{"dark":1,"x":2}'),
        ([Loud("a"), Cents(3), Ratio(0.5)], '["a",3,0.5]'),
        ((1, (2, 3)), "[1,[2,3]]"),
        ("Grüße \x00", '"Grüße \\u0000"'),
    ],
)
def test_values_are_written_as_json_has_them(value: object, expected: str) -> None:
    actual = CODEC.encode("anything", AT, Anything(value=value))

    assert actual == value_of(f'{{"value":{expected}}}', "anything")


@pytest.mark.parametrize("value", [2**70, -(2**63) - 1, {"a": [2**70]}])
def test_large_integers_are_written_alike_by_every_kind_of_payload(value: object) -> None:
    struct, model = Anything(value=value), RefundAsked.model_construct(order_id="o-1", anything=value)

    actual = [decoder(AnyEvent)(CODEC.encode("a", AT, event)).payload.fields for event in (struct, model)]

    assert [actual[0]["value"], actual[1]["anything"]] == [value, value]


def nested(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), "nan is no JSON number"),
        ({"a": [float("inf")]}, "inf is no JSON number"),
        ({float("-inf")}, "-inf is no JSON number"),
        ("\ud800", "'utf-8' codec can't encode character '\\ud800' in position 0: surrogates not allowed"),
        (object(), "object can't be written; use str, int, float, bool, None, lists, maps, dates, Decimal, UUID or bytes"),
        ({(1, 2): 3}, "tuple can't be written; use str, int, float, bool, None, lists, maps, dates, Decimal, UUID or bytes"),
        (nested(100_000), "maximum recursion depth exceeded while serializing an object"),
    ],
)
def test_what_cannot_be_written_is_a_permanent_error(value: object, expected: str) -> None:
    with pytest.raises(PermanentError) as refused:
        CODEC.encode("anything", AT, Anything(value=value))

    assert str(refused.value) == f"anything: can't be written as JSON: {expected}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [float("nan")], {"a": float("inf")}])
def test_pydantic_does_not_write_what_is_no_number_as_null(value: object) -> None:
    event = RefundAsked.model_construct(order_id="o-1", anything=value)

    with pytest.raises(PermanentError) as refused:
        CODEC.encode("refund.asked", AT, event)

    assert str(refused.value).endswith(" is no JSON number")


def test_a_message_about_what_cannot_be_written_is_short() -> None:
    with pytest.raises(PermanentError) as refused:
        CODEC.encode("anything", AT, Anything(value=type("X" * 10_000, (), {})()))

    actual = len(str(refused.value))

    assert actual < 500


# ---- timestamps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2026, 11, 22, 22, 37, 7, tzinfo=UTC), "2026-11-22T22:37:07.000000Z"),
        (datetime(2026, 11, 22, 22, 37, 7, 1, tzinfo=UTC), "2026-11-22T22:37:07.000001Z"),
        (datetime(2026, 11, 23, 0, 37, 7, tzinfo=timezone(timedelta(hours=2))), "2026-11-22T22:37:07.000000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
        (datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC), "9999-12-31T23:59:59.999999Z"),
        (datetime(1970, 1, 1, tzinfo=timezone(timedelta(0), "GMT")), "1970-01-01T00:00:00.000000Z"),
    ],
)
def test_a_timestamp_is_written_in_utc_to_the_microsecond(at: datetime, expected: str) -> None:
    actual = format_timestamp(at)

    assert actual == expected


def test_without_a_timestamp_the_event_happened_now() -> None:
    before = datetime.now(UTC)

    actual = decoder(Anything)(CODEC.encode("anything", None, Anything(value=1))).timestamp

    assert before <= actual <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2026, 11, 22), "timestamp 2026-11-22T00:00:00 has no time zone; use datetime.now(UTC)"),  # noqa: DTZ001
        (datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=2))), "date value out of range"),
    ],
)
def test_a_timestamp_that_has_no_utc_is_refused(at: datetime, expected: str) -> None:
    with pytest.raises(PermanentError) as refused:
        CODEC.encode("anything", at, Anything(value=1))

    assert str(refused.value) == f"anything: can't be written as JSON: {expected}"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-11-22T22:37:07Z", AT),
        ("2026-11-22T22:37:07.000000Z", AT),
        ("2026-11-22T22:37:07+00:00", AT),
        ("2026-11-22T22:37:07-00:00", AT),
        ("2026-11-23T00:37:07+02:00", AT),
        ("2026-11-22t22:37:07z", AT),
        ("2026-11-22T22:37:07.123456789Z", AT.replace(microsecond=123_457)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("0001-01-01T02:00:00+02:00", datetime(1, 1, 1, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize(("cls", "payload"), [(OrderPlaced, '{"order_id":"a"}'), (AnyEvent, "{}"), (RefundAsked, '{"orderId":"a"}')])
def test_a_timestamp_of_any_offset_is_read_in_utc(cls: Any, payload: str, written: str, expected: datetime) -> None:
    actual = decoder(cls)(value_of(payload, timestamp=written)).timestamp

    assert (actual, actual.tzinfo) == (expected, UTC)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("2026-11-22T22:37:07", "expected datetime with a timezone component, got str '2026-11-22T22:37:07'"),
        ("10000-01-01T00:00:00Z", "invalid RFC3339 encoded datetime, got str '10000-01-01T00:00:00Z'"),
        ("2016-12-31T23:59:60Z", "invalid RFC3339 encoded datetime, got str '2016-12-31T23:59:60Z'"),
        ("0001-01-01T00:00:00+02:00", "expected a time from year 1 to 9999 in UTC, got 0001-01-01T00:00:00+02:00"),
        ("9999-12-31T23:59:59-02:00", "expected a time from year 1 to 9999 in UTC, got 9999-12-31T23:59:59-02:00"),
        ("yesterday", "invalid RFC3339 encoded datetime, got str 'yesterday'"),
        ("", "invalid RFC3339 encoded datetime, got str ''"),
    ],
)
@pytest.mark.parametrize(("cls", "payload"), [(OrderPlaced, '{"order_id":"a"}'), (AnyEvent, "{}"), (RefundAsked, '{"orderId":"a"}')])
def test_a_timestamp_that_is_none_is_refused(cls: Any, payload: str, written: str, expected: str) -> None:
    actual = complaint(cls, value_of(payload, timestamp=written))

    assert actual == f"envelope: timestamp: {expected}"


# ---- reading --------------------------------------------------------------------------------------------------------


def test_a_typed_event_is_read() -> None:
    actual = decoder(OrderPlaced)(value_of('{"order_id":"o-1","lines":[{"sku":"a","price":3}]}'))

    assert actual == Envelope("order.placed", AT, OrderPlaced(order_id="o-1", lines=[Line("a", 3)]))


def test_a_dataclass_event_is_read() -> None:
    actual = decoder(StockReserved)(value_of('{"sku":"a","lines":[{"sku":"a","price":3}]}', "stock.reserved"))

    assert actual == Envelope("stock.reserved", AT, StockReserved(sku="a", lines=(Line("a", 3),)))


def test_a_pydantic_event_is_read_by_its_aliases() -> None:
    actual = decoder(RefundAsked)(value_of('{"orderId":"o-1","lines":[{"sku":"a","price":3}]}', "refund.asked"))

    assert actual == Envelope("refund.asked", AT, RefundAsked(orderId="o-1", lines=[PydanticLine(sku="a", price=3)]))


def test_any_event_is_read_as_its_fields() -> None:
    actual = decoder(AnyEvent)(value_of('{"a":[1,{"b":null}]}', "whatever"))

    assert actual == Envelope("whatever", AT, AnyEvent(fields={"a": [1, {"b": None}]}))


@pytest.mark.parametrize("cls", [OrderPlaced, RefundAsked, AnyEvent])
def test_unknown_fields_of_the_envelope_are_ignored(cls: Any) -> None:
    value = b'{"x":[{}],"type":"t","timestamp":"2026-11-22T22:37:07Z","payload":{"order_id":"a","orderId":"a"},"y":1}'

    actual = decoder(cls)(value).type

    assert actual == "t"


@pytest.mark.parametrize(("cls", "payload"), [(OrderPlaced, '{"order_id":"a","new":1}'), (RefundAsked, '{"orderId":"a","new":1}')])
def test_unknown_fields_of_the_payload_are_ignored(cls: Any, payload: str) -> None:
    actual = decoder(cls)(value_of(payload)).payload.order_id

    assert actual == "a"


def test_the_order_of_the_fields_is_free() -> None:
    value = b' {\n"payload" : {"order_id":"a"}, "timestamp":"2026-11-22T22:37:07Z",\t"type":"order.placed"} '

    actual = decoder(OrderPlaced)(value)

    assert actual == Envelope("order.placed", AT, OrderPlaced(order_id="a"))


def test_whose_type_it_is_is_not_looked_at() -> None:
    actual = decoder(OrderPlaced)(value_of('{"order_id":"a"}', "order.amended")).type

    assert actual == "order.amended"


def test_the_type_is_read_without_the_rest() -> None:
    actual = CODEC.event_type(b'{"payload":17,"type":"order.placed","timestamp":null}')

    assert actual == "order.placed"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "value: empty; a tombstone is null, not empty"),
        (b"nonsense", "value: not JSON: JSON is malformed: invalid character (byte 4)"),
        (b"[]", "envelope: expected object, got array of 0"),
        (b"{}", "envelope: missing required field type"),
        (b'{"type":7}', "envelope: type: expected str, got int 7"),
        (b'{"type":"\xff"}', "value: not JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)
def test_a_type_that_cannot_be_read_is_a_decode_error(value: bytes, expected: str) -> None:
    with pytest.raises(DecodeError) as refused:
        CODEC.event_type(value)

    assert str(refused.value) == expected


def test_a_field_that_json_cannot_hold_is_refused_before_the_first_event() -> None:
    unreadable: Any = event_with(list[int] | tuple[int, ...])

    with pytest.raises(ConfigurationError) as refused:
        decoder(unreadable)

    assert str(refused.value).startswith("event Single: it can't be read from JSON: Type unions may not contain more than one array-like")


def test_integers_of_any_size_are_read_exactly() -> None:
    payload = '{"a":123456789012345678901234567890,"b":-9223372036854775809}'

    actual = decoder(AnyEvent)(value_of(payload)).payload.fields

    assert actual == {"a": 123456789012345678901234567890, "b": -9223372036854775809}


# ---- what is said ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        ('{"order_id":"a","total_cents":"12.50"}', "total_cents: expected int, got str '12.50'"),
        ('{"order_id":"a","total_cents":12.5}', "total_cents: expected int, got float 12.5"),
        ('{"order_id":"a","total_cents":true}', "total_cents: expected int, got bool True"),
        ('{"order_id":"a","total_cents":null}', "total_cents: expected int, got null"),
        ('{"order_id":"a","total_cents":[1,2]}', "total_cents: expected int, got array of 2"),
        ('{"order_id":"a","total_cents":{"a":1}}', "total_cents: expected int, got object"),
        ('{"total_cents":1}', "missing required field order_id"),
        ('{"order_id":"a","lines":[{"sku":"a","price":1},{"sku":"b","price":"x"}]}', "lines[1].price: expected int, got str 'x'"),
        ('{"order_id":"a","lines":[{"sku":"a","price":1},{"sku":"b"}]}', "lines[1]: missing required field price"),
        ('{"order_id":"a","lines":[7]}', "lines[0]: expected object, got int 7"),
        ('{"order_id":"a","prices":{"a":1,"b.c":"x","d":2}}', "prices['b.c']: expected int, got str 'x'"),
        ('{"order_id":"a","prices":{"a":"x","b":"y"}}', "prices[...]: expected int, got str"),
        ('{"order_id":"a","total_cents":"' + "x" * 5_000 + '"}', f"total_cents: expected int, got str '{'x' * 38}…"),
        ('{"order_id":"a","total_cents":' + "9" * 1_000 + ".5}", "total_cents: number out of range"),
        ("null", "expected object, got null"),
        ("[]", "expected object, got array of 0"),
        ("3", "expected object, got int 3"),
    ],
)
def test_a_payload_of_the_wrong_shape_is_named_by_field_expectation_and_what_came(payload: str, expected: str) -> None:
    actual = complaint(OrderPlaced, value_of(payload))

    assert actual == f"payload of order.placed: {expected}"


class Cat(msgspec.Struct, tag="cat"):
    age: int


class Dog(msgspec.Struct, tag="dog"):
    age: int


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (Colour, '"blue"', "value: invalid enum value 'blue'"),
        (Colour, f'"{"b" * 5_000}"', f"value: invalid enum value '{'b' * 38}…"),
        (Colour, "3", "value: expected str, got int 3"),
        (Literal["a", "b"], '"c"', "value: invalid enum value 'c'"),
        (int | None, '"x"', "value: expected int | null, got str 'x'"),
        (Annotated[int, msgspec.Meta(ge=0)], "-1", "value: expected int >= 0, got int -1"),
        (Annotated[str, msgspec.Meta(max_length=3)], '"abcd"', "value: expected str of length <= 3, got str 'abcd'"),
        (Annotated[str, msgspec.Meta(pattern="^a$")], '"b"', "value: expected str matching regex '^a$', got str 'b'"),
        (tuple[int, int], "[1]", "value: expected array of length 2, got array of 1"),
        (dict[int, str], '{"x":"a"}', "value: key: expected int, got str"),
        (dict[str, dict[str, list[int]]], '{"a":{"b":[1,"x"]}}', "value['a']['b'][1]: expected int, got str 'x'"),
        (Cat | Dog, '{"type":"cow"}', "value.type: invalid value 'cow'"),
        (Cat | Dog, '{"age":1}', "value: missing required field type"),
        (Cat | Dog, '{"type":"cat","age":"x"}', "value.age: expected int, got str 'x'"),
        (datetime, '"x"', "value: invalid RFC3339 encoded datetime, got str 'x'"),
        (timedelta, '"P99999999999999D"', "value: duration is out of range, got str 'P99999999999999D'"),
        (timedelta, "99999999999999999999", "value: expected duration, got int 99999999999999999999"),
        (UUID, '"x"', "value: invalid UUID, got str 'x'"),
        (bytes, '"!"', "value: invalid base64 encoded string, got str '!'"),
        (Decimal, '"x"', "value: invalid decimal string, got str 'x'"),
        (complex, "3", "value: expected complex, got int 3"),
    ],
)
def test_each_kind_of_mismatch_is_named(annotation: Any, value: str, expected: str) -> None:
    actual = complaint(event_with(annotation), value_of(f'{{"value":{value}}}', "single"))

    assert actual == f"payload of single: {expected}"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            '{"orderId":"a","total_cents":"12.50"}',
            "total_cents: expected a valid integer, unable to parse string as an integer, got str '12.50'",
        ),
        ('{"orderId":7}', "orderId: expected a valid string, got int 7"),
        ('{"orderId":null}', "orderId: expected a valid string, got null"),
        ("{}", "missing required field orderId"),
        ('{"orderId":"a","lines":[{"sku":"a","price":1},{"sku":"b"}]}', "lines[1]: missing required field price"),
        (
            '{"orderId":"a","lines":[{"sku":"a","price":[]}]}',
            "lines[0].price: expected a valid integer, got array of 0",
        ),
        (
            '{"orderId":"a","prices":{"b":"x"}}',
            "prices.b: expected a valid integer, unable to parse string as an integer, got str 'x'",
        ),
        ('{"orderId":"a","total_cents":-1}', "total_cents: value error, Too little, got int -1"),
        ('{"orderId":"a","total_cents":-2}', "refused by its class: KeyError: 'limit'"),
        ('{"orderId":"a","amount":1e999}', "amount: expected a finite number, got float inf"),
        ('{"orderId":' + "9" * 4_000 + "}", "orderId: expected a valid string, got int of 13288 bits"),
        ("null", "expected an object, got null"),
    ],
)
def test_pydantics_complaints_are_named_the_same_way(payload: str, expected: str) -> None:
    actual = complaint(RefundAsked, value_of(payload, "refund.asked"))

    assert actual == f"payload of refund.asked: {expected}"


def test_pydantics_shown_values_are_short() -> None:
    actual = complaint(RefundAsked, value_of('{"orderId":"a","total_cents":"' + "x" * 5_000 + '"}', "refund.asked"))

    assert actual.endswith(f"got str '{'x' * 38}…")


def test_pydantics_own_error_does_not_hang_on() -> None:
    with pytest.raises(DecodeError) as refused:
        decoder(RefundAsked)(value_of("{}", "refund.asked"))

    actual = (refused.value.__cause__, refused.value.__context__)

    assert actual == (None, None)


@pytest.mark.parametrize("count", [1_001, 50_000])
def test_a_thousand_complaints_are_counted_and_not_listed(count: int) -> None:
    lines = ",".join(["7"] * count)

    actual = complaint(RefundAsked, value_of(f'{{"orderId":"a","lines":[{lines}]}}', "refund.asked"))

    assert actual == f"payload of refund.asked: {count} fields and items are not as declared"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [("null", "expected object, got null"), ("[]", "expected object, got array of 0"), ("3", "expected object, got int 3")],
)
def test_any_event_needs_an_object(payload: str, expected: str) -> None:
    actual = complaint(AnyEvent, value_of(payload))

    assert actual == f"payload: {expected}"


@pytest.mark.parametrize("cls", [OrderPlaced, RefundAsked, AnyEvent])
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"null", "envelope: expected object, got null"),
        (b"3", "envelope: expected object, got int 3"),
        (b"{}", "envelope: missing required field type"),
        (b'{"type":"a"}', "envelope: missing required field timestamp"),
        (b'{"type":"a","timestamp":"2026-11-22T22:37:07Z"}', "envelope: missing required field payload"),
        (b'{"type":3}', "envelope: type: expected str, got int 3"),
        (b'{"type":"a","timestamp":5,"payload":{}}', "envelope: timestamp: expected datetime, got int 5"),
        (b'{"type":"a","timestamp":null,"payload":{}}', "envelope: timestamp: expected datetime, got null"),
    ],
)
def test_an_envelope_of_the_wrong_shape_is_named(cls: Any, value: bytes, expected: str) -> None:
    actual = complaint(cls, value)

    assert actual == expected


class Guarded(Event, type="guarded", topic="t", key=None):
    value: int

    def __post_init__(self) -> None:
        reasons: dict[int, Callable[[], object]] = {
            0: lambda: _raise(ValueError()),
            1: lambda: _raise(ValueError("Too `little`, got lost - at `foo` in `$.bar`")),
            2: lambda: _raise(KeyError("limit")),
            3: lambda: _raise(AssertionError("never")),
            4: lambda: 1 // 0,
            5: lambda: _raise(RuntimeError("\x1b[2J" + "x" * 10_000)),
        }
        reasons.get(self.value, bool)()


def _raise(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "refused by its class"),
        (1, "too little, got lost - at foo in $.bar"),
        (2, "refused by its class: KeyError: 'limit'"),
        (3, "refused by its class: AssertionError: never"),
        (4, "refused by its class: ZeroDivisionError: integer division or modulo by zero"),
    ],
)
def test_whatever_a_class_raises_of_its_own_is_a_decode_error(value: int, expected: str) -> None:
    actual = complaint(Guarded, value_of(f'{{"value":{value}}}', "guarded"))

    assert actual == f"payload of guarded: {expected}"


def test_whatever_a_class_says_is_short_and_printable() -> None:
    actual = complaint(Guarded, value_of('{"value":5}', "guarded"))

    assert (len(actual) < 500, actual.startswith(r"payload of guarded: refused by its class: RuntimeError: \x1b[2Jxxx")) == (True, True)


def test_running_out_of_memory_is_not_the_producers_fault() -> None:
    class Hungry(Event, type="hungry", topic="t", key=None):
        def __post_init__(self) -> None:
            raise MemoryError

    read = decoder(Hungry)

    with pytest.raises(MemoryError):
        read(value_of("{}", "hungry"))


def test_a_forged_type_cannot_act_on_a_terminal_or_fill_it() -> None:
    forged = orjson.dumps({"type": "\x1b[2J" * 1_000, "timestamp": "0001-01-01T00:00:00+02:00", "payload": {}})

    with pytest.raises(DecodeError) as refused:
        decoder(AnyEvent)(forged)

    shown = refused.value.event_type or ""
    assert (shown[:14], len(shown) < 500, shown.isprintable()) == (r"\x1b[2J\x1b[2J", True, True)


def test_a_long_value_is_not_read_again_to_explain_it() -> None:
    value = value_of('{"total_cents":"x","order_id":"' + "a" * 1_000_000 + '"}')
    tracemalloc.start()

    actual = complaint(OrderPlaced, value)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (actual, peak_bytes < 500_000) == ("payload of order.placed: total_cents: expected int, got str", True)
