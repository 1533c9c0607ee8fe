"""W2: kill -9 inside a handler: it has begun, and has neither had its effect nor been claimed."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, Scene
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


@pytest.mark.parametrize(
    ("group_protocol", "on_thread"), [("classic", True), ("consumer", False)], ids=["classic-thread", "consumer-async"]
)
def test_an_event_whose_handler_was_killed_has_its_effect_after_the_restart_and_no_other_has_a_second(
    scene: Scene, on_thread: bool
) -> None:
    conduct = replace(scene.conduct(), emits=True, on_thread=on_thread, held=("killing",), killing=("killing",))
    worker = scene.worker(conduct=conduct)
    worker.restart()
    killing, behind = scene.produce_keys("killing", "killing")
    wait_for(lambda: scene.ledger.unfinished() == {(HANDLER, killing.event_id)}, "its handler runs", deadline_s=END_S)
    # All there is to claim and to commit is claimed and committed before it dies, beside it and behind it.
    beside = scene.produce(50)
    beyond = scene.produce_to(killing.partition, 20)
    others = frozenset(event.event_id for event in [*beside, *beyond])
    elsewhere = [event for event in beside if event.place != killing.place]
    wait_for(lambda: scene.claimed() >= others, "the others are claimed", deadline_s=END_S)
    wait_for(lambda: scene.committed_events(elsewhere) == elsewhere, "the others are committed", deadline_s=END_S)

    scene.open_gate()
    died_of = worker.wait(END_S)
    called_at_death, inside = scene.called_ids(), scene.ledger.unfinished()
    effects_at_death, claimed_at_death, children_at_death = scene.effect_ids(), scene.claimed(), scene.children()
    committed_at_death = scene.committed_events([killing, behind])
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle([killing, behind, *beside, *beyond], worker, commits=commits)

    report.require()
    assert (died_of, inside) == (-signal.SIGKILL, frozenset({(HANDLER, killing.event_id)}))
    assert (frozenset(effects_at_death), claimed_at_death, frozenset(children_at_death)) == (others, others, others)
    assert committed_at_death == []
    assert scene.called_ids()[len(called_at_death) :] == [killing.event_id, behind.event_id]
    assert scene.effect_ids()[len(effects_at_death) :] == [killing.event_id, behind.event_id]
    scene.require_children([killing, behind, *beside, *beyond])
