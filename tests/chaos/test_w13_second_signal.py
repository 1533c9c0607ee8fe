"""W13: a second SIGTERM or SIGINT while the worker drains."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.chaos.scene import END_S, Scene
from tests.support.process import WorkerProcess
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

AT_ONCE_S = 1.0
STOPPED_AT_ONCE = 130


@pytest.mark.parametrize(
    ("group_protocol", "second"),
    [("classic", WorkerProcess.sigterm), ("consumer", WorkerProcess.sigint)],
    ids=["classic-SIGTERM", "consumer-SIGINT"],
)
def test_a_second_signal_ends_the_process_at_once_and_commits_nothing_unfinished(
    scene: Scene, second: Callable[[WorkerProcess], None]
) -> None:
    done = scene.produce(50)
    held = scene.produce_keys("held", "held-too")
    behind = scene.produce(50, seed=2)
    worker = scene.worker(conduct=replace(scene.conduct(), held=("held", "held-too")))
    worker.start()
    scene.ledger.wait_for(len(done) + len(behind), deadline_s=END_S)
    wait_for(lambda: len(scene.ledger.unfinished()) == len(held), "two events in flight", deadline_s=END_S)

    with scene.watch_commits() as commits:
        worker.sigterm()
        worker.wait_output("stopping", deadline_s=END_S)
        asked_at_s = time.monotonic()
        second(worker)
        code = worker.wait(END_S)
        took_s = time.monotonic() - asked_at_s
        committed = scene.committed_events(held)
        scene.open_gate()
        worker.restart()
        report = scene.settle([*done, *held, *behind], worker, commits=commits)

    report.require()
    assert (code, committed) == (STOPPED_AT_ONCE, [])
    assert took_s < AT_ONCE_S
