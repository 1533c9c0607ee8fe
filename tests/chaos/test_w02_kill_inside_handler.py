"""W2: kill -9 inside a handler, before its effect."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.scene import END_S, Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

HANDLED_BEFORE = 50


def test_an_event_whose_handler_was_killed_has_its_effect_after_the_restart_and_no_other_has_a_second(scene: Scene) -> None:
    produced = scene.produce(HANDLED_BEFORE)
    conduct = replace(scene.conduct(), emits=True)
    worker = scene.worker(conduct=conduct, failpoint=f"before_handler=kill9:{HANDLED_BEFORE + 1}")
    worker.start()
    scene.ledger.wait_for(HANDLED_BEFORE, deadline_s=END_S)
    scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=END_S)

    killed = scene.produce_keys("killed")
    died_of = worker.wait(END_S)
    effects_at_death = scene.effect_ids()
    worker.failpoint = None
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle([*produced, *killed], worker, commits=commits)

    report.require()
    assert died_of == -signal.SIGKILL
    assert sorted(effects_at_death) == sorted(event.event_id for event in produced)
    scene.require_children([*produced, *killed])
