"""What happens in the shop of these tests, and a handler that does what a test tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import orjson

from choreo import Context, Envelope, Event, Handler, RetryPolicy, Service

AT = "2026-11-22T22:36:07.000000Z"
QUICK = RetryPolicy(max_attempts=3, base_delay_s=0.01)


class Placed(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int


class Paid(Event, type="order.paid", topic="paid", key="order_id"):
    order_id: str
    note: str = ""


class Seen(NamedTuple):
    """One call of a handler."""

    event: Envelope[Placed]
    context: Context


Act = Callable[[Placed, Context], Paid | None]


def nothing(placed: Placed, context: Context) -> None:
    """Does nothing."""


class Book(Handler[Placed]):
    """Keeps each call in `seen`, then does what it was told: nothing, or raises."""

    retry = QUICK

    def __init__(self, act: Act = nothing) -> None:
        self.seen: list[Seen] = []
        self._act = act

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.seen.append(Seen(event, context))
        self._act(event.payload, context)

    @property
    def orders(self) -> list[str]:
        """The orders it was called for, in the order of the calls."""
        return [seen.event.payload.order_id for seen in self.seen]


class Pay(Handler[Placed]):
    """Keeps each call in `seen`, then answers as it was told."""

    retry = QUICK

    def __init__(self, act: Act) -> None:
        self.seen: list[Seen] = []
        self._act = act

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid | None:
        self.seen.append(Seen(event, context))
        return self._act(event.payload, context)


def placed(order_id: str = "o-1", total_cents: int = 500) -> bytes:
    """The value of a sound event."""
    return envelope({"order_id": order_id, "total_cents": total_cents})


def envelope(payload: object, *, event_type: str = "order.placed", timestamp: str = AT, **more: object) -> bytes:
    """A value of three fields, and more."""
    return orjson.dumps({"type": event_type, "timestamp": timestamp, "payload": payload, **more})


def fails(placed: Placed, context: Context) -> None:
    """Raises at each call."""
    raise RuntimeError("the book is shut")


def fails_for(failing: Mapping[str, Exception]) -> Act:
    """What raises for these orders."""

    def act(placed: Placed, context: Context) -> None:
        if placed.order_id in failing:
            raise failing[placed.order_id]

    return act


def payments() -> Service:
    """The service as ``choreo run tests.kafka.shop:payments`` runs it."""
    return Service("payments", handlers=[Book()])
