"""W28: kill -9 between the acknowledgement of an emit and the claim: before the claim is asked for, and inside its transaction."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, Scene
from tests.support.facts import Admitted

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


@pytest.mark.parametrize("failpoint", ["after_emits_ack", "in_store_tx"])
def test_what_was_emitted_and_not_claimed_comes_again_and_emits_the_same_ids(scene: Scene, failpoint: str) -> None:
    produced = scene.produce(300)
    worker = scene.worker(conduct=replace(scene.conduct(), emits=True), failpoint=f"{failpoint}=kill9")

    died_of = worker.start().wait(END_S)
    claimed, emitted, effects_at_death = scene.claimed(), set(scene.children()), scene.effect_ids()
    committed_at_death = scene.committed_events(produced)
    worker.failpoint = None
    with scene.watch_commits() as commits:
        worker.restart()
        admitted = Admitted(doubles=frozenset((HANDLER, event_id) for event_id in effects_at_death), rewinds_per_lane=1)
        report = scene.settle(produced, worker, commits=commits, admitted=admitted)

    report.require()
    assert died_of == -signal.SIGKILL
    assert claimed == frozenset()
    assert emitted
    assert committed_at_death == []
    assert report.counts["doubled"] == len(effects_at_death)
    scene.require_children(produced, again=emitted)
