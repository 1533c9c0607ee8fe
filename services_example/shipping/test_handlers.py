from __future__ import annotations

from collections.abc import Iterator

import pytest

from choreo.testing import delivery
from services_example.shipping.desk import PackingDesk
from services_example.shipping.events import OrderShipped, PaymentReceived, StockReserved
from services_example.shipping.handlers import ShipOrder

PAID = PaymentReceived(order_id="o-1")
RESERVED = StockReserved(order_id="o-1")


@pytest.fixture
def desk() -> Iterator[PackingDesk]:
    with PackingDesk(":memory:") as desk:
        yield desk


@pytest.mark.parametrize(("first", "second"), [(PAID, RESERVED), (RESERVED, PAID)], ids=["payment first", "goods first"])
def test_a_parcel_leaves_when_it_is_paid_for_and_the_goods_are_there(
    desk: PackingDesk, first: PaymentReceived | StockReserved, second: PaymentReceived | StockReserved
) -> None:
    handler = ShipOrder(desk)

    emitted = [handler.handle(*delivery(first)), handler.handle(*delivery(second))]

    assert emitted == [None, OrderShipped(order_id="o-1")]
    assert desk.parcels() == ["o-1"]


def test_a_payment_that_comes_twice_does_not_stand_for_the_goods(desk: PackingDesk) -> None:
    handler = ShipOrder(desk)

    emitted = [handler.handle(*delivery(PAID)), handler.handle(*delivery(PAID))]

    assert emitted == [None, None]
    assert desk.parcels() == []


def test_the_event_that_completed_a_parcel_says_so_again_but_sends_one_parcel(desk: PackingDesk) -> None:
    handler = ShipOrder(desk)
    handler.handle(*delivery(PAID))

    emitted = [handler.handle(*delivery(RESERVED, event_id="reserved-1")) for _ in range(2)]

    assert emitted == [OrderShipped(order_id="o-1")] * 2
    assert desk.parcels() == ["o-1"]


def test_a_parcel_that_has_left_stays_gone_when_its_first_event_comes_again(desk: PackingDesk) -> None:
    handler = ShipOrder(desk)
    handler.handle(*delivery(PAID, event_id="received-1"))
    handler.handle(*delivery(RESERVED))

    emitted = handler.handle(*delivery(PAID, event_id="received-1"))

    assert emitted is None
    assert desk.parcels() == ["o-1"]
