"""A letter of an event that ended processes: its replay must not end them for ever."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest

from choreo.core.offset_map import OffsetMap, read_map, write_map
from choreo.handler import Context
from choreo.letter import LetterState, ReplayOutcome, read_replay, read_state, state_record
from choreo.replay.run import Reason, run_entries, write_run
from choreo.testing import MemoryBroker
from tests.runtime.shop import P0, SHOP, Book, becomes, committed, place, shop, shop_broker


@pytest.fixture(autouse=True)
def no_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.runtime.replay_log.AGAIN_S", 0.01)


async def a_letter_of_a_killer(broker: MemoryBroker) -> LetterState:
    async def fails(context: Context) -> None:
        raise ValueError("broken")

    place(broker, "killer")
    async with shop(broker, Book(fails)).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it is a letter", worker)
    (state,) = [found for record in broker.records(f"{SHOP}.letters") if isinstance(found := read_state(record), LetterState)]
    made = msgspec.structs.replace(state, kind="crash-loop")
    broker.write(state_record(f"{SHOP}.letters", made, 1))
    return made


def bad_ends(broker: MemoryBroker, ends: int) -> None:
    topic_id = broker.cluster().topic_ids(["orders"])["orders"]
    broker.set_committed(SHOP, P0, 1, write_map(OffsetMap(topic_id, 1, ends, 1, 1)))


def counted(broker: MemoryBroker) -> int | None:
    topic_id = broker.cluster().topic_ids(["orders"])["orders"]
    found = read_map(broker.committed_texts(SHOP)[P0], topic_id=topic_id, offset=committed(broker) or 0)
    return found.unclean if isinstance(found, OffsetMap) else None


def ask(broker: MemoryBroker, letter: LetterState, *, forced: bool = False) -> None:
    write_run(broker, f"{SHOP}.replay", run_entries("r1", [letter], Reason(by="ana", forced=forced), datetime.now(UTC)))


def outcomes(broker: MemoryBroker) -> list[ReplayOutcome]:
    return [entry for record in broker.records(f"{SHOP}.replay") if isinstance(entry := read_replay(record), ReplayOutcome)]


async def test_that_it_begins_is_recorded_before_it_does() -> None:
    broker = shop_broker()
    letter = await a_letter_of_a_killer(broker)
    counts: list[int | None] = []

    async def looks(context: Context) -> None:
        counts.append(counted(broker))

    ask(broker, letter)
    async with shop(broker, Book(looks)).worker() as worker:
        await becomes(lambda: outcomes(broker), "it is answered", worker)

    assert ([outcome.result for outcome in outcomes(broker)], counts) == (["resolved"], [1])


async def test_after_two_bad_ends_in_a_row_it_is_refused_and_says_what_to_do() -> None:
    broker, book = shop_broker(), Book()
    letter = await a_letter_of_a_killer(broker)
    bad_ends(broker, 2)

    ask(broker, letter)
    async with shop(broker, book).worker() as worker:
        await becomes(lambda: outcomes(broker), "it is answered", worker)

    (outcome,) = outcomes(broker)
    assert (outcome.result, book.calls) == ("refused", [])
    assert outcome.error == (
        "the process has ended 2 times in a row, and this event has ended processes; mend the handler,"
        " then replay when an event of orders[0] has been handled, or with --force"
    )


async def test_who_forces_it_gets_it() -> None:
    broker, book = shop_broker(), Book()
    letter = await a_letter_of_a_killer(broker)
    bad_ends(broker, 2)

    ask(broker, letter, forced=True)
    async with shop(broker, book).worker() as worker:
        await becomes(lambda: outcomes(broker), "it is answered", worker)

    assert (outcomes(broker)[0].result, book.calls) == ("resolved", ["killer"])
