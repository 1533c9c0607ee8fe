"""W10: kill -9 while an event waits for its next attempt."""

from __future__ import annotations

import signal
from dataclasses import replace

import pytest

from choreo.core.offset_map import handler_number
from tests.chaos.conduct import HANDLER, Conduct
from tests.chaos.scene import END_S, Scene
from tests.support.facts import Admitted
from tests.support.history import Produced
from tests.support.offset_maps import wait_for_begun
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

ATTEMPTS = 5


def test_attempts_that_were_recorded_before_a_kill_are_not_made_again(scene: Scene) -> None:
    produced = scene.produce(20)
    (shaky,) = scene.produce_keys("shaky")
    worker = scene.worker(conduct=conduct(scene, again_s=60.0))

    for attempt in range(1, ATTEMPTS):
        worker.start()
        wait_for(lambda n=attempt: ended_calls(scene, shaky) == n, f"attempt {attempt} has failed", deadline_s=END_S)  # type: ignore[misc]
        wait_for_attempts(scene, shaky, attempt)
        worker.kill9()
    called = scene.called_ids()
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle([*produced, shaky], worker, commits=commits, admitted=doubles(produced, called))

    report.require()
    assert called.count(shaky.event_id) == ATTEMPTS - 1
    assert scene.called_ids().count(shaky.event_id) == ATTEMPTS
    assert [(state.event_id, state.kind, state.attempts) for state in scene.letter_states()] == [(shaky.event_id, "failed", ATTEMPTS)]


def test_a_kill_before_an_attempt_was_recorded_costs_one_call_more_at_most(scene: Scene) -> None:
    # What stands beside the offset is written once a second: the first attempt is there by then, the second is not.
    produced = scene.produce(20)
    (shaky,) = scene.produce_keys("shaky")
    worker = scene.worker(conduct=conduct(scene, again_s=2.5), failpoint="during_backoff=kill9:2")

    died_of = worker.start().wait(END_S)
    called = scene.called_ids()
    worker = scene.worker("mended", conduct(scene, again_s=0.05))
    with scene.watch_commits() as commits:
        worker.restart()
        report = scene.settle([*produced, shaky], worker, commits=commits, admitted=doubles(produced, called))

    report.require()
    assert (died_of, called.count(shaky.event_id)) == (-signal.SIGKILL, 2)
    assert ATTEMPTS <= scene.called_ids().count(shaky.event_id) <= ATTEMPTS + 1
    assert [(state.event_id, state.kind, state.attempts) for state in scene.letter_states()] == [(shaky.event_id, "failed", ATTEMPTS)]


def conduct(scene: Scene, *, again_s: float) -> Conduct:
    """Without claims: nothing but the offsets and what stands beside them knows of another life."""
    return replace(scene.conduct(), store=None, shaky=("shaky",), again_s=again_s, max_attempts=ATTEMPTS)


def ended_calls(scene: Scene, event: Produced) -> int:
    return sum(call.event_id == event.event_id and call.ended_s is not None for call in scene.ledger.calls())


def wait_for_attempts(scene: Scene, event: Produced, attempts: int) -> None:
    place = event.partition, event.offset
    wait_for_begun(scene.kafka, scene.group, scene.orders, *place, handler_number(HANDLER), attempts, deadline_s=END_S)


def doubles(produced: list[Produced], called: list[str]) -> Admitted:
    """What was handled and perhaps not recorded as finished when the process was killed."""
    return Admitted(doubles=frozenset((HANDLER, event.event_id) for event in produced if event.event_id in called))
