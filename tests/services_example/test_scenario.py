from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from services_example.orders.book import Order, Status
from services_example.orders.events import OrderPlaced
from services_example.orders.service import orders
from services_example.payments.gateway import Entry
from services_example.payments.service import payments
from services_example.scenario import Books, mend_gateway, plan, read_books, unfinished, verdict
from services_example.shipping.service import shipping
from services_example.stock.service import stock
from services_example.stock.shelves import Movement, Shelf

SHIPPED = OrderPlaced(order_id="o-1", sku="mug", quantity=2, total_cents=1800, card_token="tok_visa_4242")
CANCELLED = OrderPlaced(order_id="o-2", sku="lamp", quantity=1, total_cents=4900, card_token="tok_visa_4242")
PLACED = [SHIPPED, CANCELLED]
GOOD = Books(
    orders=[Order("o-1", 1800, Status.SHIPPED, ""), Order("o-2", 4900, Status.CANCELLED, "event-1")],
    entries=[Entry("o-1", 1800), Entry("o-2", 4900), Entry("o-2", -4900)],
    shelves=[Shelf("lamp", 3, 3), Shelf("mug", 500, 498)],
    movements=[Movement("o-1", "mug", 2), Movement("o-2", "lamp", 1), Movement("o-2", "lamp", -1)],
    parcels=["o-1"],
)


def test_the_plan_has_its_orders_and_faults() -> None:
    orders, faults = plan().orders, plan().faults

    assert len(orders) == len({order.order_id for order in orders}) == 200
    assert [len(ids) for ids in (faults.answer_lost, faults.gateway_bug, faults.over_limit, faults.scarce)] == [3, 4, 10, 13]
    assert not {*faults.over_limit} & {*faults.scarce}


def test_an_order_that_is_published_twice_is_one_event() -> None:
    publications = list(plan().publications())

    assert len(publications) == 201
    assert len({event_id for _, event_id in publications}) == 200


def test_a_good_end_has_no_violations() -> None:
    assert verdict(PLACED, GOOD) == []
    assert unfinished(PLACED, GOOD) == []


@pytest.mark.parametrize(
    ("books", "expected"),
    [
        (
            replace(GOOD, orders=[GOOD.orders[0], Order("o-2", 4900, Status.CANCELLING, "event-1")]),
            "o-2: neither shipped nor cancelled",
        ),
        (replace(GOOD, entries=[Entry("o-1", 1800), *GOOD.entries]), "o-1: shipped, and the card says [1800, 1800] cents"),
        (replace(GOOD, entries=GOOD.entries[1:]), "o-1: shipped, and the card says [] cents"),
        (replace(GOOD, entries=GOOD.entries[:2]), "o-2: not shipped, and the card says [4900] cents"),
        (replace(GOOD, parcels=["o-1", "o-1"]), "o-1: 2 parcels, expected 1"),
        (replace(GOOD, parcels=["o-1", "o-2"]), "o-2: 1 parcels, expected 0"),
        (replace(GOOD, parcels=["o-1", "o-3"]), "o-3: nobody placed it"),
        (replace(GOOD, shelves=[Shelf("lamp", 3, 2)]), "lamp: 2 on hand, expected 3 - 0"),
    ],
)
def test_the_verdict_says_what_is_wrong(books: Books, expected: str) -> None:
    assert verdict(PLACED, books) == [expected]


def test_goods_that_are_not_put_back_are_seen() -> None:
    books = replace(GOOD, movements=GOOD.movements[:2], shelves=[Shelf("lamp", 3, 2), Shelf("mug", 500, 498)])

    assert verdict(PLACED, books) == ["o-2: not shipped, and the shelf says [1] taken"]


def test_a_shop_that_never_opened_has_finished_nothing(tmp_path: Path) -> None:
    mend_gateway(tmp_path)

    books = read_books(tmp_path)

    assert len(unfinished(plan().orders, books)) == 200


def test_the_services_open_nothing_when_they_are_made(tmp_path: Path) -> None:
    for service in (orders, payments, stock, shipping):
        service(tmp_path)

    assert list(tmp_path.iterdir()) == []
