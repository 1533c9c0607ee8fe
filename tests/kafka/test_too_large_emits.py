"""P11: what becomes of an emit that Kafka will never take?"""

from __future__ import annotations

import pytest

from choreo import Context, Envelope, Failure, Handler
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Paid, Pay, Placed, placed

pytestmark = pytest.mark.kafka

MEBIBYTE = 1_048_576
SMALL_LIMIT = 20_000


def too_large_for(order_id: str, size: int = 2 * MEBIBYTE) -> Pay:
    return Pay(lambda placed, context: Paid(order_id=placed.order_id, note="x" * (size if placed.order_id == order_id else 1)))


@pytest.mark.parametrize("size", [2 * MEBIBYTE, 11 * MEBIBYTE], ids=["refused by the broker", "refused by the client"])
async def test_an_emit_that_is_too_large_is_a_letter_of_its_event_and_everything_else_goes_on(ground: Ground, size: int) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", *(Sent(placed(order_id), order_id.encode()) for order_id in ("o-1", "large", "o-2", "large", "o-3")))

    worker = await ground.run(ground.service(too_large_for("large", size)))

    assert ground.committed("orders") == 5
    assert sorted(record.key or b"" for record in ground.records("paid")) == [b"o-1", b"o-2", b"o-3"]
    first, second = ground.dead()
    assert (first.value, first.why["attempts"], first.why["error-type"]) == (placed("large"), "1", "PermanentError")
    assert second.key == b"large"
    assert (worker.counters.handled, worker.counters.dead_lettered, worker.counters.retried) == (3, 2, 0)


async def test_the_letter_of_a_too_large_emit_says_which_topic_refused_it_and_what_to_do(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed("large")))

    await ground.run(ground.service(too_large_for("large")))

    (letter,) = ground.dead()
    assert letter.why["error-message"] == (
        f"{ground.topic('orders')}[0]@0: what it emitted can't be written: writing to {ground.topic('paid')}: MSG_SIZE_TOO_LARGE: "
        "Broker: Message size too large; raise the topic's max.message.bytes or send less"
    )


async def test_an_emit_beside_a_too_large_one_is_not_taken_back_and_the_event_is_a_letter_all_the_same(ground: Ground) -> None:
    class PayTwice(Handler[Placed]):
        async def handle(self, event: Envelope[Placed], context: Context) -> list[Paid]:
            return [Paid(order_id="o-1", note="small"), Paid(order_id="o-1", note="x" * 2 * MEBIBYTE)]

    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed("o-1")))

    worker = await ground.run(ground.service(PayTwice()))

    assert [b'"note":"small"' in (record.value or b"") for record in ground.records("paid")] == [True]
    assert (worker.counters.dead_lettered, len(ground.dead())) == (1, 1)


async def test_small_emits_that_travel_with_a_too_large_one_arrive(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.kafka.create_topic(ground.topic("small"), config={"max.message.bytes": str(SMALL_LIMIT)})
    orders = [f"o-{number}" for number in range(400)]
    ground.put("orders", *(Sent(placed(order_id), order_id.encode()) for order_id in [*orders, "large"]))
    pay = Pay(lambda placed, context: Paid(order_id=placed.order_id, note="x" * (SMALL_LIMIT if placed.order_id == "large" else 200)))

    await ground.run(ground.service(pay, topic_names={"paid": "small"}))

    assert sorted(record.key or b"" for record in ground.records("small")) == sorted(order_id.encode() for order_id in orders)
    assert [letter.key for letter in ground.dead()] == [b"large"]
    ground.kafka.delete_topics([ground.topic("small")])


async def test_a_recovery_that_emits_too_much_is_a_letter_and_not_tried_for_ever(ground: Ground) -> None:
    class Refund(Handler[Placed]):
        async def handle(self, event: Envelope[Placed], context: Context) -> Paid:
            raise RuntimeError("no")

        async def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> Paid:
            return Paid(order_id="o-1", note="x" * 2 * MEBIBYTE)

    Refund.retry = Pay.retry
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed("o-1")), Sent(placed("o-2"), b"o-2"))

    worker = await ground.run(ground.service(Refund()), deadline_s=10)

    assert (len(ground.dead()), worker.counters.dead_lettered, worker.counters.recovered) == (2, 2, 0)
