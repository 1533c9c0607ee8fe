"""Tier T0 of the crash matrix: two members, one log, 2,000 stories of rebalances, losses and crashes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

from choreo.core.engine import Engine
from tests.properties.engine_model import Violation
from tests.properties.simulated_member import Weather
from tests.properties.simulation import Simulation

SEEDS = range(2_000)


def weather(dice: Random) -> Weather:
    """From calm to foul."""
    return Weather(
        failure=dice.choice((0, 0.1, 0.4)),
        rebalance=dice.choice((0.01, 0.04, 0.1)),
        loss=dice.choice((0, 0.01, 0.03)),
        crash=dice.choice((0, 0.01, 0.03)),
        hurry=dice.choice((0, 0.5)),
        claims=dice.random() < 0.7,
        maps=dice.random() < 0.8,
    )


def story(seed: int, make_engine: Callable[..., Engine] = Engine) -> Simulation:
    """What happens, for one seed."""
    dice = Random(seed)
    return Simulation(dice, weather(dice), make_engine)


def test_whatever_happens_nothing_is_lost_doubled_out_of_order_or_stuck() -> None:
    violations: dict[int, str] = {}

    for seed in SEEDS:
        try:
            story(seed).tell()
        except Violation as violation:
            violations[seed] = str(violation)

    assert violations == {}


def test_the_stories_meet_what_they_are_for() -> None:
    sights: Counter[str] = Counter()

    for seed in SEEDS[:200]:
        sights += story(seed).tell().sights

    assert {sight for sight, times in sights.items() if times >= 5} == {
        "a commit that fails",
        "a commit that is refused",
        "a crash",
        "a crash while its effect is there, its claim is not",
        "a crash while its handler runs",
        "a crash while its letter is not acknowledged yet",
        "a crash while it waits for a thread",
        "a duplicate",
        "a duplicate that waits",
        "a late failure",
        "a late outcome",
        "a letter",
        "a loss",
        "a map that is read",
        "a retry",
        "a revoke in peace",
        "a revoke out of time",
        "an effect of a zombie",
        "an effect twice",
        "cut short",
        "finished above the committed offset",
    }
