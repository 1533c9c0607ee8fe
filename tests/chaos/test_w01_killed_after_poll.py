"""W1: kill -9 between the poll and the first dispatch. What was polled and not begun comes again, once."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.scene import END_S, Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


@pytest.mark.parametrize("effects", ["claims", "offsets"])
def test_what_was_polled_and_not_begun_comes_again_and_has_its_effect_once(scene: Scene, effects: str) -> None:
    produced = scene.produce(300)
    conduct = scene.conduct() if effects == "claims" else replace(scene.conduct(), store=None)
    worker = scene.worker(conduct=conduct, failpoint="after_poll=kill9")

    worker.start()
    died_of = worker.wait(END_S)
    called_before = scene.called_ids()
    worker.failpoint = None
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle(produced, worker, commits=commits)

    report.require()
    assert died_of == -signal.SIGKILL
    assert called_before == []
    assert sorted(scene.called_ids()) == sorted(event.event_id for event in produced)
