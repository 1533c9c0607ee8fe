"""What becomes of a handler's claims, letters and children when the handler is renamed?"""

from __future__ import annotations

import pytest

from choreo import ConfigurationError, Handler, MemoryStore
from choreo.envelope import child_id
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Paid, Pay, Placed, fails, nothing, placed

pytestmark = pytest.mark.kafka

HEADERS = [("choreo-id", b"e-1")]


class Charge(Pay):
    """`Pay` by its new name."""

    name = "charge"
    aliases = ("pay",)


class ChargeCard(Pay):
    """`Pay` by its third name."""

    name = "charge-card"
    aliases = ("pay", "charge")


async def test_a_service_with_an_open_letter_of_a_handler_it_does_not_have_does_not_start(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    await ground.run(ground.service(Pay(fails)))
    renamed = Pay(nothing)
    renamed.name = "charge"

    with pytest.raises(ConfigurationError) as refused:
        await ground.run(ground.service(renamed))

    assert str(refused.value) == (
        "open letters name handlers that this service does not have: pay; was one renamed? say aliases = (<former name>,) on it; "
        "was one removed? run the release that had it, and replay its letters there (choreo replay payments)"
    )


@pytest.mark.parametrize("renamed", [Charge, ChargeCard])
async def test_a_letter_under_a_former_name_is_replayed_by_the_renamed_handler(ground: Ground, renamed: type[Pay]) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    store = MemoryStore()
    await ground.run(ground.service(Pay(fails), store=store))

    charge = renamed(lambda placed, context: Paid(order_id=placed.order_id))
    async with ground.service(charge, store=MemoryStore(shared_with=store)).worker() as worker:
        (outcome,) = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert (outcome.handler, outcome.result) == ("pay", "resolved")
    assert [(state.handler, state.state) for state in ground.states()] == [("pay", "open"), ("pay", "resolved")]
    await ground.run(ground.service(charge))


@pytest.mark.parametrize("renamed", [Charge, ChargeCard])
async def test_claims_and_children_of_a_renamed_handler_are_those_of_its_first_name(ground: Ground, renamed: type[Pay]) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    store = MemoryStore()
    before = Pay(lambda placed, context: Paid(order_id=placed.order_id))
    after = renamed(lambda placed, context: Paid(order_id=placed.order_id))

    await ground.run(ground.service(before, store=store))
    await ground.read_again("orders")
    ground.put("orders", Sent(placed(), headers=[("choreo-id", b"e-2")]))
    worker = await ground.run(ground.service(after, store=MemoryStore(shared_with=store)))

    assert (worker.counters.duplicates, worker.counters.handled) == (1, 1)
    assert [dict(record.headers)["choreo-id"] for record in ground.records("paid")] == [
        child_id(event_id, "payments", "pay", "", "order.paid", "o-1", "0").encode() for event_id in ("e-1", "e-2")
    ]
    assert after.seen[0].context.handler == renamed.name


async def test_a_letter_of_a_renamed_handler_that_fails_again_moves_to_its_new_name(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    await ground.run(ground.service(Pay(fails)))

    charge = Charge(fails)
    async with ground.service(charge).worker() as worker:
        (outcome,) = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert outcome.result == "failed-again"
    assert {state.handler: state.state for state in ground.states()} == {"pay": "resolved", "charge": "open"}
    assert [letter.why["handler"] for letter in ground.dead()] == ["pay", "charge"]


async def test_a_name_that_two_handlers_claim_is_refused_before_anything_is_opened(ground: Ground) -> None:
    handlers: list[Handler[Placed]] = [Pay(nothing), Charge(nothing)]

    with pytest.raises(ConfigurationError, match="two handlers are called 'pay'; names are stored, give each its own"):
        ground.service(*handlers)
