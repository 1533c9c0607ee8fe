"""W18: members join and leave, one each half second, under load."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.conduct import DONE
from tests.chaos.scene import END_S, Scene, counts, full, seed_of_run
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names
from tests.support.process import WorkerProcess
from tests.support.producer import Load

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]

MEMBERS = 8 if full() else 4
STORM_S = 60.0 if full() else 12.0
EVERY_S = 0.5
LAG_GONE_S = 30.0
SESSION_MS = 6_000
"""Who leaves while it joins by the classic protocol is waited for so long: librdkafka's LeaveGroup stands behind its JoinGroup."""


@pytest.fixture
def scene(kafka: KafkaAccess, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    """With a partition for every member, and some more; nobody dies here."""
    made = Scene(kafka, names, group_protocol, tmp_path, partitions=12, session_ms=SESSION_MS)
    yield made
    made.close()


@pytest.mark.timeout(240)
def test_members_that_come_and_go_lose_nothing_and_do_nothing_twice(scene: Scene) -> None:
    chance = random.Random(seed := seed_of_run())
    members = [scene.worker(f"member{n}") for n in range(MEMBERS)]
    members[0].restart()

    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=20, rate_per_s=100, seed=seed) as load:
        changes = storm(members, chance)
        for member in members:
            if member.exit_code is not None or member.lives == 0:
                member.start()
        for member in members:
            member.wait_ready(deadline_s=END_S)
        report = scene.settle(load.stop(), *members, commits=commits, deadline_s=LAG_GONE_S)

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
                require_good_end(member)
                leaving.discard(number)
            member.start()
            changes += 1
        elif number not in leaving:
            member.sigterm()
            leaving.add(number)
            changes += 1
    for number in leaving:
        members[number].wait(END_S)
        require_good_end(members[number])
    return changes


def require_good_end(member: WorkerProcess) -> None:
    """It was asked to leave: it ended cleanly, or by the signal itself where it had not begun to listen."""
    said = member.output()
    assert member.exit_code == DONE or (member.exit_code == -signal.SIGTERM and not said), f"{member} ended with {member.exit_code}: {said}"
