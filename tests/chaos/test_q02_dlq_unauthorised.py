"""Q2: the service may not write to its dead-letter topic. librdkafka first reports that, then raises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.logins import USER, allow, allow_group, scene_of_payments
from tests.chaos.scene import END_S, Scene
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

KEYS = ("poison", "poison-too")


@pytest.fixture
def scene(kafka_sasl: KafkaCluster, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    made = scene_of_payments(kafka_sasl, names, group_protocol, tmp_path)
    yield made
    made.close()


def test_the_keys_wait_and_nothing_is_committed_beyond_them_until_it_may(scene: Scene, kafka_sasl: KafkaCluster) -> None:
    allow(kafka_sasl, scene, scene.orders, scene.notes, scene.letters, scene.replays)
    allow_group(kafka_sasl, scene)
    visible = kafka_sasl.permissions.allow(USER, "DESCRIBE", topic=scene.dlq)
    worker = scene.worker(conduct=replace(scene.conduct(), failing=KEYS))
    worker.restart()

    with scene.watch_commits() as commits:
        first = scene.produce_keys(KEYS[0])
        worker.wait_output("TOPIC_AUTHORIZATION_FAILED", deadline_s=END_S)
        # Without the right to describe it, the next produce() raises at once.
        kafka_sasl.permissions.disallow(visible)
        second = scene.produce_keys(KEYS[1])
        others = scene.produce(20)
        scene.ledger.wait_for(len(others), deadline_s=END_S)
        committed_meanwhile = scene.committed_events([*first, *second])
        letters_meanwhile = scene.letters_written()
        allow(kafka_sasl, scene, scene.dlq)
        report = scene.settle([*first, *second, *others], worker, commits=commits)

    report.require()
    assert (committed_meanwhile, letters_meanwhile) == ([], [])
    assert {letter.event_id for letter in scene.letters_written()} == {event.event_id for event in [*first, *second]}
    assert "its key waits" in worker.output()
    assert "choreo.replay" not in worker.output(), "the replay log is read outside of any group: it needs no right to one"
