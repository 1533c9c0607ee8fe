"""W4: kill -9 after the claims' COMMIT, before any offset is committed."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.scene import END_S, Scene, counts
from tests.support.facts import Admitted

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_what_was_claimed_comes_again_and_has_neither_a_second_effect_nor_a_second_child(scene: Scene) -> None:
    produced = scene.produce(300)
    worker = scene.worker(conduct=replace(scene.conduct(), emits=True), failpoint="after_store_commit=kill9")

    died_of = worker.start().wait(END_S)
    claimed, unclaimed = scene.claimed(), scene.unclaimed()
    committed_at_death = scene.committed_events(produced)
    worker.failpoint = None
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle(produced, worker, commits=commits, admitted=Admitted(doubles=unclaimed, rewinds_per_lane=1))

    report.require()
    assert died_of == -signal.SIGKILL
    assert claimed
    assert committed_at_death == []
    assert counts(worker)["duplicates"] == len(claimed)
    scene.require_children(produced, again={event_id for _, event_id in unclaimed})
