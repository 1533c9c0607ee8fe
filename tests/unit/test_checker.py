"""Does the oracle see what it must see? Bugs that are seeded into a clean history, each caught by the promise it breaks."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.record import Record, TopicPartition
from tests.support.checker import check
from tests.support.facts import Admitted
from tests.support.history import Call, CleanStop, Commit, Effect, History, Letter, Produced, Recovery, Skip

TOPIC = "orders"
HANDLERS = {"charge": frozenset({TOPIC}), "book": frozenset({TOPIC})}


def clean(chance: random.Random, *, events: int, keys: int = 3, partitions: int = 2, odd: float = 0.2) -> History:
    """A run that kept every promise: handlers interleaved at random, `odd` of the deliveries dead-lettered or skipped."""
    produced = _produced(chance, events, keys, partitions)
    lanes: dict[tuple[str, bytes | None], list[Produced]] = defaultdict(list)
    for event in produced:
        for handler in HANDLERS:
            lanes[handler, event.key].append(event)
    effects: list[Effect] = []
    letters: list[Letter] = []
    skips: list[Skip] = []
    sums: dict[tuple[str, str], int] = defaultdict(int)
    at_s = 100.0
    ended: dict[tuple[str, str], float] = {}
    while lanes:
        lane = chance.choice(sorted(lanes, key=repr))
        handler, key = lane[0], (lane[1] or b"").decode()
        event = lanes[lane].pop(0) if lane[1] is not None else lanes[lane].pop(chance.randrange(len(lanes[lane])))
        if not lanes[lane]:
            del lanes[lane]
        at_s += 0.001
        ended[handler, event.event_id] = at_s
        fate = chance.random()
        if fate < odd / 2:
            headers = [*event.headers, ("choreo-dlq-kind", b"failed")]
            letters.append(Letter(handler, event.event_id, event.place, event.offset, event.key, event.value, headers, at_s))
        elif fate < odd:
            skips.append(Skip(handler, event.event_id, "asked to", at_s))
        else:
            sums[handler, key] += event.amount
            effects.append(Effect(handler, event.event_id, key, event.amount, sums[handler, key], at_s, pid=7))
    return History(
        handlers=HANDLERS,
        produced=produced,
        effects=effects,
        letters=letters,
        skips=skips,
        commits=_commits(produced, ended),
        calls=[Call(handler, event_id, 7, at_s - 0.0005, at_s) for (handler, event_id), at_s in ended.items()],
        log=[Record(e.topic, e.partition, e.offset, 0, e.key, e.value, e.headers) for e in produced],
        recovery=Recovery(healed_at_s=100.0, caught_up_at_s=at_s, deadline_s=at_s - 100.0),
        clean_stops=[CleanStop(at_s + 1, frozenset({7}))],
    )


def _produced(chance: random.Random, events: int, keys: int, partitions: int) -> list[Produced]:
    ends: dict[int, int] = defaultdict(int)
    produced = []
    for number in range(events):
        key_number = chance.randrange(keys + 1)
        key = f"k-{key_number}".encode() if key_number else None
        partition = key_number % partitions
        # Offsets have gaps, as on a compacted or transactional topic.
        offset = ends[partition] + chance.choice((0, 0, 1))
        ends[partition] = offset + 1
        event_id = f"e-{number}"
        headers = [("choreo-id", event_id.encode()), ("twice", None), ("twice", b"\xff")]
        produced.append(Produced(event_id, TOPIC, partition, offset, key, b"v%d" % number, headers, amount=chance.randrange(-5, 100)))
    return produced


def _commits(produced: list[Produced], ended: dict[tuple[str, str], float]) -> list[Commit]:
    """The tightest there may be: each offset at the moment when everything below it is finished."""
    commits = []
    for place in sorted({event.place for event in produced}):
        finished_at_s = 0.0
        for event in sorted((e for e in produced if e.place == place), key=lambda e: e.offset):
            finished_at_s = max(finished_at_s, *(ended[handler, event.event_id] for handler in HANDLERS))
            commits.append(Commit(place, event.offset + 1, finished_at_s))
    return commits


def some_run() -> History:
    return clean(random.Random(11), events=60)


@given(st.randoms(use_true_random=False), st.integers(0, 40), st.integers(1, 4), st.integers(1, 3))
def test_a_clean_history_breaks_no_promise(chance: random.Random, events: int, keys: int, partitions: int) -> None:
    history = clean(chance, events=events, keys=keys, partitions=partitions)

    report = check(history)

    assert [str(violation) for violation in report.violations] == []


def drop_one_effect(run: History) -> History:
    return replace(run, effects=[*run.effects[:20], *run.effects[21:]])


def drop_one_letter(run: History) -> History:
    return replace(run, letters=run.letters[1:])


def double_one_effect(run: History) -> History:
    twice = run.effects[20]
    return replace(run, effects=[*run.effects[:21], twice, *run.effects[21:]])


def commit_one_early(run: History) -> History:
    early = next(commit for commit in run.commits if commit.offset > 3)
    return replace(run, commits=[replace(c, at_s=c.at_s - 0.0001) if c is early else c for c in run.commits])


def commit_back(run: History) -> History:
    return replace(run, commits=[*run.commits, replace(run.commits[0], at_s=1e6)])


def swap_two_of_a_key(run: History) -> History:
    effects = list(run.effects)
    first = effects[0]
    other = next(n for n, effect in enumerate(effects) if n and (effect.handler, effect.key) == (first.handler, first.key))
    effects[0], effects[other] = effects[other], effects[0]
    return replace(run, effects=effects)


def alter_one_byte_of_a_letter(run: History) -> History:
    letter = run.letters[0]
    assert letter.value is not None
    return replace(run, letters=[replace(letter, value=bytes([letter.value[0] ^ 1]) + letter.value[1:]), *run.letters[1:]])


def make_an_empty_value_null(run: History) -> History:
    produced = [replace(event, value=b"") for event in run.produced]
    log = [Record(e.topic, e.partition, e.offset, 0, e.key, e.value, e.headers) for e in produced]
    return replace(run, produced=produced, log=log, letters=[replace(letter, value=None) for letter in run.letters])


def drop_a_repeated_header(run: History) -> History:
    letter = run.letters[0]
    return replace(run, letters=[replace(letter, headers=[letter.headers[0], *letter.headers[2:]]), *run.letters[1:]])


def letter_from_nowhere(run: History) -> History:
    return replace(run, letters=[replace(run.letters[0], offset=9999), *run.letters[1:]])


def never_catch_up(run: History) -> History:
    return replace(run, recovery=Recovery(100.0, None, 30.0))


def catch_up_late(run: History) -> History:
    return replace(run, recovery=Recovery(100.0, 130.1, 30.0))


def call_again_after_a_clean_stop(run: History) -> History:
    again = Call(run.effects[0].handler, run.effects[0].event_id, 8, 1e6, 1e6 + 1)
    return replace(run, calls=[*run.calls, again])


def leave_one_in_flight(run: History) -> History:
    return replace(run, calls=[replace(run.calls[0], ended_s=None), *run.calls[1:]])


def book_a_wrong_amount(run: History) -> History:
    effects = list(run.effects)
    effects[-1] = replace(effects[-1], amount=effects[-1].amount + 1, running_sum=effects[-1].running_sum + 1)
    return replace(run, effects=effects)


def lose_a_sum(run: History) -> History:
    effects = list(run.effects)
    effects[-1] = replace(effects[-1], running_sum=effects[-1].running_sum - 1)
    return replace(run, effects=effects)


def lose_a_record(run: History) -> History:
    assert run.log is not None
    return replace(run, log=run.log[1:])


def handle_what_nobody_wrote(run: History) -> History:
    return replace(run, effects=[*run.effects, Effect("charge", "e-none", "k-9", 1, 1, 1e6)])


SEEDED: list[tuple[Callable[[History], History], set[str]]] = [
    (drop_one_effect, {"I1", "I4", "SUM"}),
    (drop_one_letter, {"I1", "I4"}),
    (double_one_effect, {"I2", "SUM"}),
    (commit_one_early, {"I4"}),
    (commit_back, {"I4"}),
    (swap_two_of_a_key, {"I3", "SUM"}),
    (alter_one_byte_of_a_letter, {"I5"}),
    (make_an_empty_value_null, {"I5"}),
    (drop_a_repeated_header, {"I5"}),
    (letter_from_nowhere, {"I5"}),
    (never_catch_up, {"I7"}),
    (catch_up_late, {"I7"}),
    (call_again_after_a_clean_stop, {"I8"}),
    (leave_one_in_flight, {"I8"}),
    (book_a_wrong_amount, {"SUM"}),
    (lose_a_sum, {"SUM"}),
    (lose_a_record, {"LOG"}),
    (handle_what_nobody_wrote, {"PHANTOM"}),
]


@pytest.mark.parametrize(("bug", "names"), SEEDED, ids=[bug.__name__ for bug, _ in SEEDED])
def test_a_seeded_bug_is_caught_by_the_promise_it_breaks(bug: Callable[[History], History], names: set[str]) -> None:
    broken = bug(some_run())

    report = check(broken)

    assert report.names == names


# ---- what a redelivery may do ---------------------------------------------------------------------------------------


def lane_of(sequence: str) -> History:
    """The events A, B, C, ... of one key in log order, and their effects in the order of `sequence`; ``|`` only shows the crash."""
    ids = sorted(set(sequence) - {" ", "|"})
    produced = [Produced(name, TOPIC, 0, offset, b"k", b"v", amount=1) for offset, name in enumerate(ids)]
    rows = [name for name in sequence if name not in " |"]
    effects = [Effect("charge", name, "k", 1, number + 1, 1.0 + number) for number, name in enumerate(rows)]
    return History(handlers={"charge": frozenset({TOPIC})}, produced=produced, effects=effects)


def in_flight(*event_ids: str) -> Admitted:
    return Admitted(doubles=frozenset(("charge", event_id) for event_id in event_ids))


@pytest.mark.parametrize(
    ("sequence", "admitted", "names"),
    [
        ("A B C", Admitted(), set()),
        ("A B | A B C", Admitted(), {"I2", "I3"}),
        ("A B | A B C", in_flight("A", "B"), set()),
        ("A B | A B | A B C", in_flight("A", "B"), set()),
        ("A B | B C", Admitted(), {"I2"}),
        ("A B | B C", in_flight("B"), set()),
        ("A B | A C", in_flight("A"), set()),
        ("A B | A B C", in_flight("B"), {"I2", "I3"}),
        ("A C | B", in_flight("A", "B", "C"), {"I3"}),
        ("B A", in_flight("A", "B"), {"I3"}),
        ("A B | A B C", Admitted(max_doubles=2), set()),
        ("A B | A B C", Admitted(max_doubles=1), {"I2"}),
        ("A B | A B C", Admitted(max_doubles=0), {"I2", "I3"}),
        ("A B | A B C", Admitted(max_doubles=2, rewinds_per_lane=1), set()),
        ("A B | A B | A B C", Admitted(max_doubles=4, rewinds_per_lane=1), {"I3"}),
    ],
)
def test_a_suffix_that_comes_again_is_admitted_only_for_what_was_in_flight(sequence: str, admitted: Admitted, names: set[str]) -> None:
    report = check(lane_of(sequence), admitted)

    assert report.names == names


def test_doubles_and_rewinds_are_counted_even_when_they_are_admitted() -> None:
    report = check(lane_of("A B | A B | B C"), in_flight("A", "B"))

    assert report.ok
    assert (report.counts["doubled"], report.counts["doubled, admitted"], report.counts["rewinds of the worst lane"]) == (3, 3, 2)


def test_a_handler_that_asked_for_no_order_has_none_to_keep() -> None:
    history = replace(lane_of("B A"), unordered=frozenset({"charge"}))

    assert check(history).ok


def test_a_forced_replay_is_one_more_effect_in_its_own_epoch() -> None:
    once_more = lane_of("A B A")
    effects = [*once_more.effects[:2], replace(once_more.effects[2], epoch="run-1")]

    assert check(replace(once_more, effects=effects)).ok


# ---- what the producer did not learn --------------------------------------------------------------------------------


def test_an_event_of_unknown_outcome_is_owed_only_if_the_log_has_it() -> None:
    unknown = Produced("e-1", TOPIC, -1, -1, b"k", b"v", [("choreo-id", b"e-1")], outcome="unknown")
    log = [Record(TOPIC, 0, 0, 0, b"k", b"v", [("choreo-id", b"e-1")])]

    absent = check(History(handlers=HANDLERS, produced=[unknown], effects=[], log=[]))
    present = check(History(handlers=HANDLERS, produced=[unknown], effects=[], log=log))

    assert absent.ok
    assert present.names == {"I1"}


def test_an_effect_of_an_event_that_surely_failed_is_a_phantom() -> None:
    failed = Produced("e-1", TOPIC, -1, -1, b"k", b"v", outcome="fail")

    report = check(History(handlers=HANDLERS, produced=[failed], effects=[Effect("charge", "e-1", "k", 0, 0, 1.0)]))

    assert report.names == {"PHANTOM"}


def test_one_letter_for_all_handlers_accounts_for_each_of_them() -> None:
    event = Produced("e-1", TOPIC, 0, 0, None, b"\x00not json")
    letter = Letter("*", "e-1", TopicPartition(TOPIC, 0), 0, None, b"\x00not json", [("choreo-dlq-kind", b"undecodable")])

    assert check(History(handlers=HANDLERS, produced=[event], effects=[], letters=[letter])).ok


def test_the_table_shows_counts_and_which_promises_were_not_checked() -> None:
    table = check(lane_of("A B | B")).table()

    assert "doubled                             1" in table
    assert "I7      caught up in time                          not checked" in table
    assert "  I2: charge had 2 effects of B" in table
