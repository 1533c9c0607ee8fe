"""The command line on real Kafka, each command a process of its own: topics, publish, run, dlq, replay."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import Producer

from choreo.record import TopicPartition
from tests.support.kafka_access import KafkaAccess
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names
from tests.support.process import WorkerProcess
from tests.support.waiting import wait_for

pytestmark = pytest.mark.kafka

SHOP = "tests.kafka.cli_shop:shop"
ROOT = Path(__file__).parents[2]
COMMAND_S = 60.0
READY_S = 60.0


class Said(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Shop:
    """One test's shop: its own topic prefix, and commands that mean it."""

    def __init__(self, kafka: KafkaAccess, prefix: str, folder: Path) -> None:
        self.kafka = kafka
        self.prefix = prefix
        self.folder = folder
        self.mended = folder / "mended"
        self.environment = {
            "CHOREO_BOOTSTRAP": kafka.bootstrap,
            "CHOREO_TOPIC_PREFIX": prefix,
            "CHOREO_START_DEADLINE_S": "20",
            "CLI_SHOP_MENDED": str(self.mended),
            "COLUMNS": "140",
        }

    def choreo(self, *words: str, **environment: str) -> Said:
        """Runs a command without a terminal."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("CHOREO_")}
        ended = subprocess.run(
            [sys.executable, "-m", "choreo", *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": str(ROOT), **self.environment, **environment},
            timeout=COMMAND_S,
            check=False,
        )
        return Said(ended.returncode, ended.stdout, ended.stderr)

    def running(self, *words: str, **environment: str) -> WorkerProcess:
        """The service at work."""
        store = {"CHOREO_EFFECTS": "offsets"}
        return WorkerProcess(
            ("-m", "choreo", "run", SHOP),
            *words,
            log=self.folder / "run.log",
            environment={**self.environment, **store, **environment},
            ready="no event is lost",
        )

    def make_topics(self) -> None:
        assert self.choreo("topics", "apply", SHOP, "--yes", "--partitions", "2").code == 0

    def publish(self, order: str, cents: int) -> str:
        """An order; the id of its event."""
        said = self.choreo("publish", SHOP, "order.placed", json.dumps({"order_id": order, "total_cents": cents}), "--json")
        assert said.code == 0, said.err
        return str(json.loads(said.out)["event_id"])

    def letters(self, *words: str) -> list[str]:
        """The events of its letters."""
        said = self.choreo("dlq", "ls", "shop", "--json", *words)
        assert said.code in (0, 1), said.err
        return [letter["event_id"] for letter in json.loads(said.out)["letters"]]

    def dead_letters(self, count: int) -> list[str]:
        """Publishes orders that die, and runs the service until they have."""
        events = [self.publish(f"o-{number}", 5_000) for number in range(count)]
        with self.running() as worker:
            worker.wait_ready(deadline_s=READY_S)
            wait_for(lambda: worker.output().count("dead-lettered after") == count, "the letters", deadline_s=30)
            worker.sigterm()
            assert worker.wait(30) == 0
        return events


@pytest.fixture
def shop(kafka: KafkaAccess, names: Names, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(kafka, f"{names.prefix}-", tmp_path)
    yield made
    kafka.delete_topics([name for name in kafka.admin.list_topics(timeout=10).topics if name.startswith(made.prefix)])


# ---- topics and publish ---------------------------------------------------------------------------------------------


def test_topics_are_planned_made_and_then_as_declared(shop: Shop) -> None:
    planned, unconfirmed = shop.choreo("topics", "plan", SHOP), shop.choreo("topics", "apply", SHOP)
    assert (planned.code, unconfirmed.code) == (1, 3)
    assert f"make  {shop.prefix}shop.letters" in planned.out
    assert shop.kafka.partitions(f"{shop.prefix}orders") == []

    applied = shop.choreo("topics", "apply", SHOP, "--yes", "--partitions", "3", "--json")

    assert applied.code == 0
    assert len(json.loads(applied.out)["applied"]) == 5
    assert shop.choreo("topics", "plan", SHOP).code == 0
    assert [len(shop.kafka.partitions(shop.prefix + name)) for name in ("orders", "shop.dlq", "shop.replay")] == [3, 3, 1]


def test_topics_that_are_too_narrow_or_wrongly_set_are_mended(shop: Shop) -> None:
    shop.kafka.create_topic(f"{shop.prefix}orders", partitions=1)
    shop.kafka.create_topic(f"{shop.prefix}shop.letters", partitions=2, config={"cleanup.policy": "delete"})

    said = shop.choreo("topics", "apply", SHOP, "--yes", "--partitions", "2")

    assert said.code == 0, said.err
    assert "grow  " in said.out
    assert "set   " in said.out
    assert len(shop.kafka.partitions(f"{shop.prefix}orders")) == 2
    assert shop.choreo("topics", "plan", SHOP, "--partitions", "2").code == 0


def test_an_event_is_published_with_its_key_and_ids(shop: Shop) -> None:
    shop.make_topics()

    event_id = shop.publish("o-1", 500)

    (record,) = shop.kafka.read_all(f"{shop.prefix}orders")
    assert record.key == b"o-1"
    assert dict(record.headers)["choreo-id"] == event_id.encode()


# ---- run ------------------------------------------------------------------------------------------------------------


def test_a_service_runs_until_sigterm_and_commits_what_it_handled(shop: Shop) -> None:
    shop.make_topics()
    shop.publish("o-1", 500)

    with shop.running() as worker:
        worker.wait_ready(deadline_s=READY_S)
        wait_for(lambda: len(shop.kafka.read_all(f"{shop.prefix}payments")) == 1, "the payment", deadline_s=30)
        worker.sigterm()
        assert worker.wait(30) == 0

    said = worker.output()
    assert f"kafka      {shop.kafka.bootstrap}, 1 broker; group {shop.prefix}shop" in said
    assert f"{shop.prefix}orders[2]" in said
    assert "4 partitions. Ctrl-C drains up to 25 s" in said
    committed = shop.kafka.committed(f"{shop.prefix}shop", [f"{shop.prefix}orders"])
    assert sum(offset or 0 for offset in committed.values()) == 1


def test_workers_share_the_partitions(shop: Shop) -> None:
    shop.make_topics()

    with shop.running("--workers", "2") as worker:
        worker.wait_output("2 workers for 4 partitions", deadline_s=READY_S)
        shop.publish("o-1", 500)
        wait_for(lambda: len(shop.kafka.read_all(f"{shop.prefix}payments")) == 1, "the payment", deadline_s=30)
        worker.sigterm()

        assert worker.wait(40) == 0


# ---- dlq and replay -------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_shown_and_reported(shop: Shop) -> None:
    shop.make_topics()
    one, two = shop.dead_letters(2)
    with_garbage = Producer(shop.kafka.config())
    with_garbage.produce(f"{shop.prefix}shop.dlq", b"what is this", headers=[("choreo-dlq-topic", b"\xff")], partition=0)
    with_garbage.flush(10)

    listed, shown, reported = (
        shop.choreo("dlq", "ls", "shop"),
        shop.choreo("dlq", "show", "shop", one),
        shop.choreo("dlq", "report", "shop"),
    )

    assert (listed.code, shown.code, reported.code) == (1, 0, 1)
    assert one in listed.out
    assert two in listed.out
    assert "opaque" in listed.out
    assert "died       PermanentError cli_shop.py:" in shown.out
    assert "does not know the card of o-0" in shown.out
    assert '"total_cents": 5000' in shown.out
    assert "2  charge-card  PermanentError" in reported.out
    assert "when fixed  choreo replay shop --group" in reported.out


def test_a_replay_asks_waits_for_the_service_and_resolves(shop: Shop) -> None:
    shop.make_topics()
    events = shop.dead_letters(2)
    log = TopicPartition(f"{shop.prefix}shop.replay", 0)

    dry, unconfirmed = shop.choreo("replay", "shop", "--all", "--dry-run", "--yes"), shop.choreo("replay", "shop", "--all")

    assert (dry.code, unconfirmed.code) == (0, 3)
    assert shop.kafka.ends(log.topic)[log] == (0, 0)
    waiting = shop.choreo("replay", "shop", "--all", "--yes", "--timeout-s", "1", "--json")
    document = json.loads(waiting.out)
    assert (waiting.code, document["waiting"], document["resolved"]) == (1, 2, 0)
    shop.mended.touch()
    with shop.running() as worker:
        worker.wait_ready(deadline_s=READY_S)
        followed = shop.choreo("replay", "shop", "--follow", document["run"])
        assert followed.code == 0, followed.out
        assert "done: 2 resolved" in followed.out
        again = shop.choreo("replay", "shop", "--id", events[0], "--json")
        assert (again.code, json.loads(again.out)["run"]) == (0, None)
    assert shop.letters() == []
    assert sorted(shop.letters("--state", "resolved")) == sorted(events)


def test_a_replay_that_fails_again_is_exit_1(shop: Shop) -> None:
    shop.make_topics()
    (event,) = shop.dead_letters(1)

    with shop.running() as worker:
        worker.wait_ready(deadline_s=READY_S)
        said = shop.choreo("replay", "shop", "--id", event)

    assert said.code == 1
    assert "1 failed again" in said.out
    assert shop.letters() == [event]


# ---- what goes wrong ------------------------------------------------------------------------------------------------


def test_an_unknown_service_and_an_unreachable_kafka_are_one_line(shop: Shop) -> None:
    shop.make_topics()

    unknown, away = shop.choreo("dlq", "ls", "shpo"), shop.choreo("dlq", "ls", "shop", "--bootstrap", "127.0.0.1:1")

    assert (unknown.code, away.code) == (2, 4)
    assert "did you mean 'shop'?" in unknown.err
    assert "is Kafka up, and is CHOREO_BOOTSTRAP right?" in away.err
    assert (unknown.err.count("\n"), away.err.count("\n")) == (1, 1)


def test_a_wrong_password_is_one_line_that_says_so(kafka_sasl: KafkaCluster, tmp_path: Path) -> None:
    access = kafka_sasl.access()
    shop = Shop(access, "t-", tmp_path)
    properties = "security.protocol=SASL_PLAINTEXT;sasl.mechanism=SCRAM-SHA-256;sasl.username=payments;sasl.password=wrong"

    said = shop.choreo("dlq", "ls", "shop", CHOREO_KAFKA_PROPERTIES=properties)

    assert said.code == 4
    assert "check sasl.username and sasl.password" in said.err
    assert said.err.count("\n") == 1
