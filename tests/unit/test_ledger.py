"""What the ledger makes of a service's topics, and what a report and a look at the dlq make of the ledger."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from choreo.errors import ConfigurationError
from choreo.letter import Place, dlq_topic, letters_topic, replay_topic, state_record
from choreo.record import Outgoing, Record, TopicPartition
from choreo.replay.contents import Stray, fetch_places, read_dlq, strays
from choreo.replay.ledger import Ledger, LetterId, fold, open_by_topic, read_ledger
from choreo.replay.report import innermost_frame, producer, report, short_names, trend, what_failed
from choreo.testing import MemoryBroker
from tests.unit import letters as made

# ---- the fold -------------------------------------------------------------------------------------------------------


def test_the_latest_state_of_a_letter_counts() -> None:
    first, again = made.letter(attempts=3), made.letter(attempts=6)
    resolved = msgspec.structs.replace(again, state="resolved", run="7f3a")

    ledger = fold("shop", made.states(first, again, resolved), [])

    assert list(ledger.letters) == [resolved]
    assert ledger.open() == []


def test_a_tombstone_takes_a_letter_out() -> None:
    (state,) = made.states(made.letter())

    ledger = fold("shop", [state, Record(state.topic, 0, 1, 0, state.key, None)], [])

    assert list(ledger.letters) == []


def test_letters_stand_in_the_order_of_their_events() -> None:
    late, early, other = made.letter("e-3", offset=7), made.letter("e-1", offset=2), made.letter("e-2", partition=1, offset=0)

    ledger = fold("shop", made.states(late, other, early), [])

    assert [letter.event_id for letter in ledger.letters] == ["e-1", "e-3", "e-2"]


def test_one_event_in_two_partitions_is_two_letters() -> None:
    here, there = made.letter("e-1", partition=0), made.letter("e-1", partition=1)
    records = [
        made.stored(state_record("shop.letters", here, 1), partition=0),
        made.stored(state_record("shop.letters", there, 1), partition=1),
    ]

    ledger = fold("shop", records, [])

    assert [letter.origin.partition for letter in ledger.open()] == [0, 1]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"letter|x", b"{}"),
        (b"letter|x|y", b"\xff"),
        (b"letter|x|y", b'{"state": "open"}'),
        (None, b"{}"),
        (b"something else", b"{}"),
        (b"\xff\xfe", None),
    ],
)
def test_what_is_not_ours_is_listed_and_stops_nobody(key: bytes | None, value: bytes | None) -> None:
    strange = Record("shop.letters", 0, 9, 0, key, value)

    ledger = fold("shop", [*made.states(made.letter()), strange], [Record("shop.replay", 0, 0, 0, b"x", b"nonsense")])

    assert [letter.event_id for letter in ledger.letters] == ["e-1"]
    assert len(ledger.unreadable) == 2
    assert "shop.letters[0]@9" in ledger.unreadable[0]


def test_marks_of_owners_are_no_letters() -> None:
    mark = Record("shop.letters", 0, 0, 0, b"owner|orders|3", b'{"epoch": 1, "position": 0, "partitions": 6}')

    ledger = fold("shop", [mark], [])

    assert (list(ledger.letters), list(ledger.unreadable)) == ([], [])


def test_a_run_knows_what_waits_and_what_was_never_asked_for() -> None:
    one, two = made.letter("e-1"), made.letter("e-2", offset=1)

    ledger = fold(
        "shop",
        made.states(one, two),
        made.log(made.begun("7f3a", 3), made.request("7f3a", one), made.request("7f3a", two), made.outcome("7f3a", one)),
    )

    run = ledger.runs["7f3a"]
    assert [request.event_id for request in run.waiting()] == ["e-2"]
    assert run.never_requested() == 1
    assert (ledger.waiting_in(one), ledger.waiting_in(two)) == (None, "7f3a")


def test_the_first_outcome_of_a_request_counts() -> None:
    one = made.letter()

    ledger = fold(
        "shop", [], made.log(made.request("7f3a", one), made.outcome("7f3a", one, "resolved"), made.outcome("7f3a", one, "already-done"))
    )

    assert ledger.runs["7f3a"].outcomes[LetterId("charge-card", "e-1")].result == "resolved"


def test_a_letter_is_gone_when_retention_has_passed_it() -> None:
    old, new = made.letter("e-1", offset=3), made.letter("e-2", offset=4)
    ledger = Ledger(service="shop", letters=[old, new], runs={}, dlq_ends={TopicPartition("shop.dlq", 0): (4, 9)})

    assert (ledger.is_gone(old), ledger.is_gone(new)) == (True, False)


# ---- reading --------------------------------------------------------------------------------------------------------


def service_topics(broker: MemoryBroker, service: str = "shop") -> None:
    for topic in (dlq_topic(service), letters_topic(service), replay_topic(service)):
        broker.create_topic(topic)


def test_reading_gives_the_ledger_of_what_the_topics_hold() -> None:
    broker = MemoryBroker()
    service_topics(broker)
    record, state = made.died("e-1", dlq_offset=0)
    broker.write(record)
    broker.write(state_record("shop.letters", state, 1))

    ledger = read_ledger(broker, "shop", str)

    assert list(ledger.letters) == [state]
    assert not ledger.is_gone(state)


def test_an_unknown_service_is_named_with_the_one_that_was_meant() -> None:
    broker = MemoryBroker()
    service_topics(broker, "t1-shop")

    with pytest.raises(ConfigurationError) as caught:
        read_ledger(broker, "shap", lambda logical: f"t1-{logical}")

    assert "no service 'shap'" in str(caught.value)
    assert str(caught.value).endswith("; did you mean 'shop'?")


def test_open_letters_are_counted_by_their_topic() -> None:
    broker = MemoryBroker()
    service_topics(broker)
    for state in (made.letter("e-1"), made.letter("e-2", offset=1), made.letter("e-3", offset=2, state="resolved")):
        broker.write(state_record("shop.letters", state, 1))

    assert open_by_topic(broker, "shop.letters") == {"orders": 2}
    assert open_by_topic(broker, "nowhere.letters") == {}


def test_records_are_fetched_by_their_places() -> None:
    broker = MemoryBroker()
    service_topics(broker)
    for number in range(5):
        broker.write(Outgoing("shop.dlq", b"k", b"%d" % number))
    broker.trim("shop.dlq", 0, before=1)
    ledger = read_ledger(broker, "shop", str)

    found = fetch_places(broker, ledger, [Place("shop.dlq", 0, offset) for offset in (0, 1, 3, 9)] + [Place("other", 0, 0)])

    assert {place.offset: record.value for place, record in found.items()} == {1: b"1", 3: b"3"}


# ---- what the dlq holds beside letters --------------------------------------------------------------------------------


def test_records_that_nobody_can_read_are_opaque_and_copies_without_a_state_abandoned() -> None:
    broker = MemoryBroker()
    service_topics(broker)
    record, state = made.died("e-1", dlq_offset=0)
    copy, _ = made.died("e-9", dlq_offset=1)
    nameless = [(name, value) for name, value in copy.headers if name != "choreo-dlq-handler"]
    broker.write(record)
    broker.write(copy)
    broker.write(Outgoing("shop.dlq", None, b"what is this", [("choreo-dlq-topic", b"\xff"), ("a", None)]))
    broker.write(Outgoing("shop.dlq", None, None, nameless))
    broker.write(state_record("shop.letters", state, 1))
    ledger = read_ledger(broker, "shop", str)

    found = strays(ledger, read_dlq(broker, ledger))

    assert [(stray.place.offset, stray.kind) for stray in found] == [(1, "abandoned"), (2, "opaque"), (3, "opaque")]
    assert isinstance(found[1], Stray)
    assert found[1].bytes == 12


def test_an_older_copy_of_a_letter_that_died_again_belongs_to_it() -> None:
    broker = MemoryBroker()
    service_topics(broker)
    first, _ = made.died("e-1", dlq_offset=0)
    again, state = made.died("e-1", dlq_offset=1)
    broker.write(first)
    broker.write(again)
    broker.write(state_record("shop.letters", state, 1))
    ledger = read_ledger(broker, "shop", str)

    assert strays(ledger, read_dlq(broker, ledger)) == []


# ---- the report -----------------------------------------------------------------------------------------------------


def test_letters_are_grouped_by_their_failure_the_largest_group_first() -> None:
    now = made.NOON + timedelta(hours=2)
    one = made.letter("e-1", fingerprint="77be0000", handler="book-payment", first_failed_at=made.NOON + timedelta(hours=1))
    two, three = made.letter("e-2", offset=1), made.letter("e-3", offset=2, kind="parked")

    made_report = report([one, two, three], now)

    assert [(group.name, group.handlers, group.failed, group.parked) for group in made_report.groups] == [
        ("3fa9", ("charge-card",), 1, 1),
        ("77be", ("book-payment",), 1, 0),
    ]
    assert (made_report.letters, made_report.parked, made_report.oldest) == (3, 1, made.NOON)
    assert made_report.window == timedelta(hours=2)
    assert made_report.groups[0].example == two


def test_nothing_open_is_an_empty_report() -> None:
    empty = report([], made.NOON)

    assert (empty.groups, empty.letters, empty.oldest) == ((), 0, None)


def test_a_trend_counts_failures_in_eight_spans() -> None:
    times = [made.NOON, made.NOON + timedelta(minutes=5), made.NOON + timedelta(minutes=79), made.NOON + timedelta(hours=9)]

    assert trend(times, made.NOON, timedelta(minutes=80)) == (2, 0, 0, 0, 0, 0, 0, 2)


def test_a_group_is_named_by_as_much_as_tells_it_apart() -> None:
    assert short_names(["3fa9c01d", "3fa9c0ff", "77be0000", ""]) == {
        "3fa9c01d": "3fa9c01",
        "3fa9c0ff": "3fa9c0f",
        "77be0000": "77be",
        "": "",
    }


def test_what_failed_says_the_error_its_place_and_its_message() -> None:
    assert what_failed(made.letter(), made.STACK) == "ReadTimeout gateway.py:41: slow"
    assert what_failed(made.letter()) == "ReadTimeout: slow"
    assert what_failed(made.letter(message="orders[0]@0: ReadTimeout")) == "ReadTimeout"


def test_what_can_not_be_read_is_told_with_its_producer() -> None:
    message = "orders[0]@0: payload of order.placed: total_cents: expected int, got str; fix the producer orders/import, then replay"
    undecodable = made.letter(kind="undecodable", message=message)

    assert what_failed(undecodable, made.STACK) == "payload of order.placed: total_cents: expected int, got str"
    assert producer(undecodable) == "orders/import"


def test_the_innermost_frame_is_one_of_the_users_own() -> None:
    stack = (
        made.STACK
        + '  File "/venv/site-packages/httpx/client.py", line 9, in send\n  File "/x/choreo/runtime/delivery.py", line 1, in deliver\n'
    )

    assert innermost_frame(stack) == "gateway.py:41"
    assert innermost_frame("no stack at all") == ""
