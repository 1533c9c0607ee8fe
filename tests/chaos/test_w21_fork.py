"""W21: a handler forks, and the child uses choreo's clients, whose threads it does not have."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.chaos.scene import Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_each_use_in_the_child_is_refused_and_none_hangs(scene: Scene) -> None:
    produced = scene.produce_keys("forking")
    worker = scene.worker(conduct=replace(scene.conduct(), forking=("forking",)))

    worker.restart()
    report = scene.settle(produced, worker)

    report.require()
    (said,) = (line for line in worker.output().splitlines() if line.startswith("FORKED "))
    assert json.loads(said.removeprefix("FORKED ")) == {
        "publish with a publisher of the parent": "StateError",
        "close a publisher of the parent": "ok",
    }
