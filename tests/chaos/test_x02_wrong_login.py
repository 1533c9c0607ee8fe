"""X2: a wrong password at the start; the right to be in the group taken away at run time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conduct import CANT_GO_ON
from tests.chaos.logins import USER, allow, allow_group, scene_of_payments
from tests.chaos.scene import END_S, Scene
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

START_DEADLINE_S = 10.0


@pytest.fixture
def scene(kafka_sasl: KafkaCluster, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    made = scene_of_payments(kafka_sasl, names, group_protocol, tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("group_protocol", ["consumer"])
def test_a_wrong_password_ends_the_start_with_one_line_within_the_deadline(scene: Scene, kafka_sasl: KafkaCluster) -> None:
    wrong = kafka_sasl.security(USER, "a guess")
    worker = scene.worker(properties=wrong, environment={"CHOREO_START_DEADLINE_S": f"{START_DEADLINE_S}"})

    began_at_s = time.monotonic()
    code = worker.start().wait(END_S)
    took_s = time.monotonic() - began_at_s

    assert code == CANT_GO_ON
    assert took_s < START_DEADLINE_S + 2
    (said,) = (line for line in worker.output().splitlines() if line.startswith("choreo: "))
    assert "check sasl.username and sasl.password" in said
    assert "a guess" not in worker.output()


def test_a_group_that_may_not_be_joined_any_more_is_tried_again_until_it_may(scene: Scene, kafka_sasl: KafkaCluster) -> None:
    allow(kafka_sasl, scene, scene.orders, scene.notes, scene.dlq, scene.letters, scene.replays)
    membership = allow_group(kafka_sasl, scene)
    worker = scene.worker()
    worker.restart()
    before = scene.produce(50)
    scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=END_S)

    with scene.watch_commits() as commits:
        kafka_sasl.permissions.disallow(membership)
        worker.wait_output("built anew", deadline_s=END_S)
        meanwhile = scene.produce(50, seed=2)
        wait_for(lambda: worker.output().count("built anew") >= 2, "a second refusal", deadline_s=END_S)
        allow_group(kafka_sasl, scene)
        report = scene.settle([*before, *meanwhile], worker, commits=commits)

    report.require()
    assert worker.lives == 1
    assert worker.output().count("built anew") <= 6, "it waits longer after each refusal"
