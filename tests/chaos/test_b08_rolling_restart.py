"""B8: every broker is restarted in turn, as in an upgrade, under load."""

from __future__ import annotations

import pytest

from tests.chaos.scene import Scene, seed_of_run
from tests.chaos.under_load import end, under_load
from tests.support.kafka_cluster import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]


@pytest.mark.timeout(300)
def test_nothing_is_lost_and_nothing_done_twice(scenes3: list[Scene], kafka3: KafkaCluster) -> None:
    with under_load(scenes3, seed=seed_of_run()) as services:
        kafka3.rolling_restart()
        end(services)

    assert [service.worker.lives for service in services] == [1, 1]
