"""B2 to B4: a leader that stands still, a coordinator that dies, and a cluster without a majority, under load."""

from __future__ import annotations

import time

import pytest

from tests.chaos.scene import Scene, seed_of_run
from tests.chaos.under_load import BEFORE, end, under_load
from tests.support.kafka_cluster import KafkaCluster
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long, pytest.mark.timeout(300)]

STOPPED_S = 40.0
GAP_S = 25.0
"""With socket.timeout.ms at 10 s, choreo's own."""
DOWN_S = 20.0
BOTH = pytest.mark.parametrize("atomic", [False, True], ids=["claims", "kafka"])


def elapse(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > until_s, f"{seconds:g} s", deadline_s=2 * seconds)


@BOTH
def test_b2_a_leader_that_is_stopped_is_left_for_another_one_in_time(scenes3: list[Scene], kafka3: KafkaCluster, atomic: bool) -> None:
    kafka = kafka3.access()
    with under_load(scenes3, seed=seed_of_run(), atomic=atomic) as services:
        leader = kafka.leader(scenes3[0].orders, 0)
        kafka3.stop(leader)
        elapse(STOPPED_S)
        kafka3.cont(leader)
        # What stood in a socket meanwhile may be written twice: its answer is not known.
        end(services, sends_timed_out=True, atomic=atomic)

    silences_s = [service.longest_silence_s() for service in services]
    print("longest silence of a partition:", ", ".join(f"{silence_s:.1f} s" for silence_s in silences_s))
    assert max(silences_s) < GAP_S
    assert [service.worker.lives for service in services] == [1, 1]


@BOTH
def test_b3_a_coordinator_that_dies_while_offsets_are_committed_is_replaced(
    scenes3: list[Scene], kafka3: KafkaCluster, atomic: bool
) -> None:
    kafka = kafka3.access()
    with under_load(scenes3, seed=seed_of_run(), atomic=atomic) as services:
        for scene in scenes3:
            coordinator = kafka.coordinator(scene.group)
            kafka3.kill(coordinator)
            for service in services:
                service.wait_for_more(BEFORE)
            kafka3.start(coordinator)
            kafka3.wait_in_sync()
        end(services, sends_timed_out=True, atomic=atomic)

    assert [service.worker.lives for service in services] == [1, 1]


@BOTH
def test_b4_without_a_majority_everything_waits_and_goes_on_by_itself(scenes3: list[Scene], kafka3: KafkaCluster, atomic: bool) -> None:
    with under_load(scenes3, seed=seed_of_run(), atomic=atomic) as services:
        for node in kafka3.node_ids[:2]:
            kafka3.kill(node)
        elapse(DOWN_S)
        alive = [service.worker.running for service in services]
        kafka3.start(*kafka3.node_ids[:2])
        end(services, sends_timed_out=True, atomic=atomic)

    assert alive == [True, True]
    assert [service.worker.lives for service in services] == [1, 1]
