"""Can the order be sent? Decided once for each order."""

from __future__ import annotations

from typing import assert_never

from choreo import Context, Envelope, Failure, Handler, PermanentError
from services_example.stock.events import OrderCancelled, OrderPlaced, StockReserved, StockShort
from services_example.stock.shelves import Shelves


class ReserveStock(Handler[OrderPlaced | OrderCancelled]):
    """Puts aside what was ordered, and back what was cancelled.

    One handler for both, because their order matters: choreo keeps it within a handler, for each key of a topic.
    """

    def __init__(self, shelves: Shelves) -> None:
        self._shelves = shelves

    def handle(self, event: Envelope[OrderPlaced | OrderCancelled], context: Context) -> StockReserved | StockShort | None:
        match event.payload:
            case OrderPlaced() as order:
                return _outcome(order, short=self._shelves.reserve(order.order_id, order.sku, order.quantity))
            case OrderCancelled() as order:
                self._shelves.release(order.order_id)
                return None
            case never:
                assert_never(never)

    def recover(self, event: Envelope[OrderPlaced | OrderCancelled], failure: Failure, context: Context) -> StockReserved | StockShort:
        """An order that can't be looked up is short: the customer gets the money back instead of waiting for us.

        Goods that can't be put back are a matter for people: that stays a dead letter.
        """
        match event.payload:
            case OrderPlaced() as order:
                return _outcome(order, short=self._shelves.give_up(order.order_id, f"stock failed: {failure.message}"))
            case OrderCancelled():
                raise PermanentError(failure.message)
            case never:
                assert_never(never)


def _outcome(order: OrderPlaced, *, short: str | None) -> StockReserved | StockShort:
    if short is None:
        return StockReserved(order_id=order.order_id, sku=order.sku, quantity=order.quantity)
    return StockShort(order_id=order.order_id, reason=short)
