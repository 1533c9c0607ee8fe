"""B5: all brokers are dead for 20 s (2 minutes with CHOREO_FULL=1) and come back."""

from __future__ import annotations

import time

import pytest

from tests.chaos.scene import Scene, full, seed_of_run
from tests.chaos.under_load import end, under_load
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]

DOWN_S = 120.0 if full() else 20.0


@pytest.mark.timeout(600)
def test_workers_live_through_it_and_go_on_without_a_restart(scenes3: list[Scene], kafka3: KafkaCluster) -> None:
    with under_load(scenes3, seed=seed_of_run()) as services:
        for node in kafka3.node_ids:
            kafka3.kill(node)
        down_since_s = time.monotonic()
        wait_for(lambda: time.monotonic() - down_since_s > DOWN_S, "they are down long enough", deadline_s=2 * DOWN_S)
        alive = [service.worker.running for service in services]
        kafka3.start(*kafka3.node_ids)
        end(services, sends_timed_out=True)

    assert alive == [True, True]
    assert [service.worker.lives for service in services] == [1, 1]
    assert all("is Kafka up" in service.worker.output() for service in services)
