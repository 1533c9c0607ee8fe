"""P8: what becomes of headers that nobody should send?"""

from __future__ import annotations

import re

import pytest

from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Book, Paid, Pay, fails, placed

pytestmark = pytest.mark.kafka

GOOD_TRACE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
ROOM_BYTES = 1_000_000
# librdkafka reads no more than 100,000 headers of one record: of one with more it gives none at all, and says nothing. A letter
# has 18 headers more than its event.
MOST_HEADERS = 100_000 - 18

STRANGE: dict[str, list[tuple[str, bytes | None]]] = {
    "a thousand": [(f"h-{number}", b"%d" % number) for number in range(1000)],
    "as many as can be read": [("h", b"")] * MOST_HEADERS,
    "one that fills the record": [("big", b"\xab" * ROOM_BYTES)],
    "a long name": [("n" * ROOM_BYTES, b"1")],
    "not UTF-8": [("choreo-id", b"\xff\xfe"), ("choreo-correlation-id", b"\xc3\x28"), ("choreo-source", b"\x80"), ("traceparent", b"\xff")],
    "control characters": [("choreo-id", b"a\x00b"), ("choreo-correlation-id", b"\x1b[2J"), ("choreo-source", b"x\r\nfaked: line")],
    "twice and wrong": [("traceparent", GOOD_TRACE), ("traceparent", b"00-zz-1"), ("traceparent", b"")],
    "null": [("choreo-id", None), ("traceparent", None), ("baggage", None), ("content-type", None), ("choreo-version", None), ("x", None)],
    "zero trace": [("traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01")],
    "capital letters": [("traceparent", GOOD_TRACE.upper()), ("Choreo-Id", b"not-mine")],
    "a long id": [("choreo-id", b"i" * 100_000), ("baggage", b"a=" + b"b" * 100_000)],
    "empty": [("choreo-id", b""), ("choreo-correlation-id", b""), ("traceparent", b""), ("", b"no name")],
}


async def test_an_event_with_strange_headers_is_handled_in_a_new_trace_of_its_own(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", *(Sent(placed(), name.encode(), headers) for name, headers in STRANGE.items()))
    pay = Pay(lambda placed, context: Paid(order_id=context.key or "?"))

    worker = await ground.run(ground.service(pay))

    children = {(record.key or b"").decode(): dict(record.headers) for record in ground.records("paid")}
    ids = {seen.context.key: (seen.context.event_id, seen.context.flow_id) for seen in pay.seen}
    assert set(children) == set(ids) == set(STRANGE)
    assert {
        name for name, (event_id, flow_id) in ids.items() if event_id != flow_id or not re.fullmatch(r"[0-9a-f-]{36}", event_id)
    } == set()
    assert {name: headers["choreo-causation-id"] for name, headers in children.items()} == {
        name: event_id.encode() for name, (event_id, _) in ids.items() if name
    }
    trace_ids = {name: (headers["traceparent"] or b"")[3:35].decode() for name, headers in children.items()}
    assert trace_ids == {name: flow_id.replace("-", "") for name, (_, flow_id) in ids.items() if name}
    assert worker.counters.dead_lettered == 0


async def test_a_letter_keeps_strange_headers_as_they_came(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *(Sent(placed(), name.encode(), headers) for name, headers in STRANGE.items()))

    await ground.run(ground.service(Book(fails)))

    assert {(letter.key or b"").decode(): letter.headers for letter in ground.dead()} == STRANGE


async def test_what_is_told_of_strange_headers_can_be_printed(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    ground.make(orders=1)
    ground.put("orders", *(Sent(b"?", name.encode(), headers) for name, headers in STRANGE.items()))

    await ground.run(ground.service(Book()))

    said = [letter.why["error-message"] for letter in ground.dead()] + [record.getMessage() for record in caplog.records]
    assert [text for text in said if not text.isprintable() or len(text) > 1000] == []
    assert len(ground.dead()) == len(STRANGE)


async def test_a_content_type_that_cannot_be_read_is_a_letter_and_json_in_other_words_is_read(ground: Ground) -> None:
    ground.make(orders=1)
    types = [b"application/json; charset=utf-8", b" Application/JSON ", b"avro/binary", b"\xff", b"", b"application/json" * 10_000]
    ground.put("orders", *(Sent(placed(), headers=[("content-type", written)]) for written in types))
    book = Book()

    await ground.run(ground.service(book))

    assert len(book.seen) == 2
    assert [letter.why["error-message"].partition(": ")[2].partition(";")[0] for letter in ground.dead()] == [
        "value: content-type 'avro/binary' can't be read",
        "value: content-type '?' can't be read",
        "value: content-type '?' can't be read",
        "value: content-type '?' can't be read",
    ]
