"""``choreo outbox ls|retry|discard``: what an operator sees of events that can't be published, and what becomes of them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from choreo.record import Outgoing
from choreo.storage.sqlite import SqliteStore
from choreo.store import OutboxRow
from tests.unit.cli_desk import Said
from tests.unit.cli_desk import choreo as run

HERE = "tests.unit.store_desk"
DESK = f"{HERE}:with_outbox"
REASON = "writing to orders: message too large\x1b[31m; ask for less"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    store = SqliteStore(path)
    store.open("desk")
    store.close()
    return path


def choreo(file: Path, *words: str) -> Said:
    return run("outbox", *words, environment={"OUTBOX_FILE": str(file)})


def row(number: int, key: bytes | None = b"o-1", due: datetime | timedelta | None = None) -> OutboxRow:
    headers = [("choreo-id", f"e{number}".encode()), ("choreo-correlation-id", b"f1")]
    return OutboxRow(Outgoing("orders", key, b"{}", headers), "order.placed", f"e{number}", due)


def filled(file: Path, rows: Sequence[OutboxRow], aside: Sequence[str] = ()) -> dict[str, int]:
    """Commits rows, sets some of them aside; the number of each."""
    store = SqliteStore(file)
    with closing(sqlite3.connect(file)) as connection, connection:
        store.add(connection, "desk", rows)
    with closing(store.outbox("desk")) as outbox:
        numbers = {stored.event_id: stored.seq for stored in outbox.waiting(100)}
        for event_id in aside:
            outbox.set_aside(numbers[event_id], REASON)
    return numbers


def due(file: Path) -> list[str]:
    with closing(SqliteStore(file).outbox("desk")) as outbox:
        return [stored.event_id for stored in outbox.due(range(16), 100)]


def test_an_empty_outbox_is_fine(file: Path) -> None:
    said = choreo(file, "ls", DESK)

    assert (said.code, said.out) == (0, "desk: 0 events to publish; 0 timers; 0 set aside\n")


def test_what_waits_is_listed_those_set_aside_first_and_what_strangers_wrote_is_escaped(file: Path) -> None:
    numbers = filled(file, [row(1), row(2), row(3, None, datetime.now(UTC) + timedelta(hours=2))], aside=["e1"])

    said = choreo(file, "ls", DESK)

    assert said.code == 1
    first, heading, one, *_ = said.out.splitlines()
    assert first.startswith("desk: 1 event to publish, the oldest for ")
    assert first.endswith("1 timer; 1 set aside")
    assert heading.split()[:6] == ["number", "type", "topic", "key", "event", "since"]
    assert str(numbers["e1"]) in one
    assert "message too large" in said.out.replace("\n", " ")
    assert "\x1b" not in said.out
    assert "due in 1 h 59 min" in " ".join(said.out.split()) or "1 h 59" in said.out
    assert f"choreo outbox retry {DESK} --all" in said.out


def test_json_is_one_document(file: Path) -> None:
    filled(file, [row(1), row(2)], aside=["e1"])

    said = choreo(file, "ls", DESK, "--json", "--aside")

    found = json.loads(said.out)
    assert (said.code, found["due"], found["aside"], found["timers"]) == (1, 1, 1, 0)
    (event,) = found["events"]
    assert (event["event_id"], event["flow_id"], event["key"], event["type"]) == ("e1", "f1", "o-1", "order.placed")
    assert event["aside"].startswith("writing to orders")


def test_one_is_put_back_by_its_number(file: Path) -> None:
    numbers = filled(file, [row(1), row(2, b"o-2"), row(3)], aside=["e1", "e2"])

    said = choreo(file, "retry", DESK, str(numbers["e1"]))

    assert (said.code, said.out.splitlines()[-1]) == (0, "put back  1 event")
    assert due(file) == ["e1", "e3"]


def test_many_are_confirmed_first(file: Path) -> None:
    filled(file, [row(1), row(2, b"o-2")], aside=["e1", "e2"])

    asked, dry = choreo(file, "retry", DESK, "--all"), choreo(file, "retry", DESK, "--all", "--yes", "--dry-run")
    assert (asked.code, dry.code, due(file)) == (3, 0, [])
    assert "not confirmed, nothing written: retry 2 events of desk" in asked.err
    assert "plan only, nothing written" in dry.err

    went = choreo(file, "retry", DESK, "--all", "--yes")
    assert (went.code, went.out, due(file)) == (0, "put back  2 events\n", ["e1", "e2"])
    again = choreo(file, "retry", DESK, "--all")
    assert (again.code, again.out) == (0, "desk: nothing was set aside\n")


def test_a_discarded_one_is_gone_and_what_was_behind_it_goes_on(file: Path) -> None:
    numbers = filled(file, [row(1), row(2)], aside=["e1"])

    said = choreo(file, "discard", DESK, str(numbers["e1"]), "--json")

    assert (said.code, json.loads(said.out)["changed"], due(file)) == (0, 1, ["e2"])


@pytest.mark.parametrize("words", [["retry"], ["retry", "5", "--all"], ["retry", "5"], ["discard", "5"]])
def test_what_does_not_say_which_is_refused(file: Path, words: list[str]) -> None:
    filled(file, [row(1)])
    command, *rest = words

    said = choreo(file, command, DESK, *rest)

    assert said.code == 2
    assert ("name events by their numbers" in said.err) or ("5: not set aside" in said.err)


def test_a_service_without_an_outbox_says_so(file: Path) -> None:
    said = choreo(file, "ls", f"{HERE}:in_memory")

    assert said.code == 2
    assert "MemoryStore has none: Service(store=...)" in said.err
