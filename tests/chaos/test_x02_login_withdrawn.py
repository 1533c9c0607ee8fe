"""X2: the login of a running service is not taken any more: its password was changed, its user deleted, its token has expired.

The brokers of these tests ask every connection to log in again from time to time (KIP-368), so that they notice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.conduct import HANDLER, Conduct
from tests.chaos.logins import USER, allow_all, change_password, delete_user, restore_user, scene_of_payments
from tests.chaos.scene import END_S, Scene
from tests.chaos.tokens import CLIENT_SECRET, TOKEN_MARK, Answer, TokenEndpoint, broker_settings
from tests.conftest import _started
from tests.support.history import Produced
from tests.support.kafka_cluster import KafkaCluster
from tests.support.kafka_node import password_of
from tests.support.names import Names
from tests.support.process import WorkerProcess
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]

LOGIN_MS = 2_000
"""So long a connection may go on before it logs in again."""
TOKEN_S = 8
"""librdkafka gets a new token when a fifth of this is left. Kafka allows one login a second, so that fifth must be longer."""
CLIENTS = 3
"""A running service has these at least: a member of its group, a producer, and a reader of its replay log."""
NEW_PASSWORD = "rotated-secret"
ADVICE = "check sasl.username and sasl.password"
TRIED_AGAIN = "; the consumer is closed and built anew in "


@pytest.fixture(scope="module")
def kafka_relogin_of_module() -> Iterator[KafkaCluster]:
    """A broker that asks for logins again; ask for `kafka_relogin`."""
    with _started(KafkaCluster(1, sasl=True, properties={"connections.max.reauth.ms": f"{LOGIN_MS}", **broker_settings()})) as cluster:
        yield cluster


@pytest.fixture
def kafka_relogin(kafka_relogin_of_module: KafkaCluster) -> Iterator[KafkaCluster]:
    """The same; what a test did to its user is undone after it."""
    yield kafka_relogin_of_module
    restore_user(kafka_relogin_of_module)
    for acl in kafka_relogin_of_module.permissions.all():
        kafka_relogin_of_module.permissions.disallow(acl)


@pytest.fixture
def scene(kafka_relogin: KafkaCluster, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    """A service that logs in with a password."""
    with closing(scene_of_payments(kafka_relogin, names, group_protocol, tmp_path)) as made:
        allow_all(kafka_relogin, made)
        yield made


@pytest.fixture
def tokens() -> Iterator[TokenEndpoint]:
    """Who gives the service its tokens."""
    with TokenEndpoint(USER, lifetime_s=TOKEN_S) as endpoint:
        yield endpoint


@pytest.fixture
def scene_of_tokens(
    kafka_relogin: KafkaCluster, tokens: TokenEndpoint, names: Names, group_protocol: str, tmp_path: Path
) -> Iterator[Scene]:
    """A service that logs in with tokens."""
    with closing(scene_of_payments(kafka_relogin, names, group_protocol, tmp_path, login=tokens.security())) as made:
        allow_all(kafka_relogin, made)
        yield made


@pytest.mark.parametrize(("group_protocol", "withdraw"), [("classic", change_password), ("consumer", delete_user)])
def test_a_password_that_is_not_taken_any_more_is_told_at_each_try_and_nothing_is_lost_or_done_twice(
    scene: Scene, kafka_relogin: KafkaCluster, withdraw: Callable[[KafkaCluster], None]
) -> None:
    worker, before = worker_at_rest(scene, replace(scene.conduct(), emits=True))

    with scene.watch_commits() as commits:
        withdraw(kafka_relogin)
        worker.wait_output(TRIED_AGAIN, deadline_s=END_S)
        meanwhile = scene.produce(50, seed=2)
        wait_for(lambda: len(refusals(worker)) >= 2, "a second refusal", deadline_s=END_S)
        restore_user(kafka_relogin)
        report = scene.settle([*before, *meanwhile], worker, commits=commits)

    report.require()
    scene.require_children([*before, *meanwhile])
    require_told(scene, worker, secrets=[password_of(USER)])


# With the consumer protocol librdkafka may wait 45 s for a commit that can't be made, before the partitions are let go of: a
# member's session there, which no property of the client makes shorter.
@pytest.mark.parametrize("group_protocol", ["classic"])
def test_an_effect_that_happens_while_nobody_is_let_in_happens_once_and_is_emitted_once(scene: Scene, kafka_relogin: KafkaCluster) -> None:
    worker, before = worker_at_rest(scene, replace(scene.conduct(), emits=True, on_thread=True, held=("held",)))
    held, behind = scene.produce_keys("held", "held")
    wait_for(lambda: scene.ledger.unfinished() == {(HANDLER, held.event_id)}, "its handler runs", deadline_s=END_S)

    with scene.watch_commits() as commits:
        change_password(kafka_relogin)
        worker.wait_output(TRIED_AGAIN, deadline_s=END_S)
        worker.wait_output("producer: _AUTHENTICATION", deadline_s=END_S)
        # It goes on in its thread though its partition is gone, and what it emits can't be written.
        scene.open_gate()
        scene.ledger.wait_for(len(before) + 1, deadline_s=END_S)
        effects_meanwhile, children_meanwhile = scene.effect_ids()[len(before) :], scene.children()
        restore_user(kafka_relogin)
        report = scene.settle([*before, held, behind], worker, commits=commits)

    report.require()
    assert effects_meanwhile == [held.event_id]
    assert held.event_id not in children_meanwhile
    scene.require_children([*before, held, behind])
    assert worker.lives == 1


@pytest.mark.parametrize("group_protocol", ["consumer"])
def test_a_service_whose_password_was_changed_stops_cleanly_and_goes_on_where_it_was_with_the_new_one(
    scene: Scene, kafka_relogin: KafkaCluster
) -> None:
    conduct = replace(scene.conduct(), emits=True)
    worker, before = worker_at_rest(scene, conduct)

    change_password(kafka_relogin, NEW_PASSWORD)
    worker.wait_output(TRIED_AGAIN, deadline_s=END_S)
    meanwhile = scene.produce(50, seed=2)
    stop = scene.stop_cleanly(worker)
    renewed = scene.worker("renewed", conduct, properties=kafka_relogin.security(USER, NEW_PASSWORD))
    with scene.watch_commits() as commits:
        renewed.restart()
        report = scene.settle([*before, *meanwhile], renewed, commits=commits, earlier_stops=stop)

    report.require()
    assert sorted(scene.called_ids()) == sorted(event.event_id for event in [*before, *meanwhile])
    scene.require_children([*before, *meanwhile])


@pytest.mark.parametrize(("group_protocol", "answer"), [("classic", "expired"), ("consumer", "refused")])
def test_a_token_that_is_not_renewed_is_told_at_each_try_and_nothing_is_lost_or_done_twice(
    scene_of_tokens: Scene, tokens: TokenEndpoint, answer: Answer
) -> None:
    scene = scene_of_tokens
    worker, before = worker_at_rest(scene, replace(scene.conduct(), emits=True))
    asked_at_first = tokens.asked
    wait_for(lambda: tokens.asked >= asked_at_first + CLIENTS, "its tokens are renewed", deadline_s=2 * TOKEN_S)
    refused_before = refusals(worker)

    with scene.watch_commits() as commits:
        tokens.answer = answer
        wait_for(lambda: len(refusals(worker)) >= 2, "a second refusal", deadline_s=END_S)
        meanwhile = scene.produce(50, seed=2)
        tokens.answer = "valid"
        report = scene.settle([*before, *meanwhile], worker, commits=commits)

    report.require()
    assert refused_before == []
    assert all("Failed to acquire SASL OAUTHBEARER token" in line for line in refusals(worker)[:2])
    scene.require_children([*before, *meanwhile])
    require_told(scene, worker, secrets=[CLIENT_SECRET, TOKEN_MARK])


def worker_at_rest(scene: Scene, conduct: Conduct) -> tuple[WorkerProcess, list[Produced]]:
    """One that has handled some events, and committed them."""
    worker = scene.worker(conduct=conduct).restart()
    handled = scene.produce(50)
    scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=END_S)
    return worker, handled


def refusals(worker: WorkerProcess) -> list[str]:
    """What the worker says each time it is not let into its group."""
    return [line for line in worker.output().splitlines() if TRIED_AGAIN in line]


def require_told(scene: Scene, worker: WorkerProcess, *, secrets: list[str]) -> None:
    """It was one process, which said in one line of each try who is not let in and what to look at, and waited ever longer."""
    said = refusals(worker)
    assert worker.lives == 1
    assert len(said) >= 2
    waits = [line.rpartition(TRIED_AGAIN)[2] for line in said]
    assert waits == [f"{2**number} s" for number in range(len(said))], "it waits longer after each refusal"
    for line in said:
        assert line.split(maxsplit=3)[1:3] == ["ERROR", "choreo.intake"], line
        assert f"group {scene.group}: _AUTHENTICATION: " in line, line
        assert ADVICE in line, line
    assert not [secret for secret in secrets if secret in worker.output()]
