"""How large do bursts become, and what makes them small?"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from choreo.core.burst_size import FIRST, LOOK_EVERY, SLOW_S, WINDOW, BurstSize


def test_the_size_doubles_after_full_bursts_up_to_the_largest() -> None:
    size = BurstSize(60)

    seen = []
    for _ in range(5):
        size.went_well(size.size)
        seen.append(size.size)

    assert seen == [16, 32, 60, 60, 60]


def test_a_burst_that_was_not_full_says_nothing_about_larger_ones() -> None:
    size = BurstSize(60)

    size.went_well(FIRST - 1)

    assert size.size == FIRST


def test_the_size_halves_when_one_was_lost_down_to_one_and_grows_again() -> None:
    size = BurstSize(60)

    seen = []
    for _ in range(5):
        size.was_lost()
        seen.append(size.size)
    size.went_well(1)

    assert (seen, size.size) == ([4, 2, 1, 1, 1], 2)


def test_a_handler_that_is_slow_the_first_time_stands_alone_from_then_on() -> None:
    size = BurstSize(60)

    size.noted(3, SLOW_S * 2)

    assert (size.is_slow(3), size.is_slow(4)) == (True, False)


def test_a_slow_one_among_many_quick_ones_changes_nothing_and_a_handler_that_became_quick_is_let_in_again() -> None:
    size = BurstSize(60)
    for took_s in [0.001] * 20 + [5.0] + [0.001] * 10:
        size.noted(0, took_s)
    now_and_then = size.is_slow(0)

    for _ in range(WINDOW + LOOK_EVERY):
        size.noted(0, 1.0)
    for_good = size.is_slow(0)
    for _ in range(WINDOW + LOOK_EVERY):
        size.noted(0, 0.001)

    assert (now_and_then, for_good, size.is_slow(0)) == (False, True, False)


@given(st.integers(1, 600), st.lists(st.one_of(st.none(), st.integers(1, 600)), max_size=50))
def test_whatever_happens_a_burst_has_between_one_and_the_largest(largest: int, bursts: list[int | None]) -> None:
    size = BurstSize(largest)

    for count in bursts:
        if count is None:
            size.was_lost()
        else:
            size.went_well(min(count, size.size))

        assert 1 <= size.size <= largest
