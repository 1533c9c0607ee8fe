"""What becomes of an event whose handler emits what no client of Kafka can take?"""

from __future__ import annotations

import pytest

from choreo.envelope import Envelope
from choreo.handler import Context, Emit, Emits, Handler
from choreo.letter import dlq_headers
from tests.runtime.shop import SHOP, TWICE, Paid, Placed, answers, becomes, committed, place, shop, shop_broker


class Pays(Handler[Placed]):
    """Emits Paid so for the event `odd`, and as it should be for the others."""

    name = "pays"
    retry = TWICE

    def __init__(self, odd: Emit[Paid]) -> None:
        self._odd = odd

    async def handle(self, event: Envelope[Placed], context: Context) -> Emits:
        return self._odd if context.event_id == "odd" else Paid(order_id="o-1")


ODD_TOPICS = {"NUL": "ten\0ant", "a blank": "ten ant", "a lone surrogate": "ten\ud800", "none": "", "too long": "a" * 250}
ODD_HEADERS = {"NUL": "ten\0ant", "a line break": "ten\nant", "a lone surrogate": "ten\ud800", "none": ""}


@pytest.mark.parametrize("topic", ODD_TOPICS.values(), ids=ODD_TOPICS)
async def test_a_topic_that_can_have_no_such_name_is_a_letter_at_once(topic: str) -> None:
    await is_a_letter(Emit(Paid(order_id="o-1"), topic=topic), f"topic {topic!r}: letters, digits, '.', '_' and '-', at most 249 of them")


@pytest.mark.parametrize("name", ODD_HEADERS.values(), ids=ODD_HEADERS)
async def test_a_header_whose_name_can_not_be_printed_is_a_letter_at_once(name: str) -> None:
    await is_a_letter(Emit(Paid(order_id="o-1"), headers={name: "x"}), f"header {name!r}: a name is text that can be printed")


async def is_a_letter(odd: Emit[Paid], message: str) -> None:
    broker = shop_broker()
    place(broker, "odd", "next", key="k")

    async with shop(broker, Pays(odd)).worker() as worker:
        await becomes(lambda: committed(broker) == 2, "both are settled", worker)

    (letter,) = broker.records(f"{SHOP}.dlq")
    why = dlq_headers(letter)
    assert (why["event-id"], why["error-type"], why["error-message"], why["attempts"]) == (
        "odd",
        "PermanentError",
        f"orders[0]@0: {message}",
        "1",
    )
    assert (answers(broker), worker.counters.retried) == (["order.paid"], 0)
