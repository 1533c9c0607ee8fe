"""W30: slow events of twelve partitions beside one that ends the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.crash_loop import require_letter, restart_until_caught_up
from tests.chaos.scene import Scene
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]

PARTITIONS = 12
WORK_S = 0.5
MAX_ATTEMPTS = 2


@pytest.fixture
def scene(kafka: KafkaAccess, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    """With twelve partitions."""
    with closing(Scene(kafka, names, group_protocol, tmp_path, partitions=PARTITIONS)) as made:
        yield made


def test_none_of_them_is_dead_lettered_and_each_is_handled(scene: Scene) -> None:
    # The crasher ends the process at once: no innocent that began together with it comes to its end.
    innocents = [event for partition in range(PARTITIONS) for event in scene.produce_to(partition, 1 + partition % 2)]
    crasher, behind = scene.produce_keys("crasher", "crasher")
    worker = scene.worker(conduct=replace(scene.conduct(), work_s=WORK_S, max_attempts=MAX_ATTEMPTS, ending=(crasher.event_id,)))

    with scene.watch_commits() as commits:
        crashes = restart_until_caught_up(scene, worker.start(), crasher)
        report = scene.settle([*innocents, crasher, behind], worker, commits=commits, admitted=crashes.admitted())

    report.require()
    crashes.require_few(MAX_ATTEMPTS)
    require_letter(scene, crasher, crashes)
    assert set(scene.effect_ids()) == {event.event_id for event in [*innocents, behind]}
