"""Tier T0 of the crash matrix: two members, one log, 2,000 stories of rebalances and crashes."""

from __future__ import annotations

from collections import Counter
from random import Random

from tests.properties.engine_model import Violation
from tests.properties.simulated_member import Ledger, Weather
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
    )


def told(seed: int, **named: object) -> Ledger:
    """The story of one seed."""
    dice = Random(seed)
    return Simulation(dice, weather(dice), **named).tell()  # type: ignore[arg-type]


def test_whatever_happens_nothing_is_lost_doubled_or_out_of_order() -> None:
    violations: dict[int, str] = {}
    sights: Counter[str] = Counter()

    for seed in SEEDS:
        try:
            sights += told(seed).sights
        except Violation as violation:
            violations[seed] = str(violation)

    assert violations == {}
    print(sights)
