"""The proof of the saga's state machine: every order ends once, whatever the interleaving; and each rule is needed."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from services_example.orders.book import OrderBook, Status
from services_example.orders.events import OrderPlaced
from services_example.payments.gateway import Answer, DemoGateway
from services_example.scenario import verdict
from services_example.shipping.desk import Need, PackingDesk
from services_example.stock.shelves import Shelves
from tests.services_example.saga_simulation import Saga, Shop, Weather, shop

SEEDS = range(400)
CARDS = ("tok_visa_4242", "tok_mastercard_5454", "tok_visa_0408", "tok_diners_3600")


def some_orders(dice: Random) -> list[OrderPlaced]:
    """Few orders that want many lamps and have bad cards, so that the bad ends meet."""
    return [
        OrderPlaced(
            order_id=f"o-{number}",
            sku=dice.choice(("lamp", "lamp", "mug")),
            quantity=dice.randint(1, 2),
            total_cents=dice.choice((900, 4900, 98_000)),
            card_token=dice.choice(CARDS),
        )
        for number in range(dice.randint(2, 7))
    ]


def told(seed: int, shop: Shop, *, claims: bool = True) -> tuple[Saga, list[str]]:
    """The story of one seed, and what is wrong with it."""
    dice = Random(seed)
    weather = Weather(dice.choice((0, 0.1, 0.5)), dice.choice((0, 0.1, 0.3)), dice.choice((0, 0.2)), claims=claims)
    saga = Saga(shop, some_orders(dice), dice, weather)
    saga.run()
    return saga, verdict(saga.orders, shop.books()) + saga.violations()


@pytest.mark.parametrize("claims", [True, False], ids=["with claims", "with every claim lost"])
def test_every_order_ends_once_under_any_interleaving(claims: bool) -> None:
    violations: dict[int, list[str]] = {}

    for seed in SEEDS:
        with shop() as shop_:
            violations[seed] = told(seed, shop_, claims=claims)[1]

    assert {seed: wrong for seed, wrong in violations.items() if wrong} == {}


def test_the_interleavings_meet_what_the_state_machine_is_for() -> None:
    met: set[str] = set()

    for seed in SEEDS[:100]:
        with shop() as shop_:
            saga, _ = told(seed, shop_)
            met |= sights(saga, shop_)

    assert met == {
        "shipped",
        "cancelled",
        "a charge given back",
        "goods put back",
        "refused and short",
        "refunded before it was charged",
        "refunded before it was received",
        "a letter",
        "stock gave up",
    }


def sights(saga: Saga, shop: Shop) -> set[str]:
    """Which of the interesting ends this story had."""
    seen = {str(order.status) for order in shop.book.orders()} & {Status.SHIPPED, Status.CANCELLED}
    found = {str(status) for status in seen}
    if any(entry.cents < 0 for entry in shop.gateway.entries()):
        found.add("a charge given back")
    if any(movement.taken < 0 for movement in shop.shelves.movements()):
        found.add("goods put back")
    if saga.letters:
        found.add("a letter")
    for (topic, _), log in saga.logs.items():
        types = list(dict.fromkeys(stored.event.__event__.type for stored in log))
        if topic == "payments" and {"payment.refused", "payment.refunded"} <= {*types}:
            found.add("refused and short")
        if topic == "payments" and types == ["payment.refunded", "payment.received"]:
            found.add("refunded before it was received")
        if any(getattr(stored.event, "reason", "") == "order was cancelled" for stored in log):
            found.add("refunded before it was charged")
        if any(getattr(stored.event, "reason", "").startswith("stock failed") for stored in log):
            found.add("stock gave up")
    return found


# Each rule of the state machine left out: the simulation must see it.


class ForgetsWhoCancelled(OrderBook):
    """Says only once that an order is to be cancelled: a crash loses order.cancelled."""

    def cancel(self, order_id: str, *, decided_by: str) -> bool:
        known = any(order.order_id == order_id and order.status is not Status.PLACED for order in self.orders())
        return super().cancel(order_id, decided_by=decided_by) and not known


class CancelsForEveryone(OrderBook):
    """Lets every event cancel the order again."""

    def cancel(self, order_id: str, *, decided_by: str) -> bool:
        super().cancel(order_id, decided_by=decided_by)
        return True


class IgnoresTheKey(DemoGateway):
    """Charges each time it is asked."""

    _calls = itertools.count()

    async def charge(self, reference: str, cents: int, card_token: str, *, idempotency_key: str) -> Answer:
        return await super().charge(reference, cents, card_token, idempotency_key=f"{idempotency_key}{next(self._calls)}")


class ForgetsReversals(DemoGateway):
    """Charges an order whose payment was given back: a late replay takes the money."""

    async def reverse(self, reference: str) -> int:
        cents = await super().reverse(reference)
        with self.transaction() as rows:
            rows.execute("delete from reversed")
        return cents


class ForgetsReservations(Shelves):
    """Takes goods again when an order is handled again."""

    def reserve(self, order_id: str, sku: str, quantity: int) -> str | None:
        with self.transaction() as rows:
            rows.execute("delete from decisions where order_id = ?", (order_id,))
        return super().reserve(order_id, sku, quantity)


class GivesUpWhatIsReserved(Shelves):
    """Calls an order short that had been reserved before its handler failed."""

    def give_up(self, order_id: str, reason: str) -> str | None:
        super().give_up(order_id, reason)
        return reason


class ShipsWithoutPayment(PackingDesk):
    """Sends the parcel when the goods are there."""

    def bring(self, order_id: str, need: Need, *, event_id: str) -> bool:
        if need is Need.GOODS:
            super().bring(order_id, Need.PAYMENT, event_id=event_id)
        return super().bring(order_id, need, event_id=event_id)


class ForgetsWhoCompleted(PackingDesk):
    """Says only once that a parcel has left: a crash loses order.shipped."""

    def bring(self, order_id: str, need: Need, *, event_id: str) -> bool:
        gone = order_id in self.parcels()
        return super().bring(order_id, need, event_id=event_id) and not gone


@pytest.mark.parametrize(
    ("bug", "part"),
    [
        (ForgetsWhoCancelled, "book"),
        (CancelsForEveryone, "book"),
        (IgnoresTheKey, "gateway"),
        (ForgetsReversals, "gateway"),
        (ForgetsReservations, "shelves"),
        (GivesUpWhatIsReserved, "shelves"),
        (ShipsWithoutPayment, "desk"),
        (ForgetsWhoCompleted, "desk"),
    ],
)
def test_a_service_without_this_rule_is_found_out(bug: type, part: str) -> None:
    found = []

    for seed in SEEDS:
        with shop(**{part: bug}) as shop_:
            found = told(seed, shop_)[1]
        if found:
            break

    assert found != []
