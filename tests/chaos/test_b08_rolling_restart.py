"""B8: every broker is restarted in turn, as in an upgrade, under load."""

from __future__ import annotations

import pytest

from tests.chaos.scene import Scene, seed_of_run
from tests.chaos.under_load import end, under_load
from tests.support.kafka_cluster import KafkaCluster

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("atomic", [False, True], ids=["claims", "kafka"])
def test_nothing_is_lost_and_nothing_done_twice(scenes3: list[Scene], kafka3: KafkaCluster, atomic: bool) -> None:
    with under_load(scenes3, seed=seed_of_run(), atomic=atomic) as services:
        kafka3.rolling_restart()
        end(services, atomic=atomic)

    assert [service.worker.lives for service in services] == [1, 1]
