"""kill -9 while one slow event holds the committed offset back, and what came behind it is finished."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, Scene
from tests.support.facts import Admitted
from tests.support.offset_maps import finished
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

BEHIND = 200
PARTITION = 0


def test_what_the_committed_map_says_is_finished_does_not_run_again(scene: Scene) -> None:
    # Without claims: nothing but the map knows.
    slow, *behind = scene.produce_to(PARTITION, 1 + BEHIND)
    worker = scene.worker(conduct=replace(scene.conduct(), store=None, held=(text(slow.key),)))
    worker.start()
    # Those of the slow event's own key wait for it.
    free = [event for event in behind if event.key != slow.key]
    wait_for(lambda: len(finished_offsets(scene)) == len(free), "the map says that all behind it are finished", deadline_s=END_S)

    worker.kill9()
    recorded = finished_offsets(scene)
    scene.open_gate()
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle([slow, *behind], worker, commits=commits)

    report.require()
    calls = Counter(scene.called_ids())
    assert recorded == {event.offset for event in free}
    assert calls == {**dict.fromkeys((event.event_id for event in behind), 1), slow.event_id: 2}


def test_a_kill_while_they_are_being_finished_repeats_no_more_than_what_is_not_in_the_map(scene: Scene) -> None:
    slow, *behind = scene.produce_to(PARTITION, 1 + BEHIND)
    conduct = replace(scene.conduct(), store=None, held=(text(slow.key),), work_s=0.1)
    worker = scene.worker(conduct=conduct, environment={"CHOREO_CONCURRENCY": "8"})
    worker.start()
    wait_for(lambda: finished_offsets(scene), "the map says that something behind it is finished", deadline_s=END_S)

    worker.kill9()
    recorded, effects_at_death = finished_offsets(scene), scene.effect_ids()
    scene.open_gate()
    with scene.watch_commits() as commits:
        worker.restart()
        admitted = Admitted(
            doubles=frozenset((HANDLER, event.event_id) for event in behind if event.offset not in recorded), rewinds_per_lane=1
        )
        report = scene.settle([slow, *behind], worker, commits=commits, admitted=admitted)

    report.require()
    calls = Counter(scene.called_ids())
    print(f"{len(recorded)} of {len(effects_at_death)} finished events were recorded")
    assert len(effects_at_death) < BEHIND
    assert {event.offset: calls[event.event_id] for event in behind if event.offset in recorded} == dict.fromkeys(recorded, 1)


def finished_offsets(scene: Scene) -> set[int]:
    found = scene.maps().get(PARTITION)
    return set() if found is None else finished(found)


def text(key: bytes | None) -> str:
    return (key or b"").decode()
