"""Two services under load while brokers come and go: one on each group protocol, both judged at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise

from choreo.record import TopicPartition
from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, PATIENT_SESSION_MS, Scene
from tests.support.commits import CommitWatch
from tests.support.facts import Admitted
from tests.support.history import Effect, Produced
from tests.support.process import WorkerProcess
from tests.support.producer import Load

RATE_PER_S = 50.0
KEYS = 20
BEFORE = 100
CATCH_UP_S = PATIENT_SESSION_MS / 1000 + 30
"""A member that was away too long joins as a new one, and Kafka waits a session for the old one."""


class Busy:
    """One service with a worker, a load and a watch on its commits."""

    def __init__(self, scene: Scene, worker: WorkerProcess, load: Load, commits: CommitWatch) -> None:
        self.scene = scene
        self.worker = worker
        self.load = load
        self.commits = commits
        self.produced: Sequence[Produced] = ()

    def wait_for_more(self, effects: int) -> None:
        """Returns when it has had so many more effects than now."""
        self.scene.ledger.wait_for(self.scene.ledger.count() + effects, deadline_s=END_S)

    def longest_silence_s(self) -> float:
        """The longest time without an effect of a partition; after `end`."""
        partitions = {event.event_id: event.place for event in self.produced}
        effects: dict[TopicPartition, list[Effect]] = defaultdict(list)
        for effect in self.scene.ledger.effects():
            if effect.event_id in partitions:
                effects[partitions[effect.event_id]].append(effect)
        return max(after.at_s - before.at_s for rows in effects.values() for before, after in pairwise(rows))


def end(services: Sequence[Busy], *, sends_timed_out: bool = False, atomic: bool = False) -> None:
    """All brokers are back: stops the loads, waits until all is handled, stops the workers, and requires every promise.

    `sends_timed_out`: an emit whose outcome nobody knows is written again, with the same id. `atomic`: effects are `kafka`; then it never
    is, though a handler may be called again.
    """
    for service in services:
        service.produced = service.load.stop()
    for service in services:
        # They catch up at the same time; the first may take all of it, the others have it then, too.
        service.scene.kafka.wait_for_no_lag(service.scene.group, [service.scene.orders], deadline_s=CATCH_UP_S)
    reports = [
        service.scene.settle(
            service.produced, service.worker, commits=service.commits, admitted=called_again(service.scene) if atomic else None
        )
        for service in services
    ]
    for service, report in zip(services, reports, strict=True):
        report.require()
        handled = [event for event in service.produced if event.outcome == "ok"]
        twice = {event.event_id for event in handled} if sends_timed_out and not atomic else ()
        service.scene.require_children(handled, again=twice)


def called_again(scene: Scene) -> Admitted:
    """Whatever was called may be called again: that is outside of Kafka's transactions."""
    return Admitted(doubles=frozenset((HANDLER, event_id) for event_id in scene.called_ids()), rewinds_per_lane=None)


@contextmanager
def under_load(scenes: Sequence[Scene], *, seed: int, atomic: bool = False, failpoint: str | None = None) -> Iterator[list[Busy]]:
    """Each with a worker that is at work already; `atomic`: its effects are `kafka`."""
    with ExitStack() as stack:
        busy = []
        for scene in scenes:
            conduct = replace(scene.conduct(), emits=True, atomic=atomic, store=None if atomic else str(scene.store))
            worker = scene.worker(conduct=conduct, failpoint=failpoint).start()
            commits = stack.enter_context(scene.watch_commits())
            load = stack.enter_context(Load(scene.kafka, scene.orders, keys=KEYS, rate_per_s=RATE_PER_S, seed=seed))
            busy.append(Busy(scene, worker, load, commits))
        for one in busy:
            one.wait_for_more(BEFORE)
        yield busy
