"""How does an order stand? The state machine of an order, one row each.

placed -> shipped, or placed -> cancelling -> cancelled. Topics have no order among each other, so an order may be
cancelled or shipped here before its own order.placed has come round: whoever speaks of it first makes its row.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import StrEnum

from choreo import PermanentError
from services_example.database import Database


class Status(StrEnum):
    PLACED = "placed"
    CANCELLING = "cancelling"  # decided; order.cancelled is on its way
    CANCELLED = "cancelled"
    SHIPPED = "shipped"


@dataclass(frozen=True, slots=True)
class Order:
    """One order. `cancelled_by` is the id of the event that decided its end, or empty."""

    order_id: str
    total_cents: int
    status: Status
    cancelled_by: str


class OrderBook(Database):
    """All orders of the shop. Every method may be called again with the same arguments and answers the same."""

    schema = """
        create table if not exists orders (
            order_id text primary key,
            total_cents integer not null default 0,
            status text not null default 'placed',
            cancelled_by text not null default ''
        )
    """

    def place(self, order_id: str, total_cents: int) -> None:
        """The order is on the topic."""
        with self.transaction() as rows:
            _find(rows, order_id)
            rows.execute("update orders set total_cents = ? where order_id = ?", (total_cents, order_id))

    def cancel(self, order_id: str, *, decided_by: str) -> bool:
        """Whether the event `decided_by` is the one that cancels the order.

        It still is when it is handled again after a crash: the first time, what it emitted may never have been sent.
        """
        with self.transaction() as rows:
            order = _find(rows, order_id)
            if order.status is Status.SHIPPED:
                raise PermanentError(f"order {order_id} was shipped, and event {decided_by} cancels it: who let it go?")
            if order.status is Status.PLACED:
                rows.execute(
                    "update orders set status = 'cancelling', cancelled_by = ? where order_id = ?",
                    (decided_by, order_id),
                )
                return True
            return order.cancelled_by == decided_by

    def cancelled(self, order_id: str) -> None:
        """order.cancelled is on the topic: everybody will know."""
        with self.transaction() as rows:
            _find(rows, order_id)
            rows.execute("update orders set status = 'cancelled' where order_id = ? and status <> 'shipped'", (order_id,))

    def shipped(self, order_id: str) -> None:
        """The parcel has left."""
        with self.transaction() as rows:
            order = _find(rows, order_id)
            if order.status in (Status.CANCELLING, Status.CANCELLED):
                raise PermanentError(f"order {order_id} is {order.status}, and it was shipped: call the parcel back")
            rows.execute("update orders set status = 'shipped' where order_id = ?", (order_id,))

    def orders(self) -> list[Order]:
        """All of them, by id."""
        with self.transaction() as rows:
            found = rows.execute("select order_id, total_cents, status, cancelled_by from orders order by order_id")
            return [_order(row) for row in found]


def _find(rows: sqlite3.Connection, order_id: str) -> Order:
    rows.execute("insert or ignore into orders (order_id) values (?)", (order_id,))
    found = rows.execute("select order_id, total_cents, status, cancelled_by from orders where order_id = ?", (order_id,))
    return _order(found.fetchone())


def _order(row: tuple[str, int, str, str]) -> Order:
    order_id, total_cents, status, cancelled_by = row
    return Order(order_id, total_cents, Status(status), cancelled_by)
