"""W17: a handler that holds the interpreter's lock for longer than max.poll.interval.ms: nothing else of the process runs, polling neither."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.scene import END_S, Scene, counts

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

MAX_POLL_S = 2.0
HELD_S = 2 * MAX_POLL_S


def test_its_member_is_put_out_says_so_joins_again_and_the_effect_is_there_once(scene: Scene) -> None:
    before = scene.produce(100)
    (holding,) = scene.produce_keys("holds")
    behind = scene.produce_keys("holds")
    conduct = replace(scene.conduct(), locking=("holds",), locked_s=HELD_S)
    properties = {"max.poll.interval.ms": f"{MAX_POLL_S * 1000:.0f}"}
    worker = scene.worker(conduct=conduct, properties=properties)

    worker.restart()
    worker.wait_output("_MAX_POLL_EXCEEDED", deadline_s=END_S)
    after = scene.produce(100, seed=2)
    report = scene.settle([*before, holding, *behind, *after], worker)

    report.require()
    assert counts(worker)["rebalances"] > 2, "assigned, lost, assigned"
    assert worker.lives == 1
