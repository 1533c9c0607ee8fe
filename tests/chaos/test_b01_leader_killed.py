"""B1: kill -9 of a broker that leads partitions, under load."""

from __future__ import annotations

import pytest

from tests.chaos.scene import END_S, Scene, seed_of_run
from tests.chaos.under_load import BEFORE, end, under_load
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]

SILENCE_S = 15.0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("atomic", [False, True], ids=["claims", "kafka"])
def test_nothing_is_lost_order_is_kept_and_the_silence_is_short(scenes3: list[Scene], kafka3: KafkaCluster, atomic: bool) -> None:
    kafka = kafka3.access()
    with under_load(scenes3, seed=seed_of_run(), atomic=atomic) as services:
        leader = kafka.leader(scenes3[0].orders, 0)

        kafka3.kill(leader)
        wait_for(lambda: kafka.leader(scenes3[0].orders, 0) not in (leader, -1), "another leader", deadline_s=END_S)
        for service in services:
            service.wait_for_more(BEFORE)
        kafka3.start(leader)
        end(services, atomic=atomic)

    silences_s = [service.longest_silence_s() for service in services]
    print("longest silence of a partition:", ", ".join(f"{silence_s:.1f} s" for silence_s in silences_s))
    assert max(silences_s) < SILENCE_S
    assert [service.worker.lives for service in services] == [1, 1]
