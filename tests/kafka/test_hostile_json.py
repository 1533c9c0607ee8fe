"""P3: what becomes of JSON that was made to hurt its reader?"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.kafka.ground import CATCH_UP_S, Ground, Sent
from tests.kafka.shop import AT, Book, placed

pytestmark = pytest.mark.kafka

HEAD = b'{"type":"order.placed","timestamp":"' + AT.encode() + b'","payload":'
DEEP = 100_000
DIGITS = 1_000_000
LONGEST_S = 5.0
MEBIBYTE = 1_048_576


def payload(fields: bytes) -> bytes:
    return HEAD + b'{"order_id":"o-1","total_cents":5' + fields + b"}}"


REFUSED = {
    "deep arrays": b"[" * DEEP + b"]" * DEEP,
    "deep objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and never closed": HEAD + b"[" * DEEP,
    "deep in a field nobody reads": payload(b',"junk":' + b"[" * DEEP + b"]" * DEEP),
    "a number of a million digits": HEAD + b'{"order_id":"o-1","total_cents":' + b"9" * DIGITS + b"}}",
    "a fraction of a million digits": HEAD + b'{"order_id":"o-1","total_cents":0.' + b"9" * DIGITS + b"}}",
    "an exponent of a million digits": HEAD + b'{"order_id":"o-1","total_cents":1e' + b"9" * DIGITS + b"}}",
    "not a number": HEAD + b'{"order_id":"o-1","total_cents":NaN}}',
    "infinity": HEAD + b'{"order_id":"o-1","total_cents":-Infinity}}',
    "byte order mark": b"\xef\xbb\xbf" + placed(),
    "UTF-16": placed().decode().encode("utf-16"),
    "lone surrogate": HEAD + b'{"order_id":"\\ud800","total_cents":5}}',
    "lone surrogate in a name": payload(b',"\\udfff":1'),
    "not UTF-8": HEAD + b'{"order_id":"\xc3\x28","total_cents":5}}',
    "a NUL in it": placed()[:20] + b"\x00" + placed()[20:],
    "cut off": placed()[:-1],
    "something after it": placed() + placed(),
}
TAKEN = {
    "duplicate names, the last counts": HEAD + b'{"order_id":"no","order_id":"o-1","total_cents":4,"total_cents":5}}',
    "a number of a million digits that nobody reads": payload(b',"junk":' + b"9" * DIGITS),
    "a million empty objects that nobody reads": payload(b',"junk":[' + b",".join([b"{}"] * 300_000) + b"]"),
    "white space": b" \n\t" * 100_000 + placed("o-1", 5) + b"\r\n" * 100_000,
    "escaped letters": HEAD + b'{"order\\u005fid":"\\u006f-1","total_cents":5}}',
}


async def test_what_is_no_sound_json_is_a_letter_with_the_same_bytes_and_the_next_event_is_handled(ground: Ground) -> None:
    ground.make(orders=1)
    sent = [Sent(value, name.encode()) for name, value in REFUSED.items()]
    ground.put("orders", *sent, Sent(placed("after")))
    book = Book()

    began_s = time.monotonic()
    worker = await ground.run(ground.service(book))
    took_s = time.monotonic() - began_s

    assert [(letter.key, letter.value) for letter in ground.dead()] == [(record.key, record.value) for record in sent]
    assert book.orders == ["after"]
    assert worker.counters.dead_lettered == len(REFUSED)
    assert took_s < LONGEST_S + len(REFUSED)


async def test_what_is_odd_and_sound_is_handled(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *(Sent(value, name.encode()) for name, value in TAKEN.items()))
    book = Book()

    await ground.run(ground.service(book))

    seen = {seen.context.key: (seen.event.payload.order_id, seen.event.payload.total_cents) for seen in book.seen}
    assert seen == dict.fromkeys(TAKEN, ("o-1", 5))
    assert ground.dead() == []


async def test_what_the_letter_says_of_hostile_bytes_is_short_and_can_be_printed(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *(Sent(value, name.encode()) for name, value in REFUSED.items()))

    await ground.run(ground.service(Book()))

    said = [letter.why["error-message"] for letter in ground.dead()]
    assert [message for message in said if not message.isprintable() or len(message) > 400] == []
    assert len(said) == len(REFUSED)


def test_a_process_stays_alive_and_small_while_it_reads_large_hostile_values(ground: Ground, tmp_path: Path) -> None:
    ground.make(orders=1, largest=MEBIBYTE * 9)
    handled = payload(b',"junk":[' + b",".join([b"{}"] * 2_500_000) + b"]")
    large = [
        b"[" + b",".join([b"{}"] * 2_500_000) + b"]",
        b"[" * (MEBIBYTE * 8),
        b'{"a":' * MEBIBYTE,
        handled,
        HEAD + b'{"order_id":"' + b"\\u0001" * MEBIBYTE + b'","total_cents":"x"}}',
        HEAD + b'{"order_id":"o-1","total_cents":' + b"9" * (MEBIBYTE * 8) + b"}}",
    ]
    ground.put("orders", Sent(placed()))

    with ground.process("tests.kafka.shop:payments", tmp_path / "worker.log") as worker:
        ground.kafka.wait_for_no_lag(ground.group, [ground.topic("orders")], deadline_s=CATCH_UP_S)
        before_bytes = peak_bytes(worker.pid)
        ground.put("orders", *(Sent(value) for value in large), Sent(placed()))
        ground.kafka.wait_for_no_lag(ground.group, [ground.topic("orders")], deadline_s=CATCH_UP_S)
        after_bytes = peak_bytes(worker.pid)
        worker.sigterm()
        code = worker.wait(CATCH_UP_S)

    assert code == 0
    assert sorted(len(letter.value or b"") for letter in ground.dead()) == sorted(len(value) for value in large if value is not handled)
    assert after_bytes - before_bytes < 25 * max(map(len, large))


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024
