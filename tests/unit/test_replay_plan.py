"""Which letters a replay takes, which it leaves out, and what it writes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from choreo.errors import BrokerError, ConfigurationError
from choreo.letter import read_replay, replay_record
from choreo.replay.ledger import RunView
from choreo.replay.plan import ReplayPlan, Selection, plan_replay
from choreo.replay.run import Reason, follow, new_run_id, run_entries, tally, write_run
from choreo.testing import MemoryBroker
from tests.unit import letters as made


def ids(plan: ReplayPlan) -> list[str]:
    return [letter.event_id for letter in plan.letters]


# ---- the plan -------------------------------------------------------------------------------------------------------


def test_all_takes_the_open_letters_in_the_order_of_their_events() -> None:
    ledger = made.ledger(made.letter("e-1"), made.letter("e-2", offset=1), made.letter("e-3", offset=2, state="resolved"))

    plan = plan_replay(ledger, Selection(all=True))

    assert ids(plan) == ["e-1", "e-2"]
    assert plan.refused == ()


def test_a_group_a_key_and_a_handler_narrow_it() -> None:
    ledger = made.ledger(
        made.letter("e-1"),
        made.letter("e-2", offset=1, fingerprint="77be0000", key="by0y"),
        made.letter("e-3", offset=2, handler="book-payment"),
    )

    assert ids(plan_replay(ledger, Selection(group="77be"))) == ["e-2"]
    assert ids(plan_replay(ledger, Selection(key="o-2"))) == ["e-2"]
    assert ids(plan_replay(ledger, Selection(all=True, handler="book-payment"))) == ["e-3"]


def test_an_id_names_the_letters_of_that_event() -> None:
    ledger = made.ledger(made.letter("e-1"), made.letter("e-1", handler="book-payment"), made.letter("e-2", offset=1))

    assert ids(plan_replay(ledger, Selection(ids=("e-1",)))) == ["e-1", "e-1"]
    assert ids(plan_replay(ledger, Selection(ids=("e-1",), handler="charge-card"))) == ["e-1"]


def test_an_unknown_id_is_refused_and_the_others_go() -> None:
    plan = plan_replay(made.ledger(made.letter("e-1")), Selection(ids=("e-1", "e-7")))

    assert ids(plan) == ["e-1"]
    assert [(refusal.event_id, refusal.why, refusal.done) for refusal in plan.refused] == [("e-7", "no such letter", False)]


def test_what_is_resolved_is_left_out_as_done_unless_it_is_forced() -> None:
    ledger = made.ledger(made.letter("e-1", state="resolved", run="7f3a"))

    plan = plan_replay(ledger, Selection(ids=("e-1",)))
    forced = plan_replay(ledger, Selection(ids=("e-1",), forced=True))

    assert ids(plan) == []
    assert plan.refused[0].done
    assert "by run 7f3a" in plan.refused[0].why
    assert ids(forced) == ["e-1"]


def test_forcing_all_does_not_wake_what_was_resolved() -> None:
    ledger = made.ledger(made.letter("e-1", state="resolved"), made.letter("e-2", offset=1))

    assert ids(plan_replay(ledger, Selection(all=True, forced=True))) == ["e-2"]


def test_a_letter_whose_record_is_gone_is_refused() -> None:
    plan = plan_replay(made.ledger(made.letter("e-1", offset=5), held=3), Selection(all=True))

    assert ids(plan) == []
    assert "retention deleted it" in plan.refused[0].why


def test_a_letter_that_waits_in_another_run_is_left_out_unless_one_says_again() -> None:
    one = made.letter("e-1")
    waiting = RunView("7f3a")
    waiting.take(made.request("7f3a", one))
    ledger = replace(made.ledger(one), runs={"7f3a": waiting})

    plan = plan_replay(ledger, Selection(all=True))

    assert ids(plan) == []
    assert "in run 7f3a already" in plan.refused[0].why
    assert ids(plan_replay(ledger, Selection(all=True, again=True))) == ["e-1"]


def test_an_event_that_died_at_two_places_is_asked_for_once_a_run() -> None:
    ledger = made.ledger(made.letter("e-1"), made.letter("e-1", partition=1))

    plan = plan_replay(ledger, Selection(all=True))

    assert [letter.origin.partition for letter in plan.letters] == [0]
    assert "orders[1]@0" in plan.refused[0].why


@pytest.mark.parametrize("said", [{}, {"all": True, "ids": ("e-1",)}, {"group": "3fa9", "key": "o-1"}])
def test_exactly_one_way_to_name_letters_is_said(said: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="which letters"):
        Selection(**said)  # type: ignore[arg-type]


def test_a_misspelt_handler_or_group_is_said() -> None:
    ledger = made.ledger(made.letter("e-1"))

    with pytest.raises(ConfigurationError, match="did you mean 'charge-card'"):
        plan_replay(ledger, Selection(all=True, handler="charge-crad"))
    with pytest.raises(ConfigurationError, match="no open letter of group 77be"):
        plan_replay(ledger, Selection(group="77be"))


# ---- the run --------------------------------------------------------------------------------------------------------


def log_of(broker: MemoryBroker) -> list[object]:
    return [read_replay(record) for record in broker.records("shop.replay")]


def test_a_run_is_its_first_record_and_a_request_for_each_letter_in_order() -> None:
    one, two = made.letter("e-1"), made.letter("e-2", offset=1)

    entries = run_entries("7f3a", [one, two], Reason(by="ana", why="fixed"), made.NOON)

    assert entries == [made.begun("7f3a", 2), made.request("7f3a", one), made.request("7f3a", two)]


def test_a_run_id_is_one_that_no_run_has() -> None:
    run = new_run_id({"7f3a"})

    assert len(run) == 8
    assert int(run, 16) >= 0


def test_the_run_stands_in_the_log_when_it_is_written() -> None:
    broker = MemoryBroker()
    broker.create_topic("shop.replay")
    broker.write(replay_record("shop.replay", made.begun("0000", 0)))
    entries = run_entries("7f3a", [made.letter("e-1")], Reason(by="ana", why="fixed"), made.NOON)

    start = write_run(broker, "shop.replay", entries)

    assert start == 1
    assert log_of(broker)[1:] == entries


def test_a_run_that_can_not_be_written_says_how_much_of_it_was() -> None:
    broker = MemoryBroker()
    broker.create_topic("shop.replay")
    broker.fail_sends("shop.replay", "_MSG_TIMED_OUT", times=1)

    with pytest.raises(BrokerError, match="run 7f3a: 1 of 2 records were written"):
        write_run(broker, "shop.replay", run_entries("7f3a", [made.letter("e-1")], Reason(by="ana"), made.NOON))


def test_following_ends_when_every_request_has_an_outcome() -> None:
    broker = MemoryBroker()
    broker.create_topic("shop.replay")
    one, two = made.letter("e-1"), made.letter("e-2", offset=1)
    view = RunView("7f3a")
    for entry in (made.begun("7f3a", 2), made.request("7f3a", one), made.request("7f3a", two)):
        view.take(entry)
        broker.write(replay_record("shop.replay", entry))
    for ended in (made.outcome("other", one), made.outcome("7f3a", one), made.outcome("7f3a", two, "failed-again")):
        broker.write(replay_record("shop.replay", ended))
    broker.write(replay_record("shop.replay", made.begun("later", 0)))

    steps = list(follow(broker.reader(), "shop.replay", view, 0, silence_s=5))

    assert len(steps) == 1
    assert tally(view.outcomes.values()) == {"resolved": 1, "already-done": 0, "failed-again": 1, "refused": 0}
    assert view.waiting() == []


def test_following_a_service_that_is_down_ends_after_the_silence() -> None:
    broker = MemoryBroker()
    broker.create_topic("shop.replay")
    view = RunView("7f3a")
    view.take(made.request("7f3a", made.letter("e-1")))

    assert list(follow(broker.reader(), "shop.replay", view, 0, silence_s=0)) == []
    assert len(view.waiting()) == 1
