"""Q1: the dead-letter topic is not there: at the start, and later."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.conduct import REFUSED
from tests.chaos.scene import END_S, Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


@pytest.mark.parametrize("group_protocol", ["consumer"])
def test_without_it_a_worker_refuses_to_start_and_says_so_in_one_line(scene: Scene) -> None:
    produced = scene.produce(10)
    scene.kafka.delete_topics([scene.dlq])
    worker = scene.worker()

    code = worker.start().wait(END_S)

    assert code == REFUSED
    (said,) = worker.output().splitlines()
    assert scene.dlq in said
    assert "choreo topics apply" in said
    assert scene.called_ids() == []
    assert scene.committed_events(produced) == []


@pytest.mark.parametrize("group_protocol", ["classic"])
def test_when_it_is_deleted_the_key_waits_and_the_letter_is_written_once_it_is_there_again(scene: Scene) -> None:
    before = scene.produce(20)
    # What is missing is reported sooner than after 10 s.
    worker = scene.worker(conduct=replace(scene.conduct(), failing=("poison",)), properties={"topic.metadata.propagation.max.ms": "1000"})
    worker.restart()
    scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=END_S)

    scene.kafka.delete_topics([scene.dlq])
    with scene.watch_commits() as commits:
        poison, behind = scene.produce_keys("poison", "poison")
        worker.wait_output("its key waits", deadline_s=END_S)
        others = scene.produce(20, seed=2)
        scene.ledger.wait_for(len(before) + len(others), deadline_s=END_S)
        committed_meanwhile = scene.committed_events([poison])
        calls_meanwhile = scene.called_ids()
        scene.kafka.create_topic(scene.dlq, partitions=2)
        report = scene.settle([*before, poison, behind, *others], worker, commits=commits)

    report.require()
    assert committed_meanwhile == []
    assert (calls_meanwhile.count(poison.event_id), calls_meanwhile.count(behind.event_id)) == (1, 0)
    assert [letter.event_id for letter in scene.letters_written()] == [poison.event_id, behind.event_id]
    assert [state.event_id for state in scene.letter_states()] == [poison.event_id, behind.event_id]
