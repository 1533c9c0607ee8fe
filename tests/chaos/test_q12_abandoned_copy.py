"""Q12: kill -9 when the letter is in the dead-letter topic and its state is not; then the event succeeds."""

from __future__ import annotations

import signal
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from confluent_kafka import Producer

from choreo.letter import Place, ReplayOutcome, Request, read_replay, replay_record
from choreo.record import Outgoing
from tests.chaos.conduct import HANDLER
from tests.chaos.scene import END_S, Scene
from tests.support.history import Produced
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_a_letter_without_a_state_is_an_abandoned_copy_and_is_never_replayed(scene: Scene) -> None:
    poison, behind = scene.produce_keys("poison", "poison")
    killed = scene.worker("killed", replace(scene.conduct(), failing=("poison",)), failpoint="after_dlq_ack=kill9")
    died_of = killed.start().wait(END_S)
    committed_at_death = scene.committed_events([poison])
    letters, states = scene.letters_written(), scene.letter_states()

    mended = scene.worker("mended")
    with scene.watch_commits() as commits:
        mended.restart()
        scene.ledger.wait_for(2, deadline_s=END_S)
        ask_for_replay(scene, poison)
        outcome = wait_for(lambda: outcomes(scene), "an outcome", deadline_s=END_S)
        report = scene.settle([poison, behind], mended, commits=commits)

    report.require()
    assert (died_of, committed_at_death) == (-signal.SIGKILL, [])
    assert ([letter.event_id for letter in letters], states) == ([poison.event_id], [])
    assert [(found.event_id, found.result) for found in outcome] == [(poison.event_id, "refused")]
    assert scene.effect_ids() == [poison.event_id, behind.event_id]
    assert scene.letter_states() == []


def ask_for_replay(scene: Scene, event: Produced) -> None:
    """As an operator would who took the copy for a letter."""
    (letter,) = scene.kafka.read_all(scene.dlq)
    request = Request(
        run="run-1",
        handler=HANDLER,
        event_id=event.event_id,
        origin=Place(event.topic, event.partition, event.offset),
        dlq=Place(letter.topic, letter.partition, letter.offset),
        by="a test",
        reason="it looked like a letter",
        forced=False,
        at=datetime.now(UTC),
    )
    write(scene, replay_record(scene.replays, request))


def write(scene: Scene, record: Outgoing) -> None:
    producer = Producer(scene.kafka.config())
    producer.produce(record.topic, record.value, record.key)
    assert producer.flush(END_S) == 0


def outcomes(scene: Scene) -> list[ReplayOutcome]:
    entries = [read_replay(record) for record in scene.kafka.read_all(scene.replays)]
    return [entry for entry in entries if isinstance(entry, ReplayOutcome)]
