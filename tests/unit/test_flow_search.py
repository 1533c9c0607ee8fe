"""Does a search find a flow, and own up to what it has not looked at?"""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from choreo.flows.search import Bounds, ServiceTopics, find_flow, search
from choreo.letter import LetterState, Place, ReplayOutcome, Request, Run, letter_key, replay_record, state_record
from choreo.record import Outgoing
from choreo.testing import MemoryBroker

NOW = datetime(2026, 11, 22, 3, 12, tzinfo=UTC)
PAYMENTS = ServiceTopics(service="payments", letters="payments.letters", replay="payments.replay")


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    for topic, partitions in (("orders", 3), ("stock", 2), ("payments.letters", 3), ("payments.replay", 1)):
        broker.create_topic(topic, partitions=partitions)
    return broker


def write(broker: MemoryBroker, topic: str, event_id: str, flow_id: str) -> None:
    headers = [("choreo-id", event_id.encode()), ("choreo-correlation-id", flow_id.encode())]
    broker.write(Outgoing(topic, event_id.encode(), b"{}", headers))


def letter(event_id: str, handler: str = "charge-card") -> LetterState:
    return LetterState(
        state="open",
        kind="failed",
        handler=handler,
        event_id=event_id,
        dlq=Place("payments.dlq", 0, 1),
        origin=Place("orders", 0, 1),
        first_failed_at=NOW,
        last_failed_at=NOW,
    )


def test_a_flow_is_found_in_all_its_topics_with_its_letters_and_replays(broker: MemoryBroker) -> None:
    for number in range(30):
        write(broker, "orders", f"e-{number}", f"flow-{number}")
    write(broker, "stock", "e-30", "flow-7")
    for state in (letter("e-7"), letter("e-8"), letter("e-30", "notify")):
        broker.write(state_record("payments.letters", state, 3))
    for run, event_id in (("run-1", "e-7"), ("run-2", "e-8")):
        broker.write(replay_record("payments.replay", Run(run=run, by="ana", reason="", forced=False, letters=1, at=NOW)))
        request = Request(
            run=run,
            handler="charge-card",
            event_id=event_id,
            origin=Place("orders", 0, 1),
            dlq=Place("payments.dlq", 0, 1),
            by="ana",
            reason="",
            forced=False,
            at=NOW,
        )
        broker.write(replay_record("payments.replay", request))
        broker.write(
            replay_record(
                "payments.replay", ReplayOutcome(run=run, handler="charge-card", event_id=event_id, result="resolved", attempts=1, at=NOW)
            )
        )

    evidence, found = find_flow(broker.reader(), "flow-7", ["orders", "stock"], [PAYMENTS], Bounds())

    assert sorted(dict(record.headers)["choreo-id"] or b"" for record in evidence.records) == [b"e-30", b"e-7"]
    assert {letter.state.event_id for letter in evidence.letters} == {"e-7", "e-30"}
    assert (set(evidence.runs), [ended.outcome.event_id for ended in evidence.outcomes]) == ({"run-1"}, ["e-7"])
    assert (found.read, found.unread) == (31, 0)


def test_what_is_not_ours_in_the_letters_and_the_replay_log_stops_nothing(broker: MemoryBroker) -> None:
    write(broker, "orders", "e-1", "flow-1")
    broker.write(Outgoing("payments.letters", letter_key("charge-card", "e-1"), b"what is this?", (), 0))
    broker.write(Outgoing("payments.letters", None, None, (), 1))
    broker.write(Outgoing("payments.letters", b"letter|\xff|", b"", (), 2))
    broker.write(state_record("payments.letters", letter("e-1"), 3))
    broker.write(Outgoing("payments.replay", b"run-1", b"nor this", (), 0))

    evidence, _ = find_flow(broker.reader(), "flow-1", ["orders"], [PAYMENTS], Bounds())

    assert [letter.service for letter in evidence.letters] == ["payments"]
    assert evidence.outcomes == []


def test_the_newest_records_are_searched_and_the_older_ones_counted(broker: MemoryBroker) -> None:
    for number in range(100):
        broker.write(Outgoing("orders", None, str(number).encode(), (), 0))
    for number in range(20):
        broker.write(Outgoing("stock", None, str(number).encode(), (), 1))

    found = search(broker.reader(), ["orders", "stock"], lambda _: True, Bounds(max_records=60))

    assert [record.offset for record in found.records if record.topic == "orders"] == list(range(50, 100))
    assert [record.offset for record in found.records if record.topic == "stock"] == list(range(10, 20))
    assert (found.read, found.unread) == (60, 60)


def test_enough_is_enough(broker: MemoryBroker) -> None:
    for number in range(40):
        write(broker, "orders", f"e-{number}", "flow-1")

    found = search(broker.reader(), ["orders"], lambda _: True, Bounds(max_found=10))

    assert (len(found.records), found.read, found.unread) == (10, 10, 30)


def test_a_search_without_time_says_that_it_read_nothing(broker: MemoryBroker) -> None:
    for number in range(40):
        write(broker, "orders", f"e-{number}", "flow-1")

    found = search(broker.reader(), ["orders"], lambda _: True, Bounds(deadline_s=0))

    assert (found.records, found.read, found.unread) == ([], 0, 40)


def test_empty_topics_have_nothing_to_find(broker: MemoryBroker) -> None:
    found = search(broker.reader(), ["orders"], lambda _: True, Bounds())

    assert (found.records, found.read, found.unread) == ([], 0, 0)
