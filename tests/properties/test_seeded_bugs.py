"""Do the properties kill? Each rule left out of the engine is found, and by its name; most are found twice."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from choreo.errors import StateError
from tests.properties.engine_machine import EngineMachine
from tests.properties.engine_model import Violation
from tests.properties.seeded_bugs import BUGS, MAP_BUGS, NOT_SEEN_FROM_OUTSIDE
from tests.properties.test_simulation import SEEDS, story

SEARCH = settings(
    max_examples=2_000,
    stateful_step_count=60,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", BUGS)
def test_the_state_machine_kills(name: str) -> None:
    bug = BUGS[name]

    class Seeded(EngineMachine):
        engine = bug.engine

    with pytest.raises(Violation) as found:
        run_state_machine_as_test(Seeded, settings=SEARCH)

    assert found.value.rule in bug.rules


@pytest.mark.parametrize("name", [name for name in BUGS if name not in NOT_SEEN_FROM_OUTSIDE])
def test_the_simulation_kills(name: str) -> None:
    with pytest.raises((Violation, StateError, KeyError)):
        for seed in SEEDS[:100]:
            story(seed, BUGS[name].engine).tell()


@pytest.mark.parametrize("name", MAP_BUGS)
def test_the_simulation_kills_a_wrong_map(name: str) -> None:
    with pytest.raises(Violation) as found:
        for seed in SEEDS:
            story(seed, MAP_BUGS[name].engine).tell()

    assert found.value.rule in MAP_BUGS[name].rules


class Amnesia(set[str]):
    """Claims that are forgotten as soon as they are made."""

    def add(self, claim: str) -> None:
        pass


def test_the_simulation_sees_an_effect_that_is_doubled() -> None:
    with pytest.raises(Violation, match="twice"):
        for seed in SEEDS[:100]:
            forgetful = story(seed)
            forgetful.ledger.claims = Amnesia()
            forgetful.tell()
