"""X2: what does a service say that Kafka does not let in?"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from choreo import BrokerError, ConfigurationError, KafkaSettings, MemoryStore
from choreo.errors import ChoreoError
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, Paid, Pay, fails, nothing, placed
from tests.support.kafka_access import KafkaAccess
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names

pytestmark = pytest.mark.kafka

DEADLINE_S = 20.0
SOON_S = 8.0
UNREACHABLE, USAGE = 4, 2
USER = "payments"
REFUSED_WRITE = "AUTHORIZATION_FAILED"


@pytest.fixture
def locked(kafka_sasl: KafkaCluster, names: Names) -> Iterator[Ground]:
    """The topics of the service on a Kafka with logins, made by its admin; `payments` may do nothing yet."""
    ground = Ground(kafka_sasl.access(), names)
    ground.make(orders=1, paid=1)
    yield ground
    ground.delete()


def as_payments(cluster: KafkaCluster, password: str | None = None, protocol: str = "auto") -> KafkaSettings:
    properties = cluster.security(USER, password)
    return KafkaSettings(bootstrap=cluster.bootstrap, properties=properties, group_protocol=protocol)  # type: ignore[arg-type]


def allow(cluster: KafkaCluster, ground: Ground, *rights: str) -> None:
    """Rights such as ``READ topic``: on all topics and groups of this test."""
    for right in rights:
        operation, _, resource = right.partition(" ")
        cluster.permissions.allow(USER, operation, prefixed=True, **{resource: ground.prefix})


async def refusal(ground: Ground, settings: KafkaSettings) -> ChoreoError:
    """What the service says that does not get in, at its start or when it joins."""
    with pytest.raises(ChoreoError) as refused:
        async with ground.service(Book(), kafka=settings, start_deadline_s=DEADLINE_S).worker() as worker:
            await becomes(worker.failure.done, "the worker stops", deadline_s=DEADLINE_S)
            worker.failure.result()
    return refused.value


async def test_a_wrong_password_is_an_error_long_before_the_deadline(kafka_sasl: KafkaCluster, locked: Ground) -> None:
    began_s = time.monotonic()
    error = await refusal(locked, as_payments(kafka_sasl, "wrong"))
    took_s = time.monotonic() - began_s

    assert isinstance(error, BrokerError)
    assert (error.code, error.retriable) == ("_AUTHENTICATION", False)
    assert str(error).startswith(f"Kafka at {kafka_sasl.bootstrap}: _AUTHENTICATION: ")
    assert str(error).endswith("; check sasl.username and sasl.password")
    assert "wrong" not in str(error)
    assert took_s < SOON_S


async def test_a_user_who_may_see_nothing_reads_which_topics_and_that_they_may_be_invisible(
    kafka_sasl: KafkaCluster, locked: Ground
) -> None:
    error = await refusal(locked, as_payments(kafka_sasl))

    assert isinstance(error, ConfigurationError)
    assert f"topics missing, or not visible to this user: {locked.dlq} (choreo's own)" in str(error)


async def test_a_user_who_may_not_read_is_told_the_topic_and_the_right(kafka_sasl: KafkaCluster, locked: Ground) -> None:
    allow(kafka_sasl, locked, "DESCRIBE topic", "READ group")

    error = await refusal(locked, as_payments(kafka_sasl))

    assert isinstance(error, BrokerError)
    assert error.code == "TOPIC_AUTHORIZATION_FAILED"
    assert str(error).startswith(f"group {locked.group}: {locked.topic('orders')}: TOPIC_AUTHORIZATION_FAILED: ")
    assert str(error).endswith("the user needs READ, WRITE or DESCRIBE on it")


async def test_a_user_who_may_not_join_the_group_is_told_the_group_and_the_right(
    kafka_sasl: KafkaCluster, locked: Ground, group_protocol: str
) -> None:
    allow(kafka_sasl, locked, "READ topic", "WRITE topic")

    error = await refusal(locked, as_payments(kafka_sasl, protocol=group_protocol))

    assert isinstance(error, BrokerError)
    assert error.code == "GROUP_AUTHORIZATION_FAILED"
    assert str(error).startswith(f"group {locked.group}: GROUP_AUTHORIZATION_FAILED: ")
    assert str(error).endswith("the user needs READ on the consumer group")


async def test_a_user_who_may_not_use_transactions_is_told_the_right(kafka_sasl: KafkaCluster, locked: Ground) -> None:
    allow(kafka_sasl, locked, "READ topic", "WRITE topic", "READ group")

    began_s = time.monotonic()
    with pytest.raises(BrokerError) as refused:
        async with locked.service(Book(), kafka=as_payments(kafka_sasl), effects="kafka", start_deadline_s=DEADLINE_S).worker():
            pass

    assert refused.value.code == "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"
    assert str(refused.value).startswith(f"transactional.id {locked.group}-one: beginning: TRANSACTIONAL_ID_AUTHORIZATION_FAILED: ")
    assert str(refused.value).endswith("the user needs WRITE and DESCRIBE on the transactional id")
    assert time.monotonic() - began_s < SOON_S


async def test_a_user_with_the_rights_it_needs_and_no_others_makes_transactions(kafka_sasl: KafkaCluster, locked: Ground) -> None:
    allow(kafka_sasl, locked, "READ topic", "WRITE topic", "READ group", "WRITE transactional_id", "DESCRIBE transactional_id")
    locked.put("orders", Sent(placed()), Sent(b"?"))
    pay = Pay(lambda placed, context: Paid(order_id=placed.order_id))

    worker = await locked.run(locked.service(pay, kafka=as_payments(kafka_sasl), effects="kafka"))

    assert (len(locked.records("paid")), len(locked.dead()), worker.counters.dead_lettered) == (1, 1, 1)


async def test_a_user_with_the_rights_it_needs_and_no_others_is_served(kafka_sasl: KafkaCluster, locked: Ground) -> None:
    allow(kafka_sasl, locked, "READ topic", "WRITE topic", "READ group")
    locked.put("orders", Sent(placed()), Sent(b"?"))
    book = Book()

    worker = await locked.run(locked.service(book, kafka=as_payments(kafka_sasl)))

    assert (worker.counters.handled, worker.counters.dead_lettered) == (1, 1)


@pytest.mark.parametrize("writable", [["paid"], []], ids=["may write elsewhere", "may write nowhere"])
async def test_a_right_to_write_letters_that_is_missing_holds_the_key_and_says_so_until_it_is_given(
    kafka_sasl: KafkaCluster, locked: Ground, caplog: pytest.LogCaptureFixture, writable: list[str]
) -> None:
    allow(kafka_sasl, locked, "READ topic", "READ group")
    for topic in writable:
        kafka_sasl.permissions.allow(USER, "WRITE", topic=locked.topic(topic))
    locked.put("orders", Sent(placed("dies")), Sent(placed("behind")), Sent(placed("beside"), b"other"))
    book = Book(lambda placed, context: fails(placed, context) if placed.order_id == "dies" else nothing(placed, context))

    async with locked.service(book, kafka=as_payments(kafka_sasl)).worker() as worker:
        # The mark that the partition has been read is written to the letters' topic, and may be refused first.
        of_the_dlq = f"writing to {locked.dlq if writable else ''}"
        said = await becomes(
            lambda: next((m for m in caplog.messages if REFUSED_WRITE in m and m.startswith(of_the_dlq)), None), "it says so", worker=worker
        )
        await becomes(lambda: "beside" in book.orders, "the other key goes on", worker=worker)
        held = "behind" not in book.orders
        allow(kafka_sasl, locked, "WRITE topic")
        await locked.caught_up(worker)

    assert held
    assert said is not None
    assert [letter.value for letter in locked.dead()] == [placed("dies")]


async def test_a_group_right_that_is_taken_away_at_run_time_is_waited_out(
    kafka_sasl: KafkaCluster, locked: Ground, caplog: pytest.LogCaptureFixture, group_protocol: str
) -> None:
    allow(kafka_sasl, locked, "READ topic", "WRITE topic")
    group_right = kafka_sasl.permissions.allow(USER, "READ", group=locked.prefix, prefixed=True)
    book = Book()
    settings = as_payments(kafka_sasl, protocol=group_protocol)

    async with locked.service(book, store=MemoryStore(), kafka=settings).worker() as worker:
        locked.put("orders", Sent(placed("before")))
        await locked.caught_up(worker)
        kafka_sasl.permissions.disallow(group_right)
        locked.put("orders", Sent(placed("meanwhile")))
        await becomes(lambda: any("GROUP_AUTHORIZATION_FAILED" in m for m in caplog.messages), "it says so", worker=worker)
        allow(kafka_sasl, locked, "READ group")
        locked.put("orders", Sent(placed("after")))
        await locked.caught_up(worker)

    assert book.orders == ["before", "meanwhile", "after"]


def test_the_command_line_says_a_wrong_password_in_one_line_and_exits(kafka_sasl: KafkaCluster, locked: Ground, tmp_path: Path) -> None:
    stranger = KafkaAccess(kafka_sasl.bootstrap, "jars", kafka_sasl.security(USER, "wrong-password"))
    locked.kafka, admin = stranger, locked.kafka
    with locked.process("tests.kafka.shop:payments", tmp_path / "worker.log") as worker:
        code = worker.wait(DEADLINE_S)
    locked.kafka = admin

    errors = [line for line in worker.output().splitlines() if line.startswith("error")]
    assert (code, len(errors)) == (UNREACHABLE, 1)
    assert errors[0].endswith("; check sasl.username and sasl.password")
    assert "wrong-password" not in worker.output()


async def test_an_emit_that_is_not_allowed_is_waited_out(kafka_sasl: KafkaCluster, locked: Ground) -> None:
    allow(kafka_sasl, locked, "READ topic", "READ group")
    for topic in (locked.dlq, locked.letters, locked.replays):
        kafka_sasl.permissions.allow(USER, "WRITE", topic=topic)
    locked.put("orders", Sent(placed()))
    pay = Pay(lambda placed, context: Paid(order_id=placed.order_id))

    async with locked.service(pay, kafka=as_payments(kafka_sasl)).worker() as worker:
        await becomes(lambda: worker.counters.broker_errors, "the refusal is counted", worker=worker)
        kafka_sasl.permissions.allow(USER, "WRITE", topic=locked.topic("paid"))
        await locked.caught_up(worker)

    assert (len(pay.seen), len(locked.records("paid")), worker.counters.dead_lettered) == (1, 1, 0)
