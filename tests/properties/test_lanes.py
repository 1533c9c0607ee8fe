"""Whose turn is it within a key? `Lanes` beside a queue for each key."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from choreo.core.lanes import Lanes, Queued

Lane = tuple[int, bytes] | None
LANES: tuple[Lane, ...] = ((0, b"a"), (0, b"b"), (1, b"a"), None)


@dataclass(eq=False)
class Thing:
    """Something that stands in a lane."""

    lane: Lane
    next: Queued | None = None


@given(st.lists(st.sampled_from(LANES) | st.integers(0, 40), max_size=60))
def test_the_things_of_a_lane_come_to_its_head_one_at_a_time_and_in_order(steps: list[Lane | int]) -> None:
    lanes = Lanes()
    queues: defaultdict[Lane, deque[Thing]] = defaultdict(deque)
    heads: list[Queued] = []

    for step in steps:
        if not isinstance(step, int):
            thing = Thing(step)
            queues[step].append(thing)
            is_head = lanes.enter(thing)
            assert is_head is (step is None or len(queues[step]) == 1)
            heads += [thing] if is_head else []
        elif heads:
            head = heads.pop(step % len(heads))
            queue = queues[head.lane]
            following = lanes.leave(head)
            queue.remove(head)  # type: ignore[arg-type]
            assert following is (queue[0] if queue and head.lane is not None else None)
            heads += [] if following is None else [following]
        assert len(lanes) == sum(bool(queue) for lane, queue in queues.items() if lane is not None)


def test_a_lane_that_was_empty_begins_anew() -> None:
    lanes, first, second = Lanes(), Thing((0, b"a")), Thing((0, b"a"))

    assert lanes.enter(first)
    assert lanes.leave(first) is None

    assert lanes.enter(second)
    assert (first.next, len(lanes)) == (None, 1)


def test_one_that_has_left_keeps_nothing_alive() -> None:
    lanes, first, second = Lanes(), Thing((0, b"a")), Thing((0, b"a"))
    lanes.enter(first)
    lanes.enter(second)

    assert lanes.leave(first) is second

    assert first.next is None
