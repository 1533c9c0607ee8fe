"""W1: kill -9 between the poll and the first dispatch."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.scene import END_S, Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_what_was_polled_and_not_begun_comes_again_and_is_called_once_with_its_first_attempt(scene: Scene) -> None:
    # Without claims, so that nothing but the offsets can make it right.
    produced = scene.produce(300)
    worker = scene.worker(conduct=replace(scene.conduct(), store=None), failpoint="after_poll=kill9")

    died_of = worker.start().wait(END_S)
    called_before = scene.called_ids()
    worker.failpoint = None
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle(produced, worker, commits=commits)

    report.require()
    assert died_of == -signal.SIGKILL
    assert called_before == []
    assert sorted(scene.called_ids()) == sorted(event.event_id for event in produced)
    assert scene.attempts.by_event() == {event.event_id: [1] for event in produced}, "nothing had begun, so nothing counts"
