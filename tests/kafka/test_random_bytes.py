"""P1: what becomes of a value that is no event at all?"""

from __future__ import annotations

import random

import pytest

from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Book, placed

pytestmark = pytest.mark.kafka

NOISE = random.Random(1).randbytes(300)
HEADERS = [("content-type", b"application/json"), ("x", b"\x00\xff"), ("x", None), ("choreo-source", b"orders/import")]


async def test_random_bytes_are_one_letter_after_one_attempt_and_everything_else_goes_on(ground: Ground) -> None:
    ground.make(orders=1)
    (noise, *_) = ground.put("orders", Sent(NOISE, b"\x80key", HEADERS), Sent(placed("o-1")), Sent(placed("o-2")))
    book = Book()

    worker = await ground.run(ground.service(book))

    assert book.orders == ["o-1", "o-2"]
    assert ground.committed("orders") == 3
    assert (worker.counters.handled, worker.counters.dead_lettered, worker.counters.retried) == (2, 1, 0)
    (letter,) = ground.dead()
    assert (letter.key, letter.value, letter.headers) == (noise.key, noise.value, HEADERS)
    assert {name: letter.why[name] for name in ("kind", "handler", "attempts", "topic", "partition", "offset", "error-type")} == {
        "kind": "undecodable",
        "handler": "*",
        "attempts": "1",
        "topic": ground.topic("orders"),
        "partition": "0",
        "offset": "0",
        "error-type": "DecodeError",
    }


async def test_the_letter_of_random_bytes_says_where_they_stand_and_who_sent_them(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(NOISE, b"k", HEADERS), Sent(NOISE, b"k"))

    await ground.run(ground.service(Book()))

    assert [letter.why["error-message"] for letter in ground.dead()] == [
        f"{ground.topic('orders')}[0]@0: value: not JSON: JSON is malformed: invalid character (byte 0); "
        "fix the producer orders/import, then replay",
        f"{ground.topic('orders')}[0]@1: value: not JSON: JSON is malformed: invalid character (byte 0); "
        "fix the producer (unknown: no choreo-source header), then replay",
    ]


async def test_the_state_of_each_letter_points_to_its_record(ground: Ground) -> None:
    ground.make(orders=2)
    noise = [*ground.put("orders", Sent(NOISE, b"a")), *ground.put("orders", Sent(NOISE, b"b", partition=1))]

    await ground.run(ground.service(Book()))

    log = {record.offset: record for record in ground.kafka.read_all(ground.dlq)}
    states = ground.states()
    assert {(state.origin.partition, state.origin.offset, state.state) for state in states} == {(0, 0, "open"), (1, 0, "open")}
    assert sorted(log[state.dlq.offset].key or b"" for state in states) == sorted(record.key or b"" for record in noise)


@pytest.mark.parametrize("count", [500])
async def test_a_flood_of_random_bytes_loses_none_and_holds_nobody_up(ground: Ground, count: int) -> None:
    ground.make(orders=2)
    chance = random.Random(2)
    noise = [chance.randbytes(chance.randint(0, 200)) for _ in range(count)]
    sent = [record for value in noise for record in (Sent(value, chance.randbytes(3)), Sent(placed(), b"good", partition=1))]
    ground.put("orders", *sent)
    book = Book()

    worker = await ground.run(ground.service(book))

    assert sorted(letter.value or b"" for letter in ground.dead()) == sorted(noise)
    assert (len(book.seen), worker.counters.handled, worker.counters.dead_lettered) == (count, count, count)
