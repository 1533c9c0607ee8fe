from __future__ import annotations

from collections.abc import Iterator

import pytest

from choreo import PermanentError, TransientError
from choreo.testing import delivery
from services_example.payments.events import OrderPlaced, PaymentReceived, PaymentRefunded, PaymentRefused, StockShort
from services_example.payments.gateway import DemoGateway, Entry
from services_example.payments.handlers import ChargeCard, RefundPayment

SHORT = StockShort(order_id="o-1", reason="out of stock: lamp")


@pytest.fixture
def gateway() -> Iterator[DemoGateway]:
    with DemoGateway(":memory:") as gateway:
        yield gateway


def placed(total_cents: int = 1800, card_token: str = "tok_visa_4242") -> OrderPlaced:
    return OrderPlaced(order_id="o-1", total_cents=total_cents, card_token=card_token)


async def test_an_order_is_paid_for(gateway: DemoGateway) -> None:
    event, context = delivery(placed())

    emitted = await ChargeCard(gateway).handle(event, context)

    assert emitted == PaymentReceived(order_id="o-1", paid_cents=1800)
    assert gateway.entries() == [Entry("o-1", 1800)]


async def test_an_order_over_the_limit_is_refused(gateway: DemoGateway) -> None:
    event, context = delivery(placed(total_cents=98_000))

    emitted = await ChargeCard(gateway).handle(event, context)

    assert emitted == PaymentRefused(order_id="o-1", reason="over the card's limit")
    assert gateway.entries() == []


async def test_a_card_is_charged_once_when_the_first_answer_gets_lost(gateway: DemoGateway) -> None:
    with pytest.raises(TransientError, match="no answer for o-1"):
        await ChargeCard(gateway).handle(*delivery(placed(card_token="tok_visa_0408"), event_id="placed-1"))

    emitted = await ChargeCard(gateway).handle(*delivery(placed(card_token="tok_visa_0408"), event_id="placed-1", attempt=2))

    assert emitted == PaymentReceived(order_id="o-1", paid_cents=1800)
    assert gateway.entries() == [Entry("o-1", 1800)]


async def test_a_bug_of_the_gateway_is_not_retried_and_charged_once_it_is_mended(gateway: DemoGateway) -> None:
    event, context = delivery(placed(card_token="tok_diners_3600"))
    with pytest.raises(PermanentError, match="card brand 'diners'"):
        await ChargeCard(gateway).handle(event, context)

    gateway.support("diners")

    assert await ChargeCard(gateway).handle(event, context) == PaymentReceived(order_id="o-1", paid_cents=1800)


async def test_the_money_is_given_back_once_when_the_goods_are_short(gateway: DemoGateway) -> None:
    await ChargeCard(gateway).handle(*delivery(placed()))

    emitted = [await RefundPayment(gateway).handle(*delivery(SHORT, event_id="short-1")) for _ in range(2)]

    assert emitted == [PaymentRefunded(order_id="o-1", refunded_cents=1800, reason="out of stock: lamp")] * 2
    assert gateway.entries() == [Entry("o-1", 1800), Entry("o-1", -1800)]


async def test_a_charge_that_comes_after_its_refund_is_refused(gateway: DemoGateway) -> None:
    refunded = await RefundPayment(gateway).handle(*delivery(SHORT))

    emitted = await ChargeCard(gateway).handle(*delivery(placed()))

    assert refunded == PaymentRefunded(order_id="o-1", refunded_cents=0, reason="out of stock: lamp")
    assert emitted == PaymentRefused(order_id="o-1", reason="order was cancelled")
    assert gateway.entries() == []
