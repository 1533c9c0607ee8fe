"""W18: members join and leave, one each half second, under load."""

from __future__ import annotations

import random
import threading
import time

import pytest

from tests.chaos.conduct import DONE
from tests.chaos.scene import END_S, Scene, counts, full, seed_of_run
from tests.support.process import WorkerProcess
from tests.support.producer import Load

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

MEMBERS = 8 if full() else 4
STORM_S = 60.0 if full() else 12.0
EVERY_S = 0.5
LAG_GONE_S = 30.0
PATIENT_SESSION = {"classic": {"session.timeout.ms": "10000", "heartbeat.interval.ms": "300"}, "consumer": {}}
"""Members leave by themselves here; none is to be thought dead because the machine is busy."""


@pytest.mark.timeout(240)
def test_members_that_come_and_go_lose_nothing_and_do_nothing_twice(scene: Scene) -> None:
    chance = random.Random(seed := seed_of_run())
    scene.kafka.set_session(scene.group, session_ms=10_000, heartbeat_ms=300)
    members = [scene.worker(f"member{n}", properties=PATIENT_SESSION[scene.protocol]) for n in range(MEMBERS)]
    members[0].restart()

    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=20, rate_per_s=100, seed=seed) as load:
        changes = storm(members, chance)
        for member in members:
            if member.exit_code is not None or member.lives == 0:
                member.start()
        produced = load.stop()
        report = scene.settle(produced, commits=commits, deadline_s=LAG_GONE_S)
    for member in members:
        member.wait_ready(deadline_s=END_S)
    scene.stop_cleanly(*members)

    report.require()
    rebalances = sum(counts(member)["rebalances"] for member in members)
    print(f"{changes} members came or went; {rebalances} rebalances seen by the last lives; seed {seed}")
    assert changes > STORM_S / EVERY_S / 2


def storm(members: list[WorkerProcess], chance: random.Random) -> int:
    """Each half second somebody joins or leaves; who leaves must end well. How often that happened."""
    changes = 0
    leaving: set[int] = set()
    ends_at_s = time.monotonic() + STORM_S
    next_at_s = time.monotonic()
    pause = threading.Event()
    while time.monotonic() < ends_at_s:
        pause.wait(max(0.0, next_at_s - time.monotonic()))
        next_at_s += EVERY_S
        number = chance.randrange(len(members))
        member = members[number]
        if not member.running:
            if number in leaving:
                assert member.exit_code == DONE, f"{member} ended with {member.exit_code}: {member.output()[-4000:]}"
                leaving.discard(number)
            member.start()
            changes += 1
        elif number not in leaving:
            member.sigterm()
            leaving.add(number)
            changes += 1
    for number in leaving:
        assert members[number].wait(END_S) == DONE, members[number].output()[-4000:]
    return changes
