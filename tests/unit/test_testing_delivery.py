"""Does `delivery` hand a handler what the runtime would?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import assert_type
from uuid import UUID

import pytest

from choreo.envelope import Envelope
from choreo.errors import DecodeError, PermanentError
from choreo.events import DataclassEvent, Event, Tombstone
from choreo.handler import Context, Handler
from choreo.pydantic import PydanticEvent
from choreo.testing import delivery


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int


class StockCounted(Event, type="stock.counted", topic="stock", key=None, version=3):
    amounts: tuple[int, ...]
    price: Decimal


@dataclass(frozen=True)
class PaymentReceived(DataclassEvent, type="payment.received", topic="payments", key="order_number"):
    order_number: int


class ParcelSent(PydanticEvent, type="parcel.sent", topic="shipping", key="order_id"):
    order_id: str
    weight_kg: float = 1.5


class ParcelWeighed(Event, type="parcel.weighed", topic="shipping", key=None):
    weight_kg: float


class Connection:
    """Stands for a database's connection."""


class ChargeCard(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived:
        return PaymentReceived(order_number=event.payload.total_cents)


PLACED = OrderPlaced(order_id="o-1", total_cents=500)


def test_the_envelope_has_the_type_the_time_and_the_payload() -> None:
    before = datetime.now(UTC)

    event, _ = delivery(PLACED)

    assert (event.type, event.payload) == ("order.placed", PLACED)
    assert before <= event.timestamp <= datetime.now(UTC)
    assert event.timestamp.utcoffset() == timedelta(0)


async def test_a_handler_is_called_with_it() -> None:
    event, context = delivery(PLACED)

    emitted = await ChargeCard().handle(event, context)

    assert emitted == PaymentReceived(order_number=500)


def test_the_payload_went_over_the_wire_and_back() -> None:
    sent = StockCounted(amounts=(1, 2), price=Decimal("12.50"))

    event, context = delivery(sent)

    assert event.payload == sent
    assert event.payload is not sent
    assert context.headers["choreo-version"] == "3"
    assert context.key is None


def test_a_dataclass_is_delivered() -> None:
    event, context = delivery(PaymentReceived(order_number=17))

    assert (event.type, event.payload, context.key) == ("payment.received", PaymentReceived(order_number=17), "17")


def test_a_pydantic_model_is_delivered() -> None:
    event, context = delivery(ParcelSent(order_id="o-1"))

    assert (event.type, event.payload, context.key) == ("parcel.sent", ParcelSent(order_id="o-1", weight_kg=1.5), "o-1")


def test_a_tombstone_is_delivered_as_a_record_without_a_value() -> None:
    gone = Tombstone(of=OrderPlaced, key="o-1")

    event, context = delivery(gone)

    assert (event.type, event.payload) == ("order.placed", gone)
    assert (context.key, context.origin.topic) == ("o-1", "orders")
    assert "content-type" not in context.headers
    assert event.timestamp == context.origin.timestamp


def test_the_context_knows_where_the_record_stands() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)

    _, context = delivery(PLACED)

    assert str(context.origin) == "orders[0]@0"
    assert context.origin.timestamp is not None
    assert before <= context.origin.timestamp <= datetime.now(UTC)
    assert context.key == "o-1"


def test_the_first_event_of_a_flow_begins_it() -> None:
    _, context = delivery(PLACED)

    assert UUID(context.event_id).version == 7
    assert context.flow_id == context.event_id
    assert (context.cause_id, context.source, context.replay) == (None, None, None)


def test_two_deliveries_are_two_events_unless_they_are_given_one_id() -> None:
    _, first = delivery(PLACED)
    _, second = delivery(PLACED)
    _, third = delivery(PLACED, event_id=first.event_id)

    assert first.event_id != second.event_id
    assert third.event_id == first.event_id
    assert third.idempotency_key() == first.idempotency_key() != second.idempotency_key()


def test_a_retry_has_the_same_idempotency_key() -> None:
    _, first = delivery(PLACED, event_id="e-1")
    _, third = delivery(PLACED, event_id="e-1", attempt=3)

    assert (first.attempt, third.attempt, third.max_attempts) == (1, 3, 3)
    assert third.idempotency_key("charge") == first.idempotency_key("charge") != first.idempotency_key("refund")


def test_an_attempt_over_the_default_raises_the_limit_with_it() -> None:
    _, context = delivery(PLACED, attempt=7)

    assert (context.attempt, context.max_attempts) == (7, 7)


def test_headers_make_the_context() -> None:
    headers = {
        "choreo-correlation-id": "flow-1",
        "choreo-causation-id": "e-0",
        "choreo-source": "orders/place-order",
        "baggage": "tenant=acme,locale=de%20AT",
        "x-team": "größe",
    }

    _, context = delivery(PLACED, headers=headers, event_id="e-1")

    assert (context.event_id, context.flow_id, context.cause_id, context.source) == ("e-1", "flow-1", "e-0", "orders/place-order")
    assert context.baggage == {"tenant": "acme", "locale": "de AT"}
    assert context.headers == {"choreo-id": "e-1", "content-type": "application/json", **headers}


def test_an_id_among_the_headers_is_the_events_unless_one_is_given() -> None:
    _, from_headers = delivery(PLACED, headers={"choreo-id": "e-1"})
    _, given = delivery(PLACED, headers={"choreo-id": "e-1"}, event_id="e-2")

    assert (from_headers.event_id, given.event_id) == ("e-1", "e-2")
    assert given.headers["choreo-id"] == "e-2"


def test_a_transaction_is_handed_on() -> None:
    connection = Connection()

    _, context = delivery(PLACED, transaction=connection)
    _, without = delivery(PLACED)

    assert context.transaction is connection
    assert without.transaction is None


def test_a_payload_that_cannot_be_written_is_refused_at_once() -> None:
    with pytest.raises(PermanentError, match=r"parcel\.weighed"):
        delivery(ParcelWeighed(weight_kg=math.nan))


def test_a_payload_that_its_own_type_cannot_read_is_refused_at_once() -> None:
    with pytest.raises(DecodeError, match="total_cents"):
        delivery(OrderPlaced(order_id="o-1", total_cents="12.50"))  # type: ignore[arg-type]


def test_the_types_are_those_of_the_payload_and_the_transaction() -> None:
    assert_type(delivery(PLACED), tuple[Envelope[OrderPlaced], Context[None]])
    assert_type(delivery(PLACED, attempt=2, headers={}, event_id="e-1"), tuple[Envelope[OrderPlaced], Context[None]])
    assert_type(delivery(PLACED, transaction=Connection()), tuple[Envelope[OrderPlaced], Context[Connection]])
    assert_type(delivery(PaymentReceived(order_number=1)), tuple[Envelope[PaymentReceived], Context[None]])
    assert_type(delivery(ParcelSent(order_id="o-1")), tuple[Envelope[ParcelSent], Context[None]])
    assert_type(delivery(Tombstone(of=OrderPlaced, key="o-1")), tuple[Envelope[Tombstone[OrderPlaced]], Context[None]])
