"""W14: SIGSTOP past the session timeout, then SIGCONT: a member that does not know that it is dead.

Admitted: the events whose handlers were under way when it was stopped go on when it is continued, and have a second effect
(the new owner had handled them meanwhile). Nothing else of what it had buffered may have one, and its commit is refused.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, Scene
from tests.support.facts import Admitted
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_its_partitions_move_and_only_what_it_was_handling_may_have_a_second_effect(scene: Scene) -> None:
    before = scene.produce(50)
    running, *buffered = scene.produce_keys(*["zombie"] * 6)
    zombie = scene.worker("zombie", replace(scene.conduct(), held=("zombie",)))
    zombie.start()
    scene.ledger.wait_for(len(before), deadline_s=END_S)
    wait_for(lambda: scene.ledger.unfinished() == {(HANDLER, running.event_id)}, "its handler runs", deadline_s=END_S)

    with scene.watch_commits() as commits:
        with scene.claims_held():
            zombie.sigstop()
        heir = scene.worker("heir")
        heir.restart()
        scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=END_S)
        scene.open_gate()
        zombie.sigcont()
        zombie.wait_output("lost ", deadline_s=END_S)
        wait_for(lambda: zombie.output().count("assigned ") == 2, "the zombie joins again", deadline_s=END_S)
        after = scene.produce(50, seed=2)
        admitted = Admitted(doubles=frozenset({(HANDLER, running.event_id)}), max_doubles=1)
        report = scene.settle([*before, running, *buffered, *after], zombie, heir, commits=commits, admitted=admitted)

    report.require()
