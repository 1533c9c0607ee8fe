"""The random nemesis against whole services: members killed, ended and stopped, brokers killed and restarted, all at once.

20 s (10 minutes with CHOREO_FULL=1), two members of a service on each group protocol. CHOREO_SEED repeats a run's choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.scene import Scene, full, seed_of_run
from tests.chaos.under_load import CATCH_UP_S, KEYS, RATE_PER_S, called_again
from tests.support.facts import Admitted
from tests.support.kafka_cluster import KafkaCluster
from tests.support.nemesis import Fault, Nemesis, kill_broker, kill_worker, restart_broker, stop_worker, terminate_worker
from tests.support.process import WorkerProcess
from tests.support.producer import Load

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]

DURATION_S = 600.0 if full() else 20.0
READY_S = 120.0
ZOMBIE_S = (1.0, 20.0) if full() else (1.0, 6.0)


class Victims:
    """Two members of a service, and what their faults may do twice: effects without a claim, and calls under way, at that moment."""

    def __init__(self, scene: Scene, *, atomic: bool) -> None:
        self.scene = scene
        conduct = replace(scene.conduct(), emits=True, atomic=atomic, store=None if atomic else str(scene.store))
        self.members = [scene.worker(name, conduct) for name in ("a", "b")]
        self.again: set[tuple[str, str]] = set()

    def faults(self) -> list[Fault]:
        made: list[Fault] = []
        for member in self.members:
            # A new life may wait for the session of the old one: it is ready when it is.
            killed = replace(kill_worker(member), heal=member.start)
            ended = replace(terminate_worker(member, drain_s=READY_S), heal=member.start)
            made += [self._noting(killed), self._ready_first(ended, member), self._noting(stop_worker(member, hold_s=ZOMBIE_S))]
        return [
            replace(fault, name=f"{self.scene.protocol}: {fault.name}", target=f"{self.scene.protocol}: {fault.target}") for fault in made
        ]

    def _ready_first(self, fault: Fault, member: WorkerProcess) -> Fault:
        def inject() -> None:
            member.wait_ready(deadline_s=READY_S)
            fault.inject()

        return replace(fault, inject=inject)

    def _noting(self, fault: Fault) -> Fault:
        def inject() -> None:
            fault.inject()
            self.again |= self.scene.unclaimed()

        return replace(fault, inject=inject)


@pytest.mark.timeout(2 * DURATION_S + 300)
@pytest.mark.parametrize("atomic", [False, True], ids=["claims", "kafka"])
def test_nothing_is_lost_or_out_of_order_and_only_what_was_under_way_is_done_twice(
    scenes3: list[Scene], kafka3: KafkaCluster, tmp_path: Path, atomic: bool
) -> None:
    seed = seed_of_run()
    services = [Victims(scene, atomic=atomic) for scene in scenes3]
    faults = [fault for service in services for fault in service.faults()]
    faults += [fault(kafka3, node) for node in kafka3.node_ids for fault in (kill_broker, restart_broker)]

    with ExitStack() as stack:
        loads = [started(service, stack, seed) for service in services]
        with Nemesis(faults, history=tmp_path / "nemesis.jsonl", duration_s=DURATION_S, seed=seed, width=3) as nemesis:
            nemesis.join()
        produced = [load.stop() for load in loads]
        for service, events in zip(services, produced, strict=True):
            kills = len(nemesis.plan)
            report = service.scene.settle(
                events,
                *service.members,
                admitted=called_again(service.scene) if atomic else Admitted(doubles=frozenset(service.again), rewinds_per_lane=kills),
                healed_at_s=nemesis.healed_at_s,
                deadline_s=2 * CATCH_UP_S,
            )
            report.require()
            emitted = [event for event in events if event.outcome == "ok"]
            # An emit whose outcome nobody knew, for its broker was killed, is written again, with the same id; but for transactions.
            service.scene.require_children(emitted, again=() if atomic else {event.event_id for event in emitted})

    print(f"{len(nemesis.plan)} faults, seed {seed}; may be doubled: {[len(service.again) for service in services]}")
    assert len(nemesis.plan) >= DURATION_S / 4


def started(service: Victims, stack: ExitStack, seed: int) -> Load:
    """The service at work, under load."""
    members: Sequence[WorkerProcess] = service.members
    for member in members:
        member.restart()
    return stack.enter_context(Load(service.scene.kafka, service.scene.orders, keys=KEYS, rate_per_s=RATE_PER_S, seed=seed))
