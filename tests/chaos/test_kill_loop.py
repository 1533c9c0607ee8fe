"""kill -9 at random moments, again and again, under load: two members, 20 kills (200 with CHOREO_FULL=1)."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest

from tests.chaos.matrix import MORE_THAN_KILLS
from tests.chaos.scene import END_S, Scene, full, seed_of_run
from tests.support.facts import Admitted
from tests.support.process import WorkerProcess
from tests.support.producer import Load
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

KILLS = 200 if full() else 20
MOST_QUIET_S = 0.5
WORK_S = 0.005


@pytest.mark.timeout(15 * KILLS)
def test_no_event_is_lost_and_no_keys_order_is_broken(scene: Scene) -> None:
    chance = random.Random(seed := seed_of_run())
    members = [scene.worker(name, replace(scene.conduct(), emits=True, work_s=WORK_S, max_attempts=MORE_THAN_KILLS)) for name in ("a", "b")]
    for member in members:
        member.start()
    cut_short = 0
    again: frozenset[tuple[str, str]] = frozenset()

    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=20, rate_per_s=150, seed=seed) as load:
        for _ in range(KILLS):
            victims = wait_for(lambda: at_work(scene, members), "a member at work", deadline_s=END_S)
            threading.Event().wait(chance.uniform(0, MOST_QUIET_S))
            victim = chance.choice(victims)
            victim.kill9()
            cut_short += any(call.pid == victim.pid for call in scene.ledger.calls() if call.ended_s is None)
            # What had its effect, or was about to, and no claim: the only events that may have a second one.
            again |= scene.unclaimed()
            victim.start()
        produced = load.stop()
        report = scene.settle(produced, *members, commits=commits, admitted=Admitted(doubles=again, rewinds_per_lane=KILLS))

    print(f"{KILLS} kills, {cut_short} of them inside a handler; {len(again)} events were unclaimed at a kill; seed {seed}")
    report.require()
    scene.require_children([event for event in produced if event.outcome == "ok"], again={event_id for _, event_id in again})
    assert cut_short


def at_work(scene: Scene, members: list[WorkerProcess]) -> list[WorkerProcess]:
    """Those that have had an effect in their present life."""
    pids = {effect.pid for effect in scene.ledger.effects()}
    return [member for member in members if member.running and member.pid in pids]
