"""May the parcel leave? When it is paid for and the goods are there."""

from __future__ import annotations

from typing import assert_never

from choreo import Context, Envelope, Handler
from services_example.shipping.desk import Need, PackingDesk
from services_example.shipping.events import OrderShipped, PaymentReceived, StockReserved


class ShipOrder(Handler[PaymentReceived | StockReserved]):
    """Joins two topics: both events of one order may be handled at the same time, so the desk locks the order's row.

    It needs no order.cancelled: an order is cancelled when its payment is refused or its goods are short, and then one
    of the two never comes.
    """

    def __init__(self, desk: PackingDesk) -> None:
        self._desk = desk

    def handle(self, event: Envelope[PaymentReceived | StockReserved], context: Context) -> OrderShipped | None:
        match event.payload:
            case PaymentReceived(order_id=order_id):
                need = Need.PAYMENT
            case StockReserved(order_id=order_id):
                need = Need.GOODS
            case never:
                assert_never(never)
        return OrderShipped(order_id=order_id) if self._desk.bring(order_id, need, event_id=context.event_id) else None
