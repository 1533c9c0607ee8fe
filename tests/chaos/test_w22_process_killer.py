"""W22: a handler that ends its process, always at one event: by SIGKILL, as the kernel does when memory is out, and by abort()."""

from __future__ import annotations

import signal
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from choreo.envelope import new_id
from tests.chaos.crash_loop import require_letter, restart_until_caught_up
from tests.chaos.scene import END_S, Scene
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names
from tests.support.producer import TestProducer

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

MAX_ATTEMPTS = 2
DIED_OF = {"SIGKILL": -signal.SIGKILL, "abort": -signal.SIGABRT}


@pytest.mark.parametrize(
    ("group_protocol", "on_thread", "ended_by"),
    [
        ("classic", False, "SIGKILL"),
        pytest.param("consumer", False, "abort", marks=pytest.mark.long),
        pytest.param("classic", True, "abort", marks=pytest.mark.long),
        ("consumer", True, "SIGKILL"),
    ],
    ids=["classic-async-SIGKILL", "consumer-async-abort", "classic-thread-abort", "consumer-thread-SIGKILL"],
)
def test_it_is_dead_lettered_after_a_few_starts_and_all_others_are_handled(
    scene: Scene, on_thread: bool, ended_by: Literal["SIGKILL", "abort"]
) -> None:
    before = scene.produce(150)
    killer, *next_of_its_key = scene.produce_keys("killer", "killer", "killer")
    after = scene.produce(150, seed=2)
    conduct = replace(scene.conduct(), max_attempts=MAX_ATTEMPTS, on_thread=on_thread, ending=(killer.event_id,), ended_by=ended_by)
    worker = scene.worker(conduct=conduct)

    with scene.watch_commits() as commits:
        crashes = restart_until_caught_up(scene, worker.start(), killer)
        produced = [*before, killer, *next_of_its_key, *after]
        report = scene.settle(produced, worker, commits=commits, admitted=crashes.admitted())

    report.require()
    crashes.require_few(MAX_ATTEMPTS)
    require_letter(scene, killer, crashes)
    assert set(crashes.died_of) == {DIED_OF[ended_by]}
    expected = [event.event_id for event in next_of_its_key]
    assert [event_id for event_id in scene.effect_ids() if event_id in expected] == expected


def test_one_that_comes_when_all_before_it_is_done_is_dead_lettered_too(scene: Scene) -> None:
    # When the process ends for the first time nothing is recorded beyond the committed offset.
    killer_id = new_id()
    before = scene.produce(50)
    worker = scene.worker(conduct=replace(scene.conduct(), max_attempts=MAX_ATTEMPTS, ending=(killer_id,)))
    worker.start()
    scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=END_S)
    with TestProducer(scene.kafka) as producer:
        producer.event(scene.orders, "killer", 1, event_id=killer_id)
        (killer,) = producer.flush()
    after = scene.produce(50, seed=2)

    with scene.watch_commits() as commits:
        crashes = restart_until_caught_up(scene, worker, killer)
        report = scene.settle([*before, killer, *after], worker, commits=commits, admitted=crashes.admitted())

    report.require()
    crashes.require_few(MAX_ATTEMPTS)
    require_letter(scene, killer, crashes)


@pytest.mark.long
def test_it_is_dead_lettered_too_where_the_broker_takes_no_map(names: Names, group_protocol: str, tmp_path: Path) -> None:
    # Only what is known of crashes fits there: not which of the others are finished.
    little = KafkaCluster(1, properties={"offset.metadata.max.bytes": "100"})
    with little as cluster, closing(Scene(cluster.access(), names, group_protocol, tmp_path)) as scene:
        before = scene.produce(300)
        killer, next_of_its_key = scene.produce_keys("killer", "killer")
        worker = scene.worker(conduct=replace(scene.conduct(), max_attempts=MAX_ATTEMPTS, ending=(killer.event_id,)))

        crashes = restart_until_caught_up(scene, worker.start(), killer)
        report = scene.settle([*before, killer, next_of_its_key], worker, admitted=crashes.admitted())

        report.require()
        crashes.require_few(MAX_ATTEMPTS)
        require_letter(scene, killer, crashes)
