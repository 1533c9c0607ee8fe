"""P10: what becomes of the largest records a topic takes, when they are handled and when they die?"""

from __future__ import annotations

import asyncio
import time

import pytest

from choreo import Context, PermanentError
from choreo.runtime import sends
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, Paid, Pay, Placed, fails, placed

pytestmark = pytest.mark.kafka

MEBIBYTE = 1_048_576
TRY_AGAIN_S = 3.0
SOON_S = 2 * TRY_AGAIN_S
# What Kafka allows unless told otherwise, less what a batch of one record needs around a value.
LARGEST_BYTES = 1_048_588 - 80 - len(placed(""))


async def test_a_payload_of_a_megabyte_goes_in_and_out(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    note = "é" * 500_000
    ground.put("orders", Sent(placed("x" * 1_000_000)))
    pay = Pay(lambda placed, context: Paid(order_id="o-1", note=note))

    await ground.run(ground.service(pay))

    (paid,) = ground.records("paid")
    assert note.encode() in (paid.value or b"")
    assert len(pay.seen[0].event.payload.order_id) == 1_000_000


async def test_a_record_at_the_limit_of_its_topic_that_dies_is_a_letter(ground: Ground) -> None:
    ground.make(orders=1)
    largest = placed("x" * LARGEST_BYTES)
    ground.put("orders", Sent(largest), Sent(b"?" * LARGEST_BYTES), Sent(placed("after")))
    book = Book(lambda placed, context: None if placed.order_id == "after" else fails(placed, context))

    await ground.run(ground.service(book))

    assert {letter.value for letter in ground.dead()} == {largest, b"?" * LARGEST_BYTES}
    assert book.orders[-1] == "after"


async def test_many_large_letters_at_once_are_all_written(ground: Ground) -> None:
    ground.make(orders=1)
    values = [placed(f"{number}" * 400_000) for number in range(10)]
    ground.put("orders", *(Sent(value, b"k-%d" % number) for number, value in enumerate(values)))

    await ground.run(ground.service(Book(fails)))

    assert sorted(letter.value or b"" for letter in ground.dead()) == sorted(values)


@pytest.mark.parametrize("topic", ["dlq", "letters"])
async def test_a_letter_that_its_topic_refuses_holds_its_key_and_no_other_and_says_so_until_the_limit_is_raised(
    ground: Ground, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, topic: str
) -> None:
    monkeypatch.setattr(sends, "RETRY_MOST_S", TRY_AGAIN_S)
    ground.make(orders=1, paid=1)
    name = getattr(ground, topic)
    ground.configure(name, {"max.message.bytes": "100000"})
    held = "x" * 200_000
    ground.put("orders", Sent(placed("large"), held.encode()), Sent(placed("behind"), held.encode()))

    def act(placed: Placed, context: Context) -> Paid | None:
        if placed.order_id == "large":
            raise PermanentError("no")
        return Paid(order_id=placed.order_id)

    pay = Pay(act)
    async with ground.service(pay).worker() as worker:
        said = await becomes(
            lambda: next((r.getMessage() for r in caplog.records if "can't be written" in r.getMessage()), None),
            "it says so",
            worker=worker,
        )
        began_s = time.monotonic()
        for number in range(5):
            ground.put("orders", Sent(placed(f"beside-{number}"), b"other"))
            await becomes(lambda number=number: worker.counters.handled == number + 1, "the other key goes on", worker=worker)  # type: ignore[misc]
        took_s = time.monotonic() - began_s
        orders_while_held = [seen.event.payload.order_id for seen in pay.seen]
        committed_while_held = await asyncio.to_thread(ground.committed, "orders")
        await asyncio.to_thread(ground.configure, name, {"max.message.bytes": str(2 * MEBIBYTE)})
        await ground.caught_up(worker)

    what = {"dlq": "its letter", "letters": "the state of its letter"}[topic]
    assert said == (
        f"{ground.topic('orders')}[0]@0: {what} can't be written: writing to {name}: "
        "MSG_SIZE_TOO_LARGE: Broker: Message size too large; raise the topic's max.message.bytes or send less; the key waits, nothing is lost"
    )
    assert (orders_while_held[0], "behind" in orders_while_held, committed_while_held or 0) == ("large", False, 0)
    assert took_s < SOON_S
    assert {letter.value for letter in ground.dead()} == {placed("large")}
    assert [(state.origin.offset, state.state) for state in ground.states()] == [(0, "open")]
    assert pay.seen[-1].event.payload.order_id == "behind"


async def test_a_record_with_a_key_of_a_megabyte_is_a_letter(ground: Ground) -> None:
    ground.make(orders=1)
    key = b"\xaa" * 1_000_000
    ground.put("orders", Sent(b"?", key), Sent(placed("after"), b"k"))
    book = Book()

    await ground.run(ground.service(book))

    assert [letter.key for letter in ground.dead()] == [key]
    assert book.orders == ["after"]
