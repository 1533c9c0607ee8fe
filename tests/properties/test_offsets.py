"""Which offset may be committed? `Offsets` beside a set of what is not finished."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.core.offsets import Offsets
from choreo.errors import StateError

Step = tuple[int, int] | int
received = st.tuples(st.integers(0, 3), st.integers(0, 3))
steps: st.SearchStrategy[list[Step]] = st.lists(received | st.integers(0, 40), max_size=60)


@dataclass
class Part:
    """One handler's part of an event."""

    settled: bool = False


class Model:
    """Every received offset with what is left to do, for ever."""

    def __init__(self) -> None:
        self.left: dict[int, int] = {}
        self.deliveries: dict[int, list[Part]] = {}
        self.end = 0

    def committable(self) -> int | None:
        if not self.left:
            return None
        return min((offset for offset, left in self.left.items() if left), default=max(self.left) + 1)


def apply(step: Step, offsets: Offsets[Part], model: Model) -> None:
    """(gap, handlers): the next record comes. A number: one delivery of some unfinished record settles."""
    if isinstance(step, tuple):
        gap, handlers = step
        offset = model.end + gap
        model.deliveries[offset] = [Part() for _ in range(handlers)]
        offsets.received(offset, model.deliveries[offset])
        model.left[offset], model.end = handlers, offset + 1
    elif unfinished := [offset for offset, left in model.left.items() if left]:
        offset = unfinished[step % len(unfinished)]
        next(part for part in model.deliveries[offset] if not part.settled).settled = True
        offsets.finished(offset)
        model.left[offset] -= 1


@given(steps)
def test_an_offset_may_be_committed_when_everything_received_below_it_is_finished(taken: list[Step]) -> None:
    offsets, model = Offsets[Part](), Model()

    for step in taken:
        apply(step, offsets, model)
        assert offsets.committable() == model.committable()
        assert list(offsets.unfinished) == [offset for offset, left in model.left.items() if left]


def test_nothing_may_be_committed_before_anything_was_received() -> None:
    assert Offsets[Part]().committable() is None


def test_a_record_for_no_handler_is_finished_at_once_also_in_front_of_a_gap() -> None:
    offsets = Offsets[Part]()

    offsets.received(3, [])
    offsets.received(9, [])

    assert offsets.committable() == 10


@pytest.mark.parametrize("offset", [0, 4, 5])
def test_an_offset_that_does_not_rise_is_refused(offset: int) -> None:
    offsets = Offsets[Part]()
    offsets.received(5, [Part()])

    with pytest.raises(StateError, match=f"offset {offset} came after 5"):
        offsets.received(offset, [Part()])

    assert offsets.committable() == 5
