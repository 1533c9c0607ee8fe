"""Who moves the money? A port, and a gateway for demos that decides by test cards, as real ones do in their sandboxes."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from choreo import PermanentError, TransientError
from services_example.database import Database


@dataclass(frozen=True, slots=True)
class Approved:
    """The card was charged `cents`."""

    cents: int


@dataclass(frozen=True, slots=True)
class Declined:
    """The card was not charged."""

    reason: str


Answer: TypeAlias = Approved | Declined


class CardGateway(Protocol):
    """Charges cards under a reference of ours, the order's id. Raises TransientError when no answer came (ask again with
    the same key: the card may have been charged), PermanentError when this request can never be answered."""

    async def charge(self, reference: str, cents: int, card_token: str, *, idempotency_key: str) -> Answer:
        """Charges once for each key; the same key gets the same answer. A reversed reference is declined."""
        ...

    async def reverse(self, reference: str) -> int:
        """Gives back what was charged, and declines whatever is charged later; how many cents. A second call gives nothing more
        back and answers the same."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Money moved: `cents` from the card to us, negative when given back."""

    reference: str
    cents: int


class DemoGateway(Database):
    """A gateway in a file. It never forgets an answer, and outlives the processes that call it.

    Test cards: `tok_<brand>_<digits>`. Brands: visa, mastercard; any other is the gateway's bug until `support` mends it.
    Digits 0408: the card is charged, and the first answer gets lost. More than `LIMIT_CENTS` is over every card's limit.
    """

    LIMIT_CENTS = 50_000

    schema = """
        create table if not exists entries (reference text not null, cents integer not null);
        create index if not exists entries_reference on entries (reference);
        create table if not exists answers (idempotency_key text primary key, cents integer, reason text);
        create table if not exists reversed (reference text primary key);
        create table if not exists brands (brand text primary key);
        insert or ignore into brands values ('visa'), ('mastercard');
    """

    async def charge(self, reference: str, cents: int, card_token: str, *, idempotency_key: str) -> Answer:
        with self.transaction() as rows:
            known = rows.execute("select cents, reason from answers where idempotency_key = ?", (idempotency_key,)).fetchone()
            if known is not None:
                return Declined(known[1]) if known[0] is None else Approved(known[0])
            answer = _decide(rows, reference, cents, card_token)
            match answer:
                case Approved():
                    rows.execute("insert into entries values (?, ?)", (reference, cents))
                    rows.execute("insert into answers values (?, ?, null)", (idempotency_key, cents))
                case Declined(reason):
                    rows.execute("insert into answers values (?, null, ?)", (idempotency_key, reason))
        if card_token.endswith("_0408"):
            raise TransientError(f"card gateway: no answer for {reference} within 2 s")
        return answer

    async def reverse(self, reference: str) -> int:
        with self.transaction() as rows:
            charged = rows.execute("select coalesce(sum(cents), 0) from entries where reference = ? and cents > 0", (reference,))
            (cents,) = charged.fetchone()
            first = rows.execute("insert or ignore into reversed values (?)", (reference,)).rowcount == 1
            if first and cents:
                rows.execute("insert into entries values (?, ?)", (reference, -cents))
            return int(cents)

    def support(self, brand: str) -> None:
        """The gateway's people mend their bug: `brand` is charged from now on."""
        with self.transaction() as rows:
            rows.execute("insert or ignore into brands values (?)", (brand,))

    def entries(self) -> list[Entry]:
        """All money that ever moved, in order."""
        with self.transaction() as rows:
            return [Entry(*row) for row in rows.execute("select reference, cents from entries order by rowid")]


def _decide(rows: sqlite3.Connection, reference: str, cents: int, card_token: str) -> Answer:
    if rows.execute("select 1 from reversed where reference = ?", (reference,)).fetchone():
        return Declined("order was cancelled")
    brand = card_token.split("_")[1]
    if rows.execute("select 1 from brands where brand = ?", (brand,)).fetchone() is None:
        raise PermanentError(f"card gateway: internal error on card brand {brand!r}")
    return Declined("over the card's limit") if cents > DemoGateway.LIMIT_CENTS else Approved(cents)
