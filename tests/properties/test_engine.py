"""Invariants 1, 2, 3, 7 and 11 of the design: the engine under every interleaving that hypothesis finds.

tests/properties/test_seeded_bugs.py shows what these properties are worth.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings

from choreo.core.engine import Engine
from choreo.errors import StateError
from tests.properties.engine_machine import EngineMachine
from tests.properties.engine_model import PARTITIONS, Entry, Item, Rig

ORDERED, ALONE = 0, 2
HERE, THERE = PARTITIONS

TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))


def event(key: bytes, route: int) -> Callable[[int], Entry]:
    return lambda end: Entry(end, key, (route,))


def rig(*log: tuple[int, bytes, int]) -> Rig:
    """One member with both partitions; `log` is (partition, key, handler) of events that it has received."""
    made = Rig(Engine)
    for partition in PARTITIONS:
        made.assign(partition)
    for number, key, route in log:
        made.produce(PARTITIONS[number], event(key, route))
        made.receive(PARTITIONS[number], 1)
    return made


def started(rig: Rig, count: int) -> list[Item]:
    for _ in range(count):
        assert rig.take_any()
    return rig.outstanding()


def test_a_free_place_is_taken_when_the_next_in_line_has_lost_its_partition() -> None:
    one = rig((0, b"a", ALONE), (1, b"a", ALONE), (0, b"b", ALONE))
    (first,) = started(one, 1)
    assert not one.take_any()

    one.settle(first)
    one.forget(THERE, lost=True)

    (next_one,) = started(one, 1)
    assert next_one.delivery.record.key == b"b"


def test_a_replay_that_may_not_begin_any_more_lets_the_drain_end() -> None:
    one = rig()
    one.replay(HERE, ORDERED, 0, b"a")
    for key in (b"a", b"b"):
        one.produce(HERE, event(key, ORDERED))
    one.receive(HERE, 2)
    replayed, other = started(one, 2)
    one.settle(other)
    one.fail(replayed, OSError("reset"), dice=0.5)

    one.drain(HERE)
    one.forget(HERE, lost=False)

    assert one.committed[HERE] == 2


def test_what_is_cut_short_when_the_drain_is_out_of_time_does_not_begin_again() -> None:
    one = rig((0, b"a", ORDERED), (0, b"a", ORDERED))
    (slow,) = started(one, 1)

    one.stop(HERE)
    one.halt(HERE)
    one.postpone(slow, 0.0)
    one.tick(0.0)

    assert not one.take_any()
    assert one.holdings[HERE].partition.drained()


def test_a_second_end_of_one_delivery_is_refused_before_it_frees_a_lane_or_an_offset() -> None:
    one = rig((0, b"a", ORDERED), (0, b"a", ORDERED))
    (item,) = started(one, 1)
    one.settle(item)

    with pytest.raises(StateError, match=r"orders\[0\]@0 was settled twice for ordered"):
        one.engine.settle(item.delivery)

    one.agree()
