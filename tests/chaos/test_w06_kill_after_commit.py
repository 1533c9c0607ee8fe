"""W6: kill -9 when Kafka has acknowledged a commit."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace

import pytest

from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, Scene
from tests.support.facts import Admitted

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_what_was_committed_does_not_come_again(scene: Scene) -> None:
    # Without claims, which would hide it.
    produced = scene.produce(300)
    worker = scene.worker(conduct=replace(scene.conduct(), store=None), failpoint="after_commit=kill9")

    with scene.watch_commits() as commits:
        died_of = worker.start().wait(END_S)
        committed = {event.event_id for event in scene.committed_events(produced)}
        begun = frozenset((HANDLER, event_id) for event_id in scene.called_ids() if event_id not in committed)
        worker.failpoint = None
        worker.restart()
        report = scene.settle(produced, worker, commits=commits, admitted=Admitted(doubles=begun, rewinds_per_lane=1))

    report.require()
    assert died_of == -signal.SIGKILL
    assert committed
    calls = Counter(scene.called_ids())
    assert {event_id: calls[event_id] for event_id in committed} == dict.fromkeys(committed, 1)
