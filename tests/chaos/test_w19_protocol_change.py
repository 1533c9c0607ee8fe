"""W19: a service goes from the classic group protocol to the consumer protocol, member by member, and back, under load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.scene import END_S, Scene, seed_of_run
from tests.chaos.under_load import called_again
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names
from tests.support.process import WorkerProcess
from tests.support.producer import Load

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

MORE = 100


@pytest.mark.timeout(240)
@pytest.mark.parametrize("atomic", [False, True], ids=["claims", "kafka"])
def test_nothing_is_lost_or_done_twice(kafka: KafkaAccess, names: Names, tmp_path: Path, atomic: bool) -> None:
    scene = Scene(kafka, names, "classic", tmp_path, session_ms=6_000)
    conduct = replace(scene.conduct(), emits=True, atomic=atomic, store=None if atomic else str(scene.store))
    members = [scene.worker(name, conduct, protocol="classic") for name in ("a", "b")]
    for member in members:
        member.restart()
    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=20, rate_per_s=80, seed=seed_of_run()) as load:
        for protocol in ("consumer", "classic"):
            members = [_replaced(scene, member, scene.worker(member.log.stem, conduct, protocol=protocol)) for member in members]
        produced = load.stop()
        # A member that leaves just when it is given partitions is out before it is asked (librdkafka): its last transaction is refused.
        report = scene.settle(produced, *members, commits=commits, admitted=called_again(scene) if atomic else None)

    report.require()
    scene.require_children([event for event in produced if event.outcome == "ok"])
    scene.close()


def _replaced(scene: Scene, old: WorkerProcess, new: WorkerProcess) -> WorkerProcess:
    """The new one joins before the old one leaves, as in a rolling change."""
    new.start()
    scene.ledger.wait_for(scene.ledger.count() + MORE, deadline_s=END_S)
    old.sigterm()
    assert old.wait(END_S) == 0, old.output()[-4000:]
    scene.ledger.wait_for(scene.ledger.count() + MORE, deadline_s=END_S)
    return new
