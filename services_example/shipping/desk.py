"""Which parcels wait for what, and which have left?"""

from __future__ import annotations

from enum import StrEnum

from services_example.database import Database


class Need(StrEnum):
    """What a parcel waits for; both come from topics of their own, in any order. The names are columns."""

    PAYMENT = "payment"
    GOODS = "goods"


class PackingDesk(Database):
    """One row an order: the ids of the events that brought its payment and its goods, and of the one that completed them."""

    schema = """
        create table if not exists desk (
            order_id text primary key,
            payment text,
            goods text,
            completed_by text
        );
        create table if not exists parcels (order_id text not null);
    """

    def bring(self, order_id: str, need: Need, *, event_id: str) -> bool:
        """Whether the event `event_id` is the one that completes the parcel, which leaves then.

        It still is when it is handled again after a crash: the first time, what it emitted may never have been sent.
        """
        with self.transaction() as rows:
            rows.execute("insert or ignore into desk (order_id) values (?)", (order_id,))
            rows.execute(f"update desk set {need} = coalesce({need}, ?) where order_id = ?", (event_id, order_id))
            completed = rows.execute(
                "update desk set completed_by = ?"
                " where order_id = ? and completed_by is null and payment is not null and goods is not null",
                (event_id, order_id),
            )
            if completed.rowcount == 1:
                rows.execute("insert into parcels values (?)", (order_id,))
            (completed_by,) = rows.execute("select completed_by from desk where order_id = ?", (order_id,)).fetchone()
            return bool(completed_by == event_id)

    def parcels(self) -> list[str]:
        """The order of each parcel that has left, in order."""
        with self.transaction() as rows:
            return [order_id for (order_id,) in rows.execute("select order_id from parcels order by rowid")]
