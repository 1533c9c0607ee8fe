"""Handlers in a module whose annotations are text, some of which can't be read at run time. For test_handler_contract.py."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from choreo.envelope import Envelope
from choreo.events import Event
from choreo.handler import Context, Emits, Handler

if TYPE_CHECKING:
    from tests.unit.test_handler_contract import Connection, OrderShipped


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class ReadsWell(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> list[PaymentReceived] | None:
        return None


class ReadsWellButForAParameter(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context, connection: Connection | None = None) -> PaymentReceived | None:
        return None


class NamesAnAbsentImport(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderShipped | None:
        return None


class SaysItBesides(Handler[OrderPlaced]):
    emits = (PaymentReceived,)

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderShipped | None:
        return None


class NamesAnAbsentAttribute(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> collections.OrderShipped | None:  # type: ignore[name-defined]
        return None


class Undeclared(Handler[OrderPlaced]):
    def handle(self, event: Envelope[OrderPlaced], context: Context) -> Emits:
        return None
