"""P2: what becomes of JSON that is not the event it claims to be?"""

from __future__ import annotations

import pytest

from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import AT, Book, envelope, placed

pytestmark = pytest.mark.kafka

SOURCE = ("choreo-source", b"orders/import")
GOOD = {"order_id": "o-1", "total_cents": 500}

WRONG = {
    b"[1, 2]": "envelope: expected object, got array of 2",
    b'"order.placed"': "envelope: expected object, got str 'order.placed'",
    b"null": "envelope: expected object, got null",
    b"17": "envelope: expected object, got int 17",
    b"{}": "envelope: missing required field type",
    b'{"type": 3}': "envelope: type: expected str, got int 3",
    b'{"type": "order.placed", "payload": {"order_id": "o-1", "total_cents": 1}}': "envelope: missing required field timestamp",
    b'{"type": "order.placed", "timestamp": "' + AT.encode() + b'"}': "envelope: missing required field payload",
    envelope(
        GOOD, timestamp="2026-11-22T22:36:07"
    ): "envelope: timestamp: expected datetime with a timezone component, got str '2026-11-22T22:36:07'",
    envelope(GOOD, timestamp="yesterday"): "envelope: timestamp: invalid RFC3339 encoded datetime, got str 'yesterday'",
    envelope(
        GOOD, timestamp="10000-01-01T00:00:00Z"
    ): "envelope: timestamp: invalid RFC3339 encoded datetime, got str '10000-01-01T00:00:00Z'",
    envelope([GOOD]): "payload of order.placed: expected object, got array of 1",
    envelope(None): "payload of order.placed: expected object, got null",
    envelope({"order_id": "o-1"}): "payload of order.placed: missing required field total_cents",
    envelope({"order_id": "o-1", "total_cents": "12.50"}): "payload of order.placed: total_cents: expected int, got str '12.50'",
    envelope({"order_id": "o-1", "total_cents": 12.5}): "payload of order.placed: total_cents: expected int, got float 12.5",
    envelope({"order_id": None, "total_cents": 5}): "payload of order.placed: order_id: expected str, got null",
    envelope({"order_id": ["o-1"], "total_cents": 5}): "payload of order.placed: order_id: expected str, got array of 1",
    placed()[:-2] + b',"total_cents":"5","total_cents":5}}': "payload of order.placed: total_cents: expected int, got str",
}


async def test_each_wrong_value_is_a_letter_that_names_the_field_and_what_was_expected_and_came_and_who_sent_it(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *(Sent(value, headers=[SOURCE]) for value in WRONG))
    book = Book()

    await ground.run(ground.service(book))

    said = {letter.value: letter.why["error-message"] for letter in ground.dead()}
    assert said == {
        value: f"{ground.topic('orders')}[0]@{offset}: {expected}; fix the producer orders/import, then replay"
        for offset, (value, expected) in enumerate(WRONG.items())
    }
    assert book.seen == []


async def test_a_wrong_value_whose_type_is_readable_is_a_letter_of_each_of_its_handlers(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(envelope({"order_id": "o-1"})), Sent(b"[]"))
    first, second = Book(), Book()
    first.name, second.name = "first", "second"

    await ground.run(ground.service(first, second))

    letters = {(letter.value, letter.why["handler"], letter.why.get("event-type")) for letter in ground.dead()}
    assert letters == {
        (envelope({"order_id": "o-1"}), "first", "order.placed"),
        (envelope({"order_id": "o-1"}), "second", "order.placed"),
        (b"[]", "*", None),
    }


async def test_fields_that_nobody_declared_are_accepted_in_envelope_and_payload(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(envelope({**GOOD, "colour": "red"}, trace={"a": [1]})), Sent(placed("o-2")))
    book = Book()

    await ground.run(ground.service(book))

    assert book.orders == ["o-1", "o-2"]
    assert ground.dead() == []


async def test_times_of_any_zone_are_handed_over_in_utc(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put(
        "orders", Sent(envelope(GOOD, timestamp="2026-11-23T00:36:07+02:00")), Sent(envelope(GOOD, timestamp="1970-01-01T00:00:00Z"))
    )
    book = Book()

    await ground.run(ground.service(book))

    assert [seen.event.timestamp.isoformat() for seen in book.seen] == ["2026-11-22T22:36:07+00:00", "1970-01-01T00:00:00+00:00"]


async def test_a_version_that_nobody_reads_is_a_letter_that_names_both_versions(ground: Ground) -> None:
    ground.make(orders=1)
    versions = [b"2", b"0", b"x", b"1"]
    ground.put("orders", *(Sent(placed(), headers=[("choreo-version", version)]) for version in versions))
    book = Book()

    await ground.run(ground.service(book))

    fix = "; fix the producer (unknown: no choreo-source header), then replay"
    assert [letter.why["error-message"].partition(": ")[2] for letter in ground.dead()] == [
        f"version: expected 1, got 2{fix}",
        f"version: expected 1, got 0{fix}",
        f"version: expected 1, got x{fix}",
    ]
    assert len(book.seen) == 1
