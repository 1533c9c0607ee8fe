"""Does the tree of a flow say what Kafka knows of it? Golden text for the drawing, properties for the tree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from choreo.flows.render import in_ascii, render, span
from choreo.flows.tree import Ended, Evidence, Handled, Letter, build
from choreo.letter import Kind, LetterState, Place, ReplayOutcome, Result, Run, State
from choreo.record import Record

NOW = datetime(2026, 11, 22, 3, 12, tzinfo=UTC)
BEGAN = datetime(2026, 11, 22, 0, 58, 2, 114_000, tzinfo=UTC)


def event(
    event_id: str,
    type_: str,
    topic: str,
    offset: int,
    *,
    cause: str | None = None,
    source: str = "orders/publish",
    at: datetime = BEGAN,
    value: bytes | None = None,
) -> Record:
    headers = [("choreo-id", event_id.encode()), ("choreo-correlation-id", b"flow-1"), ("choreo-source", source.encode())]
    if cause is not None:
        headers.append(("choreo-causation-id", cause.encode()))
    body = json.dumps({"type": type_, "timestamp": "2026-11-22T00:58:02Z", "payload": {"order_id": "o-1042"}}).encode()
    return Record(topic, 3, offset, int(at.timestamp() * 1000), b"o-1042", body if value is None else value, headers)


def letter(
    event_id: str,
    handler: str,
    *,
    state: State = "open",
    kind: Kind = "failed",
    attempts: int = 3,
    error: str = "ReadTimeout",
    message: str = "orders[3]@1842: no answer within 2 s",
    failed_at: datetime = BEGAN + timedelta(seconds=7.6),
    run: str = "",
) -> LetterState:
    return LetterState(
        state=state,
        kind=kind,
        handler=handler,
        event_id=event_id,
        dlq=Place("payments.dlq", 3, 17),
        origin=Place("orders", 3, 1842),
        attempts=attempts,
        error_type=error,
        message=message,
        first_failed_at=BEGAN,
        last_failed_at=failed_at,
        run=run,
    )


def outcome(run: str, result: Result, *, at: datetime, handler: str = "charge-card", event_id: str = "e-1") -> ReplayOutcome:
    return ReplayOutcome(run=run, handler=handler, event_id=event_id, result=result, attempts=1, at=at)


def drawn(evidence: Evidence, width: int = 100) -> str:
    return "\n" + "\n".join(render(build(evidence), now=NOW, width=width)) + "\n"


PLACED = event("e-1", "order.placed", "orders", 1842)
RESERVED = event("e-2", "stock.reserved", "stock", 977, cause="e-1", source="stock/reserve-stock", at=BEGAN + timedelta(seconds=1))
SHIPPED = event("e-3", "order.shipped", "shipping", 12, cause="e-2", source="shipping/ship-order", at=BEGAN + timedelta(seconds=2))


# ---- the drawing ----------------------------------------------------------------------------------------------------


def test_an_open_letter_shows_how_it_died_and_where_it_lies() -> None:
    evidence = Evidence(
        records=[SHIPPED, PLACED, RESERVED],
        letters=[Letter("payments", letter("e-1", "charge-card"))],
        handled=[Handled("orders", "complete-order", "e-3"), Handled("stock", "reserve-stock", "e-1")],
    )

    actual = drawn(evidence)

    assert (
        actual
        == """
order.placed               orders[3]@1842  00:58:02.114  by orders/publish
├─ ✗ payments/charge-card                  died 00:58:09 after 3 attempts in 7.6 s, ReadTimeout: no
│                                          answer within 2 s
│                                          dead letter payments.dlq[3]@17, open for 2 h 13 min
└─ ✓ stock/reserve-stock
   └─ stock.reserved       stock[3]@977    00:58:03.114
      └─ ✓ shipping/ship-order
         └─ order.shipped  shipping[3]@12  00:58:04.114
            └─ ✓ orders/complete-order     emitted nothing
"""
    )


def test_a_replayed_letter_shows_its_whole_life_and_what_came_of_it() -> None:
    at = BEGAN + timedelta(hours=1)
    received = event("e-4", "payment.received", "payments", 5, cause="e-1", source="payments/charge-card", at=at)
    evidence = Evidence(
        records=[PLACED, received],
        letters=[
            Letter("payments", letter("e-1", "charge-card", attempts=1, error="PermanentError", message="orders[3]@1842: bug")),
            Letter("payments", letter("e-1", "charge-card", state="resolved", attempts=1, run="7f3a")),
        ],
        runs={"7f3a": Run(run="7f3a", by="ana", reason="mended", forced=False, letters=1, at=at)},
        outcomes=[
            Ended("payments", outcome("5b01", "failed-again", at=at - timedelta(minutes=5))),
            Ended("payments", outcome("7f3a", "resolved", at=at)),
            Ended("stock", outcome("9c9c", "resolved", at=at)),
        ],
    )

    actual = drawn(evidence)

    assert (
        actual
        == """
order.placed            orders[3]@1842  00:58:02.114  by orders/publish
└─ ✓ payments/charge-card               died 00:58:09 after 1 attempt, PermanentError: bug
   │                                    dead letter payments.dlq[3]@17, resolved
   │                                    replayed 01:53:02, run 5b01: failed again
   │                                    replayed 01:58:02, run 7f3a by ana (mended): resolved
   └─ payment.received  payments[3]@5   01:58:02.114
"""
    )


def test_what_waits_or_was_given_up_says_so() -> None:
    evidence = Evidence(
        records=[PLACED],
        letters=[
            Letter("payments", letter("e-1", "charge-card", kind="parked", attempts=0)),
            Letter("payments", letter("e-1", "send-receipt", attempts=1)),
            Letter("payments", letter("e-1", "send-receipt", state="discarded", attempts=1)),
        ],
    )

    actual = drawn(evidence)

    assert (
        actual
        == """
order.placed  orders[3]@1842  00:58:02.114  by orders/publish
├─ ⏸ payments/charge-card     parked behind an earlier event of its key
│                             dead letter payments.dlq[3]@17, open for 2 h 13 min
└─ – payments/send-receipt    died 00:58:09 after 1 attempt, ReadTimeout: no answer within 2 s
                              dead letter payments.dlq[3]@17, discarded
"""
    )


def test_a_record_that_nobody_can_read_died_in_decoding() -> None:
    evidence = Evidence(
        records=[event("e-1", "", "orders", 1842, value=b'{"type": "order.pl')],
        letters=[
            Letter("stock", letter("e-1", "*", kind="undecodable", attempts=1, error="DecodeError", message="orders[3]@1842: not JSON"))
        ],
    )

    actual = drawn(evidence)

    assert (
        actual
        == """
(unreadable)  orders[3]@1842  00:58:02.114  by orders/publish
└─ ✗ stock/(decode)           died 00:58:09 after 1 attempt, DecodeError: not JSON
                              dead letter payments.dlq[3]@17, open for 2 h 13 min
"""
    )


def test_an_event_that_was_written_twice_is_one_and_says_where_and_whether_it_changed() -> None:
    later = BEGAN + timedelta(seconds=1)
    again = event("e-1", "order.placed", "orders", 1850, at=later)
    other = event("e-2", "stock.reserved", "stock", 980, cause="e-1", source="stock/reserve-stock", at=later)
    changed = event("e-2", "stock.reserved", "stock", 985, cause="e-1", at=later + timedelta(seconds=1), value=b'{"payload": 1}')

    actual = drawn(Evidence(records=[again, changed, PLACED, other]))

    assert (
        actual
        == """
order.placed          orders[3]@1842  00:58:02.114  by orders/publish
│                                     the same event again at orders[3]@1850
└─ ✓ stock/reserve-stock
   └─ stock.reserved  stock[3]@980    00:58:03.114
                                      the same event again at stock[3]@985; its payloads differ!
"""
    )


def test_a_cause_that_was_not_found_is_named() -> None:
    actual = drawn(Evidence(records=[RESERVED]))

    assert (
        actual
        == """
stock.reserved  stock[3]@977  00:58:03.114  by stock/reserve-stock
                              caused by e-1, which was not found
"""
    )


def test_a_flow_of_another_day_has_its_date() -> None:
    (line,) = render(build(Evidence(records=[PLACED])), now=NOW + timedelta(days=1))

    assert line == "order.placed  orders[3]@1842  11-22 00:58:02.114  by orders/publish"


def test_the_drawing_has_a_form_for_plain_terminals() -> None:
    evidence = Evidence(records=[PLACED, RESERVED], letters=[Letter("payments", letter("e-1", "charge-card"))])

    lines = [in_ascii(line) for line in render(build(evidence), now=NOW)]

    assert all(line.isascii() for line in lines)
    assert lines[-1].startswith("   `- stock.reserved")


def test_no_line_is_wider_than_asked_where_the_names_allow_it() -> None:
    long = letter("e-1", "charge-card", message="orders[3]@1842: " + "the gateway said that it is busy and " * 20)
    evidence = Evidence(records=[PLACED, RESERVED], letters=[Letter("payments", long)])

    lines = drawn(evidence, width=90).splitlines()

    assert max(map(len, lines)) <= 90
    assert len(lines) > 5


def test_lengths_of_time_have_two_units_at_most() -> None:
    seconds = (-1, 0.012, 7.64, 71, 8040, 13 * 86_400 + 21 * 3600)

    assert [span(each) for each in seconds] == ["0 ms", "12 ms", "7.6 s", "1 min 11 s", "2 h 14 min", "13 d 21 h"]


# ---- the tree -------------------------------------------------------------------------------------------------------


def test_a_letter_of_a_flow_that_is_not_this_one_is_left_out() -> None:
    evidence = Evidence(records=[PLACED], letters=[Letter("payments", letter("e-9", "charge-card"))], handled=[Handled("a", "b", "e-9")])

    flow = build(evidence)

    assert flow.steps == {}


def test_handlers_of_one_name_in_two_services_are_two() -> None:
    records = [
        event(f"e-{service}", "x", "t", number, cause="e-1", source=f"{service}/notify") for number, service in enumerate(("mail", "sms"))
    ]

    flow = build(Evidence(records=[PLACED, *records]))

    assert [(step.who, step.emitted) for step in flow.steps["e-1"]] == [("mail/notify", ("e-mail",)), ("sms/notify", ("e-sms",))]


def test_a_flow_that_goes_round_in_circles_starts_anew_where_it_is_too_deep() -> None:
    chain = [event("e-0", "ping", "t", 0)]
    chain += [event(f"e-{n}", "ping", "t", n, cause=f"e-{n - 1}", source="a/echo") for n in range(1, 5000)]

    lines = render(build(Evidence(records=chain)), now=NOW)

    assert sum("ping " in line for line in lines) == 5000
    assert max(map(len, lines)) < 120
    goes_on, begins = next((above, below) for above, below in pairwise(lines) if "goes on below" in above)
    assert goes_on.split() == ["└─", "...", "t[3]@11", "goes", "on", "below"]
    assert begins.split() == ["ping", "t[3]@11", "00:58:02.114"]


def chances(count: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(-1, count), min_size=count, max_size=count)


@given(st.integers(1, 12).flatmap(chances))
def test_whatever_causes_are_claimed_every_event_is_drawn_exactly_once(causes: Sequence[int]) -> None:
    # -1: no cause; the number itself or a later one: a ring; one past the last: a cause that isn't there.
    records = [
        event(f"e-{n}", f"type-{n}.", "t", n, cause=None if cause < 0 else f"e-{cause}", source="a/b", at=BEGAN + timedelta(seconds=n))
        for n, cause in enumerate(causes)
    ]

    flow = build(Evidence(records=records))
    lines = render(flow, now=NOW)

    for n in range(len(causes)):
        assert sum(f"type-{n}. " in line for line in lines) == 1
    assert {root for root in flow.roots if flow.events[root].cause_id is None} == {f"e-{n}" for n, cause in enumerate(causes) if cause < 0}
