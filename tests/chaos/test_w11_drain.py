"""W11: SIGTERM with 100 events in flight."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from tests.chaos.conduct import DONE
from tests.chaos.scene import END_S, Scene
from tests.support.history import CleanStop
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

DRAIN_S = 10.0
KEYS = tuple(f"held-{number}" for number in range(100))


def test_what_is_in_flight_ends_within_the_drain_and_never_comes_again(scene: Scene) -> None:
    # Without claims, which would hide a second delivery. Behind each event in flight stands one more of its key.
    produced = scene.produce_keys(*KEYS, *KEYS)
    conduct = replace(scene.conduct(), store=None, held=KEYS)
    worker = scene.worker(conduct=conduct, environment={"CHOREO_DRAIN_S": f"{DRAIN_S}"})
    worker.start()
    wait_for(lambda: len(scene.ledger.unfinished()) == len(KEYS), "100 events in flight", deadline_s=END_S)

    with scene.watch_commits() as commits:
        worker.sigterm()
        worker.wait_output("stopping", deadline_s=END_S)
        scene.open_gate()
        asked_at_s = time.monotonic()
        code = worker.wait(END_S)
        took_s = time.monotonic() - asked_at_s
        clean_stop = CleanStop(time.monotonic(), frozenset({worker.pid}))
        called, committed = scene.called_ids(), scene.committed_events(produced)
        worker.restart()
        report = scene.settle(produced, worker, commits=commits, earlier_stops=[clean_stop])

    report.require()
    assert (code, took_s < DRAIN_S) == (DONE, True)
    assert set(called) >= {event.event_id for event in produced[: len(KEYS)]}
    assert sorted(event.event_id for event in committed) == sorted(called)
    assert sorted(scene.called_ids()) == sorted(event.event_id for event in produced)
