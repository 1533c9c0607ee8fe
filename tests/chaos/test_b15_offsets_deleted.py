"""B15: the group's committed offsets are gone: they expired, or somebody deleted them."""

from __future__ import annotations

import pytest

from tests.chaos.conduct import CANT_GO_ON
from tests.chaos.scene import END_S, Scene
from tests.support.kafka_access import REQUEST_S

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


@pytest.mark.parametrize("group_protocol", ["consumer"])
def test_a_service_that_ran_before_stops_loudly_and_goes_on_only_when_told_and_does_nothing_twice(scene: Scene) -> None:
    before = scene.produce(50)
    worker = scene.worker("worker")
    worker.restart()
    scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=END_S)
    scene.stop_cleanly(worker)
    for deleted in scene.kafka.admin.delete_consumer_groups([scene.group], request_timeout=REQUEST_S).values():
        deleted.result(REQUEST_S * 2)
    after = scene.produce(50, seed=2)

    code = worker.start().wait(END_S)
    effects_when_refused = len(scene.effect_ids())
    told = scene.worker("told", environment={"CHOREO_ACCEPT_LOST_OFFSETS": "true"})
    told.restart()
    report = scene.settle([*before, *after], told)

    report.require()
    assert (code, effects_when_refused) == (CANT_GO_ON, len(before))
    assert "--accept-lost-offsets" in worker.output()
