"""W20: two members with one group.instance.id."""

from __future__ import annotations

import pytest

from tests.chaos.conduct import CANT_GO_ON
from tests.chaos.scene import END_S, Scene
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_one_of_them_ends_and_says_why_and_the_other_goes_on(scene: Scene) -> None:
    members = [scene.worker(name, properties={"group.instance.id": "same"}) for name in ("first", "second")]
    members[0].restart()
    before = scene.produce(50)
    scene.ledger.wait_for(len(before), deadline_s=END_S)

    members[1].start()
    wait_for(lambda: any(member.exit_code is not None for member in members), "one of them ends", deadline_s=END_S)
    (ended,) = [member for member in members if member.exit_code is not None]
    (other,) = [member for member in members if member is not ended]
    after = scene.produce(50, seed=2)
    report = scene.settle([*before, *after], other)

    report.require()
    assert ended.exit_code == CANT_GO_ON
    assert "another member has the same group.instance.id; give each its own" in ended.output()
