"""T2 to T5: what breaks Kafka's transactions. T1 is a cell of the matrix: kill -9 in_kafka_tx.

What counts are the children, read as committed only: each event has exactly one. A handler may be called again.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.conduct import CANT_GO_ON, Conduct
from tests.chaos.scene import END_S, Scene, counts, full, seed_of_run
from tests.chaos.test_w18_rebalance_storm import storm
from tests.chaos.under_load import called_again, end, under_load
from tests.support.history import Produced
from tests.support.kafka_access import KafkaAccess
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names
from tests.support.producer import Load
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

STOPPED_S = 40.0
"""Longer than a commit is asked for again (30 s), and than Kafka lets a transaction be open (10 s)."""


def atomic(scene: Scene) -> Conduct:
    return replace(scene.conduct(), emits=True, store=None, atomic=True)


def require_one_child_each(scene: Scene, produced: list[Produced]) -> None:
    scene.require_children([event for event in produced if event.outcome == "ok"])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_t2_a_commit_that_is_not_answered_is_decided_by_a_new_producer_and_all_is_read_again(
    scenes3: list[Scene], kafka3: KafkaCluster
) -> None:
    # Each is stopped when it is about to ask for the commit, and asks when nobody answers.
    with under_load(scenes3, seed=seed_of_run(), atomic=True, failpoint="in_kafka_tx=stop:40") as services:
        for service in services:
            service.worker.wait_stopped(deadline_s=END_S)
        for node in kafka3.node_ids:
            kafka3.stop(node)
        for service in services:
            service.worker.sigcont()
        stopped_s = time.monotonic()
        wait_for(lambda: time.monotonic() - stopped_s > STOPPED_S, "they are stopped long enough", deadline_s=2 * STOPPED_S)
        for node in kafka3.node_ids:
            kafka3.cont(node)
        end(services, atomic=True)

    assert [service.worker.lives for service in services] == [1, 1]
    rewinds = [counts(service.worker)["rewinds"] for service in services]
    print(f"rewinds: {rewinds}")
    assert all(rewinds)


def test_t3_of_two_workers_with_one_id_the_older_is_fenced_and_says_so(scene: Scene) -> None:
    environment = {"CHOREO_TRANSACTIONAL_ID": f"{scene.group}-one"}
    older = scene.worker("older", atomic(scene), environment=environment)
    older.restart()
    produced = scene.produce(200)
    scene.ledger.wait_for(100, deadline_s=END_S)

    newer = scene.worker("newer", atomic(scene), environment=environment).start()
    with Load(scene.kafka, scene.orders, keys=10, rate_per_s=50, seed=seed_of_run()) as load:
        code = older.wait(END_S)
        produced += load.stop()
    report = scene.settle(produced, newer, admitted=called_again(scene))

    report.require()
    assert code == CANT_GO_ON
    assert f"transactional.id {scene.group}-one" in older.output()
    assert "give each worker its own" in older.output()
    require_one_child_each(scene, produced)


@pytest.fixture
def busy_scene(kafka: KafkaAccess, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    """With a partition for every member, and some more; nobody dies here."""
    with closing(Scene(kafka, names, group_protocol, tmp_path, partitions=12, session_ms=6_000)) as made:
        yield made


@pytest.mark.long
@pytest.mark.timeout(240)
def test_t4_members_that_come_and_go_commit_under_no_stale_generation(busy_scene: Scene) -> None:
    scene, chance = busy_scene, random.Random(seed := seed_of_run())
    members = [scene.worker(f"member{n}", atomic(scene)) for n in range(6 if full() else 4)]
    members[0].restart()

    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=40, rate_per_s=150, seed=seed) as load:
        changes = storm(members, chance)
        for member in members:
            if member.exit_code is not None or member.lives == 0:
                member.start()
        for member in members:
            member.wait_ready(deadline_s=END_S)
        produced = load.stop()
        report = scene.settle(produced, *members, commits=commits, admitted=called_again(scene))

    report.require()
    require_one_child_each(scene, list(produced))
    print(f"{changes} members came or went; the last lives: {[counts(member)['aborted'] for member in members]} aborted")


def test_t4_a_member_that_joins_and_leaves_under_load_leaves_each_event_with_one_child(scene: Scene) -> None:
    stays, comes = scene.worker("stays", atomic(scene)), scene.worker("comes", atomic(scene))
    stays.restart()
    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=20, rate_per_s=150, seed=seed_of_run()) as load:
        for _ in range(2):
            comes.restart()
            threading.Event().wait(1.0)
            comes.sigterm()
            assert comes.wait(END_S) == 0, comes.output()[-4000:]
        produced = load.stop()
        report = scene.settle(produced, stays, commits=commits, admitted=called_again(scene))

    report.require()
    require_one_child_each(scene, list(produced))


def test_t5_what_waits_for_a_transaction_is_committed_by_nobody_else_and_the_group_never_goes_back(scene: Scene) -> None:
    holding = replace(atomic(scene), held=("k-1",))
    worker = scene.worker("a", holding)
    with scene.watch_commits() as commits:
        worker.restart()
        waiting = scene.produce_keys("k-1")
        produced = [*waiting, *scene.produce(400, keys=8)]
        scene.ledger.wait_for(400 - sum(event.key == b"k-1" for event in produced[1:]), deadline_s=END_S)
        scene.open_gate()
        report = scene.settle(produced, worker, commits=commits)

    report.require()
    require_one_child_each(scene, produced)
    assert counts(worker)["commits"] == counts(worker)["transactions"]
