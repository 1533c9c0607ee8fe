"""P9: who may steer a consumer by headers? Nobody, on an ordinary topic."""

from __future__ import annotations

import pytest

from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Book, fails, placed

pytestmark = pytest.mark.kafka

FORGED: list[tuple[str, bytes | None]] = [
    ("choreo-attempt", b"9999"),
    ("choreo-not-before", b"9999-01-01T00:00:00Z"),
    ("choreo-target-group", b"somebody-else"),
    ("choreo-target-handler", b"other"),
    ("choreo-run", b"f00dfeed"),
    ("choreo-replay", b"1"),
    ("choreo-dlq-attempts", b"99"),
    ("choreo-dlq-topic", b"somewhere"),
    ("choreo-dlq-offset", b"-1"),
    ("choreo-dlq-kind", b"parked"),
]


async def test_forged_control_headers_are_ignored_and_counted(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()), *(Sent(placed(), headers=[header]) for header in FORGED), Sent(placed(), headers=FORGED))
    book = Book()

    worker = await ground.run(ground.service(book))

    assert [(seen.context.attempt, seen.context.replay) for seen in book.seen] == [(1, None)] * (len(FORGED) + 2)
    assert worker.counters.forged_headers == len(FORGED) + 1


async def test_a_letter_of_a_forger_says_the_truth_and_keeps_what_was_forged_elsewhere(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed(), headers=FORGED))

    await ground.run(ground.service(Book(fails)))

    (letter,) = ground.dead()
    assert letter.headers == [(name, value) for name, value in FORGED if not name.startswith("choreo-dlq-")]
    assert {name: letter.why[name] for name in ("attempts", "topic", "offset", "kind")} == {
        "attempts": "3",
        "topic": ground.topic("orders"),
        "offset": "0",
        "kind": "failed",
    }
