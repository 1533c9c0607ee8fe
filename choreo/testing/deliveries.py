"""How is a handler called without a broker? `delivery` makes what the runtime would hand it: an envelope and its context."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, overload

from typing_extensions import TypeVar

from choreo.codec import JsonCodec
from choreo.core.retry import RetryPolicy
from choreo.envelope import CONTENT_TYPE, ID, JSON, VERSION, Envelope, new_id, read_wire
from choreo.events import EventLike, EventSpec, Tombstone, key_of
from choreo.handler import Context
from choreo.record import Record

P = TypeVar("P", bound="EventLike | Tombstone[Any]")
T = TypeVar("T")

SERVICE = "testing"
HANDLER = "delivery"
_NO_HEADERS: Mapping[str, str] = {}
_codec = JsonCodec()


@overload
def delivery(
    payload: P, *, attempt: int = 1, headers: Mapping[str, str] = _NO_HEADERS, event_id: str | None = None
) -> tuple[Envelope[P], Context[None]]: ...


@overload
def delivery(
    payload: P, *, transaction: T, attempt: int = 1, headers: Mapping[str, str] = _NO_HEADERS, event_id: str | None = None
) -> tuple[Envelope[P], Context[T]]: ...


def delivery(
    payload: P, *, transaction: Any = None, attempt: int = 1, headers: Mapping[str, str] = _NO_HEADERS, event_id: str | None = None
) -> tuple[Envelope[P], Context[Any]]:
    """What ``handle`` is given for `payload`: ``await ChargeCard(gateway).handle(*delivery(OrderPlaced(order_id="o-1", ...)))``.

    The payload goes through JSON and back, as it would over Kafka: what can't be written raises PermanentError here, what
    can't be read DecodeError. `headers` are added, and go before choreo's own: ``{"baggage": "tenant=acme"}``,
    ``{"choreo-source": "orders/place-order"}``. The context says service ``testing``, handler ``delivery``, three attempts.
    """
    record = _record(payload, {ID: event_id or headers.get(ID) or new_id(), **_without_id(headers)})
    wire = read_wire(record)
    context = Context(
        service=SERVICE,
        handler=HANDLER,
        attempt=attempt,
        max_attempts=max(RetryPolicy().max_attempts, attempt),
        replay=None,
        transaction=transaction,
        _record=record,
        _wire=wire,
    )
    return _envelope(payload, record), context


def _without_id(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in headers.items() if name != ID}


def _spec(payload: EventLike | Tombstone[Any]) -> EventSpec:
    spec: EventSpec = payload.of.__event__ if isinstance(payload, Tombstone) else payload.__event__
    return spec


def _record(payload: EventLike | Tombstone[Any], headers: Mapping[str, str]) -> Record:
    spec = _spec(payload)
    now = datetime.now(UTC)
    own: dict[str, str] = {}
    key: str | None
    value: bytes | None
    if isinstance(payload, Tombstone):
        key, value = payload.key, None
    else:
        key, value = key_of(payload), _codec.encode(spec.type, now, payload)
        own[CONTENT_TYPE] = JSON
    if spec.version != 1:
        own[VERSION] = str(spec.version)
    return Record(
        topic=spec.topic,
        partition=0,
        offset=0,
        timestamp_ms=int(now.timestamp() * 1000),
        key=None if key is None else key.encode(),
        value=value,
        headers=[(name, text.encode()) for name, text in {**own, **headers}.items()],
    )


def _envelope(payload: EventLike | Tombstone[Any], record: Record) -> Envelope[Any]:
    if record.value is None or isinstance(payload, Tombstone):
        return Envelope(_spec(payload).type, datetime.fromtimestamp(record.timestamp_ms / 1000, UTC), payload)
    return _codec.decoder(type(payload))(record.value)
