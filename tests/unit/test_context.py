"""What a handler is told about the delivery it handles."""

from datetime import UTC, datetime
from typing import Any

import pytest

from choreo.envelope import read_wire
from choreo.errors import PermanentError
from choreo.events import Event
from choreo.handler import Context, Emit, Origin, Replay
from choreo.record import Headers, Record


class OrderShipped(Event, type="order.shipped", topic="shipping", key="order_id"):
    order_id: str


def context(
    *,
    key: bytes | None = b"o-1",
    headers: Headers = ((("choreo-id"), b"e-1"),),
    timestamp_ms: int = 0,
    service: str = "payments",
    handler: str = "charge-card",
    attempt: int = 1,
    replay: Replay | None = None,
) -> Context:
    record = Record("orders", 3, 1842, timestamp_ms, key, b"{}", headers)
    wire = read_wire(record)
    return Context(service, handler, attempt, 3, replay, None, record, wire)


def test_ids_come_from_the_headers() -> None:
    headers = [
        ("choreo-id", b"e-2"),
        ("choreo-causation-id", b"e-1"),
        ("choreo-correlation-id", b"f-1"),
        ("choreo-source", b"orders/place-order"),
    ]

    told = context(headers=headers)

    assert (told.event_id, told.cause_id, told.flow_id, told.source) == ("e-2", "e-1", "f-1", "orders/place-order")


def test_the_first_event_of_a_flow_has_no_cause_and_its_own_id_as_flow() -> None:
    told = context(headers=[("choreo-id", b"e-1")])

    assert (told.cause_id, told.flow_id, told.source) == (None, "e-1", None)


def test_a_context_cannot_be_changed() -> None:
    told: Any = context()

    with pytest.raises(AttributeError) as refused:
        told.attempt = 2

    assert str(refused.value) == "immutable type: 'Context'"


@pytest.mark.parametrize(("key", "expected"), [(b"o-1", "o-1"), (b"", ""), (None, None), (b"\xff1", "\ufffd1")])
def test_the_key_is_text_and_none_where_the_record_has_none(key: bytes | None, expected: str | None) -> None:
    actual = context(key=key).key

    assert actual == expected


@pytest.mark.parametrize(
    ("timestamp_ms", "expected"),
    [
        (1_795_390_627_123, datetime(2026, 11, 22, 23, 37, 7, 123_000, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (-1, None),
        (253_402_300_799_999, datetime(9999, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC)),
        (253_402_300_800_000, None),
        (2**63 - 1, None),
    ],
)
def test_the_origin_says_where_and_when(timestamp_ms: int, expected: datetime | None) -> None:
    actual = context(timestamp_ms=timestamp_ms).origin

    assert (actual, str(actual)) == (Origin("orders", 3, 1842, expected), "orders[3]@1842")


def test_headers_are_text() -> None:
    told = context(headers=[("x-tenant", b"acme"), ("x-empty", b""), ("x-null", None), ("x-binary", b"\xff")])

    actual = told.headers

    assert actual == {"x-tenant": "acme", "x-empty": ""}


def test_baggage_is_a_mapping() -> None:
    told = context(headers=[("baggage", b"tenant=acme, locale = de%2DDE ;ttl=3")])

    actual = told.baggage

    assert actual == {"tenant": "acme", "locale": "de-DE"}


def test_no_baggage_is_an_empty_mapping() -> None:
    actual = context(headers=[]).baggage

    assert actual == {}


# ---- idempotency keys -----------------------------------------------------------------------------------------------


def test_the_idempotency_key_is_the_same_on_every_attempt_and_replay() -> None:
    replay = Replay(run="7f3a", by="ana", reason="fixed")

    actual = {context(attempt=1).idempotency_key(), context(attempt=3).idempotency_key(), context(replay=replay).idempotency_key()}

    assert len(actual) == 1


def test_the_idempotency_key_does_not_ask_where_the_record_stands() -> None:
    first = context()
    record = Record("orders", 5, 7, 99, b"o-1", b"{}", (("choreo-id", b"e-1"),))
    mirrored: Context = Context("payments", "charge-card", 1, 3, None, None, record, read_wire(record))

    actual = mirrored.idempotency_key()

    assert actual == first.idempotency_key()


def test_a_forced_replay_has_an_idempotency_key_of_its_own_for_each_run() -> None:
    runs = [Replay(run=run, by="ana", reason="again", forced=True) for run in ("7f3a", "7f3b")]

    actual = {context().idempotency_key(), *(context(replay=run).idempotency_key() for run in runs)}

    assert len(actual) == 3


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (context(), context(service="stock")),
        (context(), context(handler="book-payment")),
        (context(), context(headers=[("choreo-id", b"e-2")])),
        (context(service="ab", handler="c"), context(service="a", handler="bc")),
    ],
)
def test_other_events_handlers_and_services_have_other_keys(one: Context, other: Context) -> None:
    actual = one.idempotency_key() == other.idempotency_key()

    assert actual is False


def test_a_purpose_tells_two_calls_of_one_handler_apart() -> None:
    told = context()

    actual = {told.idempotency_key(), told.idempotency_key("charge"), told.idempotency_key("mail")}

    assert len(actual) == 3


# ---- Emit -----------------------------------------------------------------------------------------------------------


def test_an_emit_says_nothing_more_than_its_event_unless_told() -> None:
    event = OrderShipped(order_id="o-1")

    actual = Emit(event)

    assert actual == Emit(event=event, key=None, topic=None, headers={}, id_key=None)


def test_all_but_the_event_is_said_by_keyword() -> None:
    make: Any = Emit

    with pytest.raises(TypeError) as refused:
        make(OrderShipped(order_id="o-1"), "o-2")

    assert str(refused.value) == "Extra positional arguments provided"


@pytest.mark.parametrize("name", ["choreo-id", "choreo-attempt"])
def test_a_header_of_choreos_own_is_refused(name: str) -> None:
    with pytest.raises(PermanentError) as refused:
        Emit(OrderShipped(order_id="o-1"), headers={"x-tenant": "acme", name: "1"})

    assert str(refused.value) == f"Emit: header {name!r}; names that begin with choreo- are choreo's own, use another"
