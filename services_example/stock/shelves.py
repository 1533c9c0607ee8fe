"""What is on the shelves, and for whom is the rest put aside?"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from services_example.database import Database


@dataclass(frozen=True, slots=True)
class Shelf:
    """One article: how many there were when the shop opened, and how many are left."""

    sku: str
    opening: int
    on_hand: int


@dataclass(frozen=True, slots=True)
class Movement:
    """Something was taken off a shelf for an order, or put back (negative)."""

    order_id: str
    sku: str
    taken: int


class Shelves(Database):
    """The shop's stock. Each order is decided once, reserved or short; asked again, the answer is the same.

    An answer is why the order is short, or None: it is reserved.
    """

    schema = """
        create table if not exists shelves (sku text primary key, opening integer not null, on_hand integer not null);
        create table if not exists decisions (order_id text primary key, short text);
        create table if not exists movements (order_id text not null, sku text not null, taken integer not null);
        create index if not exists movements_order on movements (order_id);
        insert or ignore into shelves values ('mug', 500, 500), ('poster', 500, 500), ('sofa', 50, 50), ('lamp', 3, 3);
    """

    def reserve(self, order_id: str, sku: str, quantity: int) -> str | None:
        """Takes it off the shelf, all or nothing."""
        with self.transaction() as rows:
            if not _decided(rows, order_id):
                _decide(rows, order_id, short=None if _take(rows, order_id, sku, quantity) else f"out of stock: {sku}")
            return _short(rows, order_id)

    def give_up(self, order_id: str, reason: str) -> str | None:
        """The order is short for this reason, unless it has been decided."""
        with self.transaction() as rows:
            if not _decided(rows, order_id):
                _decide(rows, order_id, short=reason)
            return _short(rows, order_id)

    def release(self, order_id: str) -> None:
        """Puts back what is held for the order, if anything."""
        with self.transaction() as rows:
            held = rows.execute("select sku, sum(taken) from movements where order_id = ? group by sku", (order_id,)).fetchall()
            for sku, quantity in held:
                if quantity:
                    rows.execute("update shelves set on_hand = on_hand + ? where sku = ?", (quantity, sku))
                    rows.execute("insert into movements values (?, ?, ?)", (order_id, sku, -quantity))

    def shelves(self) -> list[Shelf]:
        """All of them, by article."""
        with self.transaction() as rows:
            return [Shelf(*row) for row in rows.execute("select sku, opening, on_hand from shelves order by sku")]

    def movements(self) -> list[Movement]:
        """Everything that was ever taken or put back, in order."""
        with self.transaction() as rows:
            return [Movement(*row) for row in rows.execute("select order_id, sku, taken from movements order by rowid")]


def _decided(rows: sqlite3.Connection, order_id: str) -> bool:
    return rows.execute("select 1 from decisions where order_id = ?", (order_id,)).fetchone() is not None


def _decide(rows: sqlite3.Connection, order_id: str, *, short: str | None) -> None:
    rows.execute("insert into decisions values (?, ?)", (order_id, short))


def _short(rows: sqlite3.Connection, order_id: str) -> str | None:
    (short,) = rows.execute("select short from decisions where order_id = ?", (order_id,)).fetchone()
    return None if short is None else str(short)


def _take(rows: sqlite3.Connection, order_id: str, sku: str, quantity: int) -> bool:
    taken = rows.execute("update shelves set on_hand = on_hand - ? where sku = ? and on_hand >= ?", (quantity, sku, quantity))
    if taken.rowcount == 0:
        return False
    rows.execute("insert into movements values (?, ?, ?)", (order_id, sku, quantity))
    return True
