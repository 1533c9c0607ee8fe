"""W29: the process ends at the first event that it begins, five times in a row."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.scene import END_S, Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

TIMES = 5
PARTITION = 0


def test_each_bad_end_was_counted_before_anything_was_handed_out_and_a_good_one_clears_the_count(scene: Scene) -> None:
    # Without claims. More attempts than bad ends: no event is to be dead-lettered here.
    produced = scene.produce_to(PARTITION, 100)
    ids = [event.event_id for event in produced]
    conduct = replace(scene.conduct(), store=None, max_attempts=2 * TIMES)
    aborting = scene.worker("aborting", replace(conduct, ending=tuple(ids), ended_by="abort"))

    died_of, counted = [], []
    for _ in range(TIMES):
        died_of.append(aborting.start().wait(END_S))
        counted.append({partition: found.unclean for partition, found in scene.maps().items()})
    called_before = scene.called_ids()
    mended = scene.worker("mended", conduct)
    with scene.watch_commits() as commits:
        mended.restart()
        report = scene.settle(produced, mended, commits=commits)
    after = scene.maps()

    report.require()
    assert died_of == [-signal.SIGABRT] * TIMES
    assert counted == [{PARTITION: number} for number in range(1, TIMES + 1)]
    assert called_before == [ids[0]] * TIMES
    assert sorted(scene.called_ids()) == sorted([*called_before, *ids])
    assert (after[PARTITION].offset, after[PARTITION].unclean) == (len(produced), 0)
    assert scene.letter_states() == []
