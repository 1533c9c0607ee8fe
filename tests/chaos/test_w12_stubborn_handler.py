"""W12: SIGTERM while a handler ignores its cancellation."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.chaos.conduct import CUT_SHORT, HANDLER
from tests.chaos.scene import END_S, Scene
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

DRAIN_S = 2.0
GRACE_S = 3.0
CHOREO_RUN = ("-m", "choreo", "run", "tests.chaos.worker_main:payments")


@pytest.mark.parametrize(
    ("group_protocol", "on_thread"), [("classic", True), ("consumer", False)], ids=["classic-thread", "consumer-async"]
)
def test_the_process_ends_at_the_deadline_and_the_event_is_handled_by_another_member(scene: Scene, on_thread: bool) -> None:
    others = scene.produce(50)
    stuck = scene.produce_keys("stuck")
    conduct = replace(scene.conduct(), on_thread=on_thread, stubborn=("stuck",))
    worker = scene.worker("stubborn", conduct, environment={"CHOREO_DRAIN_S": f"{DRAIN_S}"}, script=CHOREO_RUN)
    worker.start()
    scene.ledger.wait_for(len(others), deadline_s=END_S)
    wait_for(lambda: scene.ledger.unfinished() == {(HANDLER, stuck[0].event_id)}, "the handler is stuck", deadline_s=END_S)

    with scene.watch_commits() as commits:
        asked_at_s = time.monotonic()
        worker.sigterm()
        code = worker.wait(END_S)
        took_s = time.monotonic() - asked_at_s
        committed = scene.committed_events(stuck)
        other = scene.worker("other")
        other.restart()
        report = scene.settle([*others, *stuck], other, commits=commits)

    report.require()
    assert (code, committed) == (CUT_SHORT, [])
    assert DRAIN_S <= took_s < DRAIN_S + GRACE_S
