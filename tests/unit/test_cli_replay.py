"""``choreo replay`` on a broker in memory, with the service running beside it or not."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from choreo.cli import asking
from choreo.letter import ReplayEntry, Request, Run, read_replay, replay_record
from choreo.replay.ledger import read_ledger
from choreo.testing import MemoryBroker
from tests.support.waiting import wait_for
from tests.unit import cli_desk
from tests.unit import letters as made
from tests.unit.cli_desk import DESK, choreo


@pytest.fixture
def broker() -> MemoryBroker:
    return cli_desk.fresh()


@contextmanager
def running() -> Iterator[None]:
    """The service at work on another thread."""
    loop = asyncio.new_event_loop()
    stop, up = asyncio.Event(), threading.Event()

    async def work() -> None:
        async with cli_desk.desk().running():
            up.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(work()))
    thread.start()
    try:
        assert up.wait(10)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


def die(broker: MemoryBroker, *orders: str) -> list[str]:
    """Publishes orders that die; the ids of their events, in the order of their letters."""
    with cli_desk.desk().publisher() as publisher:
        for order in orders:
            publisher.publish(cli_desk.OrderPlaced(order_id=order, total_cents=5_000), event_id=f"e-{order}")
    with running():
        wait_for(lambda: len(read_ledger(broker, "desk", str).open()) == len(orders), "the letters", deadline_s=15)
    return [letter.event_id for letter in read_ledger(broker, "desk", str).open()]


def log(broker: MemoryBroker) -> list[ReplayEntry]:
    return [read_replay(record) for record in broker.records("desk.replay")]


# ---- asking ---------------------------------------------------------------------------------------------------------


def test_above_one_letter_it_is_not_confirmed_where_there_is_no_terminal(broker: MemoryBroker) -> None:
    die(broker, "o-1", "o-2")

    said = choreo("replay", DESK, "--all")

    assert said.code == 3
    assert "replays    2 letters; 2 keys" in said.out
    assert "reaches    desk/charge-card, nobody else" in said.out
    assert said.err == "not confirmed, nothing written: replay 2 letters of desk; to go: the same command with --yes\n"
    assert log(broker) == []


def test_a_dry_run_never_writes_whatever_else_is_said(broker: MemoryBroker) -> None:
    die(broker, "o-1", "o-2")

    shown, as_json = choreo("replay", DESK, "--all", "--dry-run", "--yes"), choreo("replay", DESK, "--all", "--dry-run", "--json")

    assert (shown.code, as_json.code) == (0, 0)
    assert "plan only, nothing written" in shown.out
    assert [letter["event_id"] for letter in json.loads(as_json.out)["letters"]] == ["e-o-1", "e-o-2"]
    assert log(broker) == []


@pytest.mark.parametrize(("answer", "code"), [("y", 1), ("n", 3)])
def test_on_a_terminal_it_asks(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch, answer: str, code: int) -> None:
    die(broker, "o-1", "o-2")
    monkeypatch.setattr(asking, "on_a_terminal", lambda: True)

    said = choreo("replay", DESK, "--all", "--timeout-s", "0", given=f"{answer}\n")

    assert said.code == code
    assert "replay 2 letters of desk? [y/N]" in said.out + said.err
    assert len(log(broker)) == (3 if answer == "y" else 0)


def test_one_letter_goes_without_asking(broker: MemoryBroker) -> None:
    (event_id,) = die(broker, "o-1")

    said = choreo("replay", DESK, "--id", event_id, "--timeout-s", "0")

    assert said.code == 1
    assert len(log(broker)) == 2


def test_nothing_said_about_which_letters_is_exit_2(broker: MemoryBroker) -> None:
    said = choreo("replay", DESK, "--yes")

    assert said.code == 2
    assert "which letters?" in said.err


def test_nothing_to_replay_is_exit_0(broker: MemoryBroker) -> None:
    assert choreo("replay", DESK, "--all").code == 0


# ---- running --------------------------------------------------------------------------------------------------------


def test_letters_are_resolved_and_the_run_says_who_and_why(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "ana")
    die(broker, "o-1", "o-2")
    cli_desk.mend()

    with running():
        said = choreo("replay", DESK, "--all", "--yes", "--reason", "gateway mended")

    assert said.code == 0
    assert "done: 2 resolved" in said.out
    begun = log(broker)[0]
    assert isinstance(begun, Run)
    assert (begun.by, begun.reason, begun.letters) == ("ana", "gateway mended", 2)
    assert read_ledger(broker, "desk", str).open() == []


def test_letters_that_fail_again_are_named_and_are_exit_1(broker: MemoryBroker) -> None:
    die(broker, "o-1", "o-2")

    with running():
        said = choreo("replay", DESK, "--all", "--yes")

    assert said.code == 1
    assert "2 failed again" in said.out
    assert "failed-again  e-o-1 of charge-card" in said.out
    assert "look  choreo dlq report desk" in said.out


def test_json_is_one_document_with_an_outcome_for_each_letter(broker: MemoryBroker) -> None:
    die(broker, "o-1", "o-2")
    cli_desk.mend()

    with running():
        said = choreo("replay", DESK, "--all", "--yes", "--json")

    document = json.loads(said.out)
    assert (document["letters"], document["resolved"], document["failed_again"], document["waiting"]) == (2, 2, 0, 0)
    assert [each["event_id"] for each in document["outcomes"]] == ["e-o-1", "e-o-2"]


def test_a_resolved_letter_is_done_unless_it_is_forced(broker: MemoryBroker) -> None:
    (event_id,) = die(broker, "o-1")
    cli_desk.mend()
    with running():
        choreo("replay", DESK, "--id", event_id)
        before = len(broker.records("payments"))

        again, forced = choreo("replay", DESK, "--id", event_id), choreo("replay", DESK, "--id", event_id, "--force")

    assert (again.code, forced.code) == (0, 0)
    assert "resolved already by run" in again.out
    assert "done: 1 resolved" in forced.out
    assert len(broker.records("payments")) == before + 1


# ---- while the service is down --------------------------------------------------------------------------------------


def test_requests_wait_in_the_log_until_the_service_runs_and_any_process_may_follow(broker: MemoryBroker) -> None:
    die(broker, "o-1", "o-2")

    said = choreo("replay", DESK, "--all", "--yes", "--timeout-s", "0")

    assert said.code == 1
    assert "is desk running? The requests wait in the log" in said.out
    run = log(broker)[0].run
    assert f"choreo replay desk --follow {run}" in said.out
    cli_desk.mend()
    with running():
        followed = choreo("replay", DESK, "--follow", run[:4])
    assert followed.code == 0
    assert f"run {run}  done: 2 resolved" in followed.out


def test_letters_that_wait_are_not_asked_for_twice(broker: MemoryBroker) -> None:
    die(broker, "o-1")
    choreo("replay", DESK, "--all", "--timeout-s", "0")

    second = choreo("replay", DESK, "--all", "--timeout-s", "0")
    again = choreo("replay", DESK, "--all", "--again", "--timeout-s", "0")

    assert second.code == 1
    assert "already, waiting" in second.out
    assert again.code == 1
    assert sum(isinstance(entry, Request) for entry in log(broker)) == 2


def test_a_run_that_was_begun_by_halves_says_what_was_never_asked_for(broker: MemoryBroker) -> None:
    broker.write(replay_record("desk.replay", made.begun("7f3a", 2)))

    said = choreo("replay", DESK, "--follow", "7f3a")

    assert said.code == 1
    assert "2 letters were never asked for" in said.out


def test_an_unknown_run_is_exit_2(broker: MemoryBroker) -> None:
    said = choreo("replay", DESK, "--follow", "beef")

    assert said.code == 2
    assert "0 runs begin with 'beef'" in said.err
