"""A service that has not committed anything yet, because nothing has come or it died too soon, never ran: it starts as at first."""

from __future__ import annotations

import signal

import pytest

from tests.chaos.scene import END_S, Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_who_found_empty_topics_starts_again_and_others_join(scene: Scene) -> None:
    first, second = scene.worker("first"), scene.worker("second")
    first.restart()
    scene.stop_cleanly(first)

    first.restart()
    second.restart()
    produced = scene.produce(50)
    report = scene.settle(produced, first, second)

    report.require()


def test_who_was_killed_before_the_first_commit_starts_again(scene: Scene) -> None:
    produced = scene.produce(50)
    worker = scene.worker(failpoint="after_store_offsets=kill9")

    died_of = worker.start().wait(END_S)
    worker.failpoint = None
    worker.restart()
    report = scene.settle(produced, worker)

    report.require()
    assert died_of == -signal.SIGKILL
