"""What the engine does with maps that earlier runs left, and with events that may end the process. One interleaving a test."""

from __future__ import annotations

from typing import Any

import pytest

from choreo.core.engine import Engine
from choreo.core.guard import Guard
from choreo.core.offset_map import Begun, Entry, OffsetMap, read_map
from choreo.core.partition import Delivery, Partition, Route
from choreo.core.retry import GiveUp, RetryPolicy
from choreo.letter import UNREADABLE
from choreo.record import Committed, Record, TopicPartition

TOPIC_ID = b"0123456789abcdef"
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
ALL = 1 << 62


def route(name: str = "charge", index: int = 0, **options: Any) -> Route:
    return Route(index=index, name=name, retry=RetryPolicy(max_attempts=3, base_delay_s=0.0), identity=name, **options)


def delivery(state: Partition, of: Route, offset: int, key: bytes | None = b"k", run: str | None = None) -> Delivery:
    record = Record(state.id.topic, state.id.partition, offset, 0, key, b"")
    return Delivery(state, of, record, None, None, (of.index, key) if key is not None else None, run)


def bad_ends(
    ends: int, until: int, *, offset: int = 0, unfinished: dict[int, Entry] | None = None, handlers: tuple[int, ...] = ()
) -> OffsetMap:
    """What is left when the process ended so often while it had the events up to `until`."""
    listed = dict.fromkeys(range(offset, until)) if unfinished is None else unfinished
    return OffsetMap(TOPIC_ID, offset, ends, until, until, handlers, listed)


def assigned(engine: Engine, partition: TopicPartition, restored: OffsetMap | None = None) -> Partition:
    return engine.assign(partition, start=0 if restored is None else restored.offset, topic_id=TOPIC_ID, restored=restored)


def map_in(committed: Committed | None) -> OffsetMap:
    assert committed is not None
    found = read_map(committed.metadata, topic_id=TOPIC_ID, offset=committed.offset)
    assert isinstance(found, OffsetMap)
    return found


def taken(engine: Engine) -> tuple[int, int] | None:
    """Partition and offset of what begins next."""
    begun = engine.take()
    return None if begun is None else (begun.partition.id.partition, begun.record.offset)


# ---- what a map says --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [(UNREADABLE, "charge"), ("mail", "charge"), ("charge", UNREADABLE)],
    ids=["it can be decoded now", "its type has moved to another handler", "it can't be decoded any more"],
)
def test_an_event_that_is_another_handlers_since_the_crash_is_handled(before: str, after: str) -> None:
    routes = {name: route(name, index) for index, name in enumerate((UNREADABLE, "charge", "mail"))}
    first, second = Engine(), Engine()
    state = assigned(first, P0)
    for offset, name in enumerate((before, after)):  # the map knows both handlers
        first.receive(state, offset, [delivery(state, routes[name], offset, key=None)])
    failing = first.take()
    assert failing is not None
    first.fail(failing, OSError("reset"), now_s=0.0, dice=0.5)

    state = assigned(second, P0, map_in(state.take(also_maps=True)))
    second.receive(state, 0, [delivery(state, routes[after], 0)])

    assert (taken(second), state.committable()) == ((0, 0), 0)


def test_what_only_ran_beside_a_crash_has_spent_no_attempt() -> None:
    restored: OffsetMap | None = None
    for _ in range(3):
        engine = Engine()
        state = assigned(engine, P0, restored)
        engine.receive(state, 0, [delivery(state, route(), 0)])
        engine.tick(0.0)
        assert engine.take() is not None
        restored = map_in(state.take(also_maps=True))
        restored = OffsetMap(TOPIC_ID, 0, 0, 1, 1, restored.handlers, restored.unfinished)

    assert restored is not None
    assert restored.unfinished == {0: None}


def test_an_attempt_that_failed_counts_after_a_crash() -> None:
    engine = Engine()
    state = assigned(engine, P0)
    engine.receive(state, 0, [delivery(state, of := route(), 0)])
    begun = engine.take()
    assert begun is not None
    engine.fail(begun, OSError("reset"), now_s=0.0, dice=0.5)

    assert map_in(state.take(also_maps=True)).unfinished == {0: {of.number: Begun(1)}}


# ---- one at a time ----------------------------------------------------------------------------------------------------------


def test_a_suspect_waits_for_what_runs_and_what_comes_waits_for_the_suspect() -> None:
    engine, of = Engine(), route()
    other = assigned(engine, P1)
    engine.receive_all(other, [(offset, [delivery(other, of, offset, key=None)]) for offset in range(3)])
    running = engine.take()
    state = assigned(engine, P0, bad_ends(2, 2))
    engine.receive_all(state, [(offset, [delivery(state, of, offset, key=None)]) for offset in range(2)])
    beside_what_runs = taken(engine)
    assert running is not None
    engine.settle(running)

    alone = engine.take()
    beside_it = taken(engine)

    assert alone is not None
    assert (beside_what_runs, (alone.partition.id, alone.fatal), beside_it) == (None, (P0, 1), None)


def test_while_no_suspect_is_ready_the_others_go_on() -> None:
    engine, of = Engine(), route()
    state, other = assigned(engine, P0, bad_ends(2, 1)), assigned(engine, P1)
    engine.receive(state, 0, [delivery(state, of, 0)])
    engine.receive_all(other, [(offset, [delivery(other, of, offset, key=None)]) for offset in range(2)])
    suspect = engine.take()
    assert suspect is not None
    engine.fail(suspect, OSError("reset"), now_s=0.0, dice=0.5)  # it waits for its retry

    assert (taken(engine), taken(engine)) == ((1, 0), (1, 1))


def test_a_replay_before_a_suspect_of_its_key_runs_first() -> None:
    engine, of = Engine(), route()
    state = assigned(engine, P0, bad_ends(2, 1))
    engine.replay(delivery(state, of, 9, run="run-1"))
    engine.receive(state, 0, [delivery(state, of, 0)])

    replayed = engine.take()
    assert replayed is not None
    engine.settle(replayed)

    assert (replayed.run, replayed.fatal, taken(engine)) == ("run-1", 0, (0, 0))


def test_a_suspect_that_finds_no_place_with_its_handler_is_not_held_behind_others() -> None:
    engine, of = Engine(), route(max_concurrency=1)
    gone = assigned(engine, P1)
    engine.receive(gone, 0, [delivery(gone, of, 0)])
    late = engine.take()
    engine.forget([gone])
    other, state = assigned(engine, P1), assigned(engine, P0, bad_ends(2, 1))
    engine.receive(other, 0, [delivery(other, of, 0)])
    engine.receive(state, 0, [delivery(state, of, 0)])
    while_it_runs = taken(engine)
    assert late is not None
    engine.settle(late)

    assert (while_it_runs, taken(engine)) == (None, (0, 0))


def test_when_the_last_suspect_is_through_all_run_together_again() -> None:
    engine, of = Engine(), route()
    state = assigned(engine, P0, bad_ends(2, 1))
    engine.receive_all(state, [(offset, [delivery(state, of, offset, key=None)]) for offset in range(3)])
    suspect = engine.take()
    assert suspect is not None
    engine.settle(suspect)

    engine.commits()

    assert (engine.suspects, taken(engine), taken(engine)) == (set(), (0, 1), (0, 2))


def test_a_stop_waits_for_what_runs_and_begins_nothing_while_there_are_suspects() -> None:
    engine, of = Engine(), route()
    mine = assigned(engine, P1)
    engine.receive_all(mine, [(offset, [delivery(mine, of, offset)]) for offset in range(2)])
    first = engine.take()
    suspect = assigned(engine, P0, bad_ends(2, 1))
    engine.receive(suspect, 0, [delivery(suspect, of, 0)])

    engine.stop([P0, P1])
    before = mine.drained()
    assert first is not None
    engine.settle(first)

    assert (before, mine.drained(), suspect.drained(), taken(engine)) == (False, True, True, None)


# ---- what counts as ending the process ----------------------------------------------------------------------------------------


def test_one_that_began_alone_and_ended_the_process_max_attempts_times_must_not_begin_again() -> None:
    of, begins = route(), list[bool]()
    restored = bad_ends(2, 1)
    for _ in range(4):
        engine = Engine()
        state = assigned(engine, P0, restored)
        engine.receive(state, 0, [delivery(state, of, 0)])
        begun = engine.take()
        assert begun is not None
        begins.append(not engine.is_crash_loop(begun))
        restored = map_in(state.take(also_maps=True))  # and here it ends

    assert begins == [True, True, True, False]


def test_an_orderly_end_while_one_runs_alone_is_no_crash() -> None:
    restored = bad_ends(2, 1)
    for _ in range(5):
        engine = Engine()
        state = assigned(engine, P0, restored)
        engine.receive(state, 0, [delivery(state, route(), 0)])
        begun = engine.take()
        assert begun is None or not engine.is_crash_loop(begun)
        state.take(also_maps=True)
        engine.stop([P0])
        engine.halt([state])
        restored = map_in(engine.forget([state])[P0])

    assert restored.unfinished == {0: None}


def test_one_that_is_given_up_still_counts_while_it_is_recovered_from() -> None:
    engine, of = Engine(), route()
    state = assigned(engine, P0, bad_ends(2, 1, unfinished={0: {of.number: Begun(2)}}, handlers=(of.number,)))
    engine.receive(state, 0, [delivery(state, of, 0)])
    begun = engine.take()
    assert begun is not None

    decision = engine.fail(begun, OSError("reset"), now_s=0.0, dice=0.5)
    recorded = map_in(state.take(also_maps=True)).unfinished
    engine.settle(begun)

    assert (decision, recorded) == (GiveUp(permanent=False), {0: {of.number: Begun(2, 1)}})
    assert engine.take() is None


def test_what_has_ended_a_process_stays_a_suspect_when_a_run_ends_well() -> None:
    of = route()

    state = assigned(Engine(), P0, bad_ends(0, 1, unfinished={0: {of.number: Begun(0, 2)}}, handlers=(of.number,)))

    assert state.guard.suspects


# ---- the guard ----------------------------------------------------------------------------------------------------------------


def test_nothing_is_handed_out_before_the_run_is_recorded_and_then_everything() -> None:
    guard = Guard(None)
    before = guard.may_hand_out(0, 500)

    asks = guard.asks(500)
    guard.acknowledged(guard.watched)

    assert (before, asks, guard.unclean, guard.may_hand_out(0, 500), guard.may_hand_out(500, ALL)) == (0, True, 1, 500, ALL)


def test_after_a_bad_end_each_batch_is_recorded_as_watched_before_it_is_handed_out() -> None:
    guard = Guard(bad_ends(1, 10))
    guard.asks(500)
    guard.acknowledged(guard.watched)

    assert (guard.suspects, guard.may_hand_out(0, 500), guard.may_hand_out(500, 900), guard.asks(900)) == (False, 500, 500, True)


def test_passing_what_was_recorded_forgets_the_bad_ends() -> None:
    guard = Guard(bad_ends(2, 10))
    seen = [guard.suspects]

    for offset in (9, 10):
        guard.reached(offset)
        seen.append(guard.suspects)

    assert (seen, guard.unclean) == ([True, True, False], 1)


def test_suspects_are_not_fed_beyond_what_was_recorded() -> None:
    guard = Guard(bad_ends(2, 10))
    guard.asks(500)
    guard.acknowledged(guard.watched)

    assert (guard.watched, guard.may_hand_out(0, 500), guard.may_hand_out(10, 500)) == (10, 10, 10)


def test_where_nothing_was_recorded_the_first_batch_is_what_has_to_be_passed() -> None:
    guard = Guard(bad_ends(1, 5, offset=5))

    guard.asks(30)

    assert guard.until == 30


def test_what_was_to_be_passed_and_is_not_in_the_log_any_more_is_passed() -> None:
    guard = Guard(bad_ends(2, 10))

    guard.gap(12)

    assert (guard.suspects, guard.until) == (False, None)


@pytest.mark.parametrize(("handed_out", "unclean"), [(False, 4), (True, 0)], ids=["nothing was tried", "it went well"])
def test_an_orderly_end_clears_the_count_unless_nothing_was_tried(handed_out: bool, unclean: int) -> None:
    guard = Guard(bad_ends(4, 10))
    if handed_out:
        guard.asks(10)
        guard.acknowledged(guard.watched)

    guard.ended_well()

    assert guard.unclean == unclean


def test_where_nothing_can_be_recorded_nothing_is_waited_for() -> None:
    state = Engine().assign(P0, start=0)

    assert state.guard.may_hand_out(0, 500) == 500
