"""W16: a handler that takes longer than max.poll.interval.ms, in front of more events than may be in flight."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, PARTITIONS, Scene, counts
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

MAX_POLL_S = 2.0


def test_its_partition_waits_the_others_go_on_and_its_member_stays_in_the_group(scene: Scene) -> None:
    # Behind the slow event stand more of its key than choreo takes of a partition (1,000) and reads ahead (2,000).
    slow = scene.produce_keys(*["slow"] * 4_000)
    conduct = replace(scene.conduct(), store=None, on_thread=True, held=("slow",))
    worker = scene.worker(conduct=conduct, properties={"max.poll.interval.ms": f"{MAX_POLL_S * 1000:.0f}"})
    worker.restart()

    with scene.watch_commits() as commits:
        wait_for(lambda: scene.ledger.unfinished() == {(HANDLER, slow[0].event_id)}, "the slow handler runs", deadline_s=END_S)
        slow_since_s = time.monotonic()
        others = scene.produce_to((slow[0].partition + 1) % PARTITIONS, 200)
        scene.ledger.wait_for(len(others), deadline_s=END_S)
        wait_for(lambda: time.monotonic() - slow_since_s > 2 * MAX_POLL_S, "it takes too long", deadline_s=END_S)
        scene.open_gate()
        report = scene.settle([*slow, *others], worker, commits=commits)

    report.require()
    assert sorted(scene.called_ids()) == sorted(event.event_id for event in [*slow, *others])
    assert counts(worker)["rebalances"] == 2, "assigned at the start and revoked at the end"
