"""The bytes and ids of the wire (DESIGN section 3), written down once.

They are never regenerated to pass. Events, claims and letters that are stored out there were made with them: another id for
the same child makes a replay a second event, another traceparent cuts a trace in two. A test that fails here says that the
code is wrong, or that the wire has a new version and an ADR.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import msgspec
import pytest

from choreo.codec import JsonCodec
from choreo.envelope import child_id, child_traceparent, derived_id, plain_id, read_wire, root_trace_id
from choreo.events import DataclassEvent, Event, EventLike
from choreo.handler import Context, Replay
from choreo.pydantic import PydanticEvent
from choreo.record import Record

PARENT = "0198c2d4-7b1e-7c3a-9d1f-0123456789ab"
AT = datetime(2026, 11, 22, 22, 37, 7, 123_456, tzinfo=UTC)


class Line(msgspec.Struct):
    sku: str
    price: Decimal


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int
    ratio: float
    paid: bool
    note: str | None
    due: date
    customer: UUID
    signature: bytes
    lines: list[Line]
    stock: dict[int, str]


@dataclass(frozen=True)
class StockReserved(DataclassEvent, type="stock.reserved", topic="stock", key="sku"):
    sku: str
    amount: int


class RefundAsked(PydanticEvent, type="refund.asked", topic="payments", key="order_id"):
    order_id: str
    amount: Decimal


ORDER = OrderPlaced(
    order_id="o-1",
    total_cents=1250,
    ratio=0.1,
    paid=True,
    note=None,
    due=date(2026, 12, 24),
    customer=UUID(int=1),
    signature=b"\x00\xff",
    lines=[Line(sku='Gl\u00fchwein "5" \u2028\U0001f381', price=Decimal("12.50"))],
    stock={7: "a/b\\c\n"},
)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            ORDER,
            b'{"type":"order.placed","timestamp":"2026-11-22T22:37:07.123456Z","payload":'
            b'{"order_id":"o-1","total_cents":1250,"ratio":0.1,"paid":true,"note":null,"due":"2026-12-24",'
            b'"customer":"00000000-0000-0000-0000-000000000001","signature":"AP8=",'
            b'"lines":[{"sku":"Gl\xc3\xbchwein \\"5\\" \xe2\x80\xa8\xf0\x9f\x8e\x81","price":"12.50"}],"stock":{"7":"a/b\\\\c\\n"}}}',
        ),
        (
            StockReserved(sku="a", amount=-(2**63)),
            b'{"type":"stock.reserved","timestamp":"2026-11-22T22:37:07.123456Z","payload":{"sku":"a","amount":-9223372036854775808}}',
        ),
        (
            RefundAsked(order_id="o-1", amount=Decimal("12.50")),
            b'{"type":"refund.asked","timestamp":"2026-11-22T22:37:07.123456Z","payload":{"order_id":"o-1","amount":"12.50"}}',
        ),
    ],
)
def test_an_envelope_has_these_bytes(event: EventLike, expected: bytes) -> None:
    actual = JsonCodec().encode(event.__event__.type, AT, event)

    assert actual == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), b"2026-01-02T03:04:05.000000Z"),
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=-5, minutes=-30))), b"2026-01-02T08:34:05.000006Z"),
        (datetime(999, 1, 2, tzinfo=UTC), b"0999-01-02T00:00:00.000000Z"),
    ],
)
def test_a_timestamp_has_these_bytes(at: datetime, expected: bytes) -> None:
    actual = JsonCodec().encode("stock.reserved", at, StockReserved(sku="a", amount=1))

    assert actual == b'{"type":"stock.reserved","timestamp":"' + expected + b'","payload":{"sku":"a","amount":1}}'


@pytest.mark.parametrize(
    ("run", "key", "nth", "expected"),
    [
        ("", "o-1", "0", "2d674bfa-e608-532b-b73b-53d31ef67154"),
        ("", "o-1", "1", "61f3c8d6-190d-520c-955d-6d4cea7b565e"),
        ("7f3a", "o-1", "0", "b0f62b1a-2b0c-58e8-a495-da94f46c5f5f"),
        ("", "", "0", "bd3b7ba4-920e-5b7f-b458-002c80f89bb1"),
        ("", "Gr\u00fc\u00dfe \U0001f381", "gift", "86350ffa-5298-559e-8e32-22403e49e077"),
    ],
)
def test_a_child_has_this_id(run: str, key: str, nth: str, expected: str) -> None:
    actual = child_id(PARENT, "payments", "charge-card", run, "payment.received", key, nth)

    assert actual == expected


@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("checkout", "cart-17"), "26b96145-efa7-5979-ac76-652c8d95fa23"), (("a", 1), "64a783b5-038f-57a2-8822-fa0a94cb70ae")],
)
def test_derived_parts_have_this_id(parts: tuple[object, ...], expected: str) -> None:
    actual = derived_id(*parts)

    assert actual == expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (Record("orders", 3, 1842, 1_795_390_627_123, b"o-1", b"{}"), "9b0c27a4-4376-5608-b723-e71e12adf399"),
        (Record("orders", 3, 1842, -1, None, None), "b2d3a813-7f88-5058-96de-54e1ce81313e"),
        (Record("orders", 0, 0, 0, b"", b""), "06f1d2bb-2e47-54d8-b1a0-136318c7274d"),
    ],
)
def test_a_plain_event_has_this_id(record: Record, expected: str) -> None:
    actual = plain_id(record)

    assert actual == expected


@pytest.mark.parametrize(
    ("parent", "flow", "event", "expected"),
    [
        (None, PARENT, PARENT, "00-0198c2d47b1e7c3a9d1f0123456789ab-9d1f0123456789ab-00"),
        (
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            PARENT,
            "2d674bfa-e608-532b-b73b-53d31ef67154",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-b73b53d31ef67154-01",
        ),
        (None, "order 7", "event 7", "00-0fc89f8ae19394b48debd6353bb9ad33-15e98ed480b8f8ba-00"),
    ],
)
def test_a_child_has_this_traceparent(parent: str | None, flow: str, event: str, expected: str) -> None:
    actual = child_traceparent(parent, flow, event)

    assert actual == expected


@pytest.mark.parametrize(
    ("flow", "expected"),
    [(PARENT, "0198c2d47b1e7c3a9d1f0123456789ab"), ("order 7", "0fc89f8ae19394b48debd6353bb9ad33")],
)
def test_a_flow_has_this_trace(flow: str, expected: str) -> None:
    actual = root_trace_id(flow)

    assert actual == expected


@pytest.mark.parametrize(
    ("purpose", "replay", "expected"),
    [
        ("", None, "2dbb54afb51a7cb6aebdb455d854fb2a"),
        ("mail", None, "3f9e8057c4d3fccf02f0fc457710cee8"),
        ("", Replay(run="7f3a", by="ana", reason="fixed"), "2dbb54afb51a7cb6aebdb455d854fb2a"),
        ("", Replay(run="7f3a", by="ana", reason="again", forced=True), "8dedcc791945ca930f1c51bbfdb6aaa3"),
    ],
)
def test_a_delivery_has_this_idempotency_key(purpose: str, replay: Replay | None, expected: str) -> None:
    record = Record("orders", 3, 1842, 0, b"o-1", b"{}", (("choreo-id", PARENT.encode()),))
    context: Context = Context("payments", "charge-card", 1, 3, replay, None, record, read_wire(record))

    actual = context.idempotency_key(purpose)

    assert actual == expected
