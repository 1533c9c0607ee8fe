"""What stands on the wire of a flow of three steps, read without choreo?"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import orjson
import pytest

from choreo import Context, Emit, Envelope, Event, Handler, MemoryStore
from choreo.envelope import child_id
from choreo.record import Record
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Paid, Placed, placed

pytestmark = pytest.mark.kafka

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
FIRST: list[tuple[str, bytes | None]] = [
    ("choreo-id", b"root-1"),
    ("choreo-correlation-id", b"flow-1"),
    ("choreo-source", b"orders/http"),
    ("traceparent", f"00-{TRACE}-00f067aa0ba902b7-01".encode()),
    ("tracestate", b"vendor=1"),
    ("baggage", b"tenant=acme,locale=de"),
    ("content-type", b"application/json"),
    ("x-mine", b"stays here"),
]
OWN_HEADERS = [
    "choreo-id",
    "choreo-causation-id",
    "choreo-correlation-id",
    "choreo-source",
    "traceparent",
    "content-type",
    "tracestate",
    "baggage",
]


class Shipped(Event, type="order.shipped", topic="shipped", key="order_id", version=2):
    order_id: str
    parcel: int


class Charge(Handler[Placed]):
    async def handle(self, event: Envelope[Placed], context: Context) -> Paid:
        return Paid(order_id=event.payload.order_id, note=context.baggage["tenant"])


class Ship(Handler[Paid]):
    async def handle(self, event: Envelope[Paid], context: Context) -> list[Shipped | Emit[Shipped]]:
        order_id = event.payload.order_id
        parcels = [Shipped(order_id=order_id, parcel=number) for number in (1, 2)]
        return [*parcels, Emit(Shipped(order_id=order_id, parcel=3), id_key="third", headers={"x-parcel": "3"})]


class Deliver(Handler[Shipped]):
    def __init__(self) -> None:
        self.seen: list[tuple[int, Context]] = []

    async def handle(self, event: Envelope[Shipped], context: Context) -> None:
        self.seen.append((event.payload.parcel, context))


async def test_each_step_of_a_flow_names_its_cause_its_flow_its_source_and_its_trace(ground: Ground) -> None:
    ground.make(orders=1, paid=1, shipped=1)
    ground.put("orders", Sent(placed("o-1"), b"o-1", FIRST))
    deliver = Deliver()

    await ground.run(ground.service(Charge(), Ship(), deliver))

    (paid,), shipped = ground.records("paid"), ground.records("shipped")
    paid_id = child_id("root-1", "payments", "charge", "", "order.paid", "o-1", "0")
    parcels = [child_id(paid_id, "payments", "ship", "", "order.shipped", "o-1", nth) for nth in ("0", "1", "third")]
    assert sorted(name for name, _ in paid.headers) == sorted(OWN_HEADERS)
    assert ids_of(paid) == (paid_id, "root-1", "flow-1", "payments/charge")
    assert [ids_of(record) for record in shipped] == [(parcel, paid_id, "flow-1", "payments/ship") for parcel in parcels]
    everything = [headers_of(record) for record in (paid, *shipped)]
    assert {headers["baggage"] for headers in everything} == {"tenant=acme,locale=de"}
    assert {headers["tracestate"] for headers in everything} == {"vendor=1"}
    assert {headers["content-type"] for headers in everything} == {"application/json"}
    assert [headers.get("choreo-version") for headers in everything] == [None, "2", "2", "2"]
    assert [headers.get("x-parcel") for headers in everything] == [None, None, None, "3"]
    assert [headers.get("x-mine") for headers in everything] == [None] * 4
    spans = [re.fullmatch(f"00-{TRACE}-([0-9a-f]{{16}})-01", headers["traceparent"]) for headers in everything]
    assert len({span and span[1] for span in spans} - {None}) == 4
    assert [(parcel, context.cause_id, context.flow_id, context.source) for parcel, context in deliver.seen] == [
        (number, paid_id, "flow-1", "payments/ship") for number in (1, 2, 3)
    ]


async def test_a_value_on_the_wire_has_exactly_three_fields_and_a_utc_time_of_now(ground: Ground) -> None:
    ground.make(orders=1, paid=1, shipped=1)
    ground.put("orders", Sent(placed("o-1"), b"o-1", FIRST))

    await ground.run(ground.service(Charge(), Ship()))

    (paid,), shipped = ground.records("paid"), ground.records("shipped")
    values = [orjson.loads(record.value or b"") for record in (paid, *shipped)]
    assert [list(value) for value in values] == [["type", "timestamp", "payload"]] * 4
    assert values[0]["payload"] == {"order_id": "o-1", "note": "acme"}
    assert [value["type"] for value in values] == ["order.paid", *["order.shipped"] * 3]
    assert [bool(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", value["timestamp"])) for value in values] == [True] * 4
    assert abs((datetime.now(UTC) - datetime.fromisoformat(values[0]["timestamp"])).total_seconds()) < 60


async def test_an_event_that_starts_a_flow_without_a_trace_gets_one_that_its_children_share(ground: Ground) -> None:
    ground.make(orders=1, paid=1, shipped=1)
    ground.put("orders", Sent(placed("o-1"), b"o-1", [("baggage", b"tenant=acme")]))
    deliver = Deliver()

    await ground.run(ground.service(Charge(), Ship(), deliver))

    flow_id = deliver.seen[0][1].flow_id
    traces = {headers_of(record)["traceparent"][3:35] for record in (*ground.records("paid"), *ground.records("shipped"))}
    assert traces == {flow_id.replace("-", "")}


async def test_the_ids_of_children_are_the_same_when_their_event_is_handled_again(ground: Ground) -> None:
    ground.make(orders=1, paid=1, shipped=1)
    ground.put("orders", *(Sent(placed(f"o-{number}"), b"o-%d" % number, FIRST[4:6]) for number in range(20)))
    await ground.run(ground.service(Charge(), Ship(), store=MemoryStore()))
    once = [ids_of(record) for record in ground.records("shipped")]

    await ground.read_again("orders")
    await ground.run(ground.service(Charge(), Ship(), store=MemoryStore()))

    both = [ids_of(record) for record in ground.records("shipped")]
    assert len(once) == len(set(once)) == 60
    assert sorted(both[60:]) == sorted(once)


def headers_of(record: Record) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in record.headers}


def ids_of(record: Record) -> tuple[str, ...]:
    headers = headers_of(record)
    return tuple(headers[f"choreo-{name}"] for name in ("id", "causation-id", "correlation-id", "source"))
