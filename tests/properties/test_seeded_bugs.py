"""Do the properties kill? Each rule left out of the engine is found, and by its name."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.engine_machine import EngineMachine
from tests.properties.engine_model import Violation
from tests.properties.seeded_bugs import BUGS

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
def test_the_engine_properties_kill(name: str) -> None:
    bug = BUGS[name]

    with pytest.raises(Violation) as found:
        run_state_machine_as_test(lambda: EngineMachine(bug.engine), settings=SEARCH)  # type: ignore[arg-type]

    assert found.value.rule in bug.rules
