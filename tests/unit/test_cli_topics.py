"""``choreo topics``, ``config`` and ``publish`` on a broker in memory."""

from __future__ import annotations

import json

import pytest

from choreo import Envelope
from choreo.testing import MemoryBroker
from tests.unit import cli_desk
from tests.unit.cli_desk import DESK, choreo

OWN = ["desk.dlq", "desk.letters", "desk.replay"]


@pytest.fixture
def empty() -> MemoryBroker:
    return cli_desk.fresh(own_topics=False)


# ---- topics ---------------------------------------------------------------------------------------------------------


def test_a_plan_lists_what_is_missing_and_writes_nothing(empty: MemoryBroker) -> None:
    said = choreo("topics", "plan", DESK)

    assert said.code == 1
    assert "make  orders        6 partitions, replication 1" in said.out
    assert f"go    choreo topics apply {DESK} --yes" in said.out
    assert empty.cluster().topics() == {}


def test_applying_without_yes_is_not_confirmed_where_there_is_no_terminal(empty: MemoryBroker) -> None:
    said = choreo("topics", "apply", DESK)

    assert said.code == 3
    assert "not confirmed, nothing written: 5 changes to the topics of desk" in said.err
    assert empty.cluster().topics() == {}


def test_a_dry_run_never_writes(empty: MemoryBroker) -> None:
    said = choreo("topics", "apply", DESK, "--yes", "--dry-run")

    assert said.code == 1
    assert "nothing written" in said.err
    assert empty.cluster().topics() == {}


def test_applying_with_yes_makes_them_and_a_second_time_there_is_nothing_to_do(empty: MemoryBroker) -> None:
    first, second = choreo("topics", "apply", DESK, "--yes"), choreo("topics", "apply", DESK, "--yes")

    assert (first.code, second.code) == (0, 0)
    assert first.out.count("done  make") == 5
    assert "done" not in second.out
    assert choreo("topics", "plan", DESK).code == 0
    assert sorted(empty.cluster().topics()) == ["desk.dlq", "desk.letters", "desk.replay", "orders", "payments"]


def test_partitions_are_added_when_asked_and_the_order_of_keys_is_told(empty: MemoryBroker) -> None:
    choreo("topics", "apply", DESK, "--yes", "--partitions", "3")

    said = choreo("topics", "apply", DESK, "--yes", "--partitions", "4")

    assert said.code == 0
    assert "done  grow  orders  3 -> 4 partitions" in said.out
    assert "the order of a key does not hold across the change" in choreo("topics", "plan", DESK, "--partitions", "5").out
    assert empty.cluster().topics()["desk.letters"].partitions == 3


def test_json_is_one_document_and_nothing_else(empty: MemoryBroker) -> None:
    planned, applied = choreo("topics", "plan", DESK, "--json"), choreo("topics", "apply", DESK, "--yes", "--json")

    assert [step["action"] for step in json.loads(planned.out)["steps"]] == ["create"] * 5
    assert json.loads(applied.out)["applied"] == ["orders", "payments", *OWN]
    assert choreo("topics", "apply", DESK, "--json").code == 0


# ---- config ---------------------------------------------------------------------------------------------------------


def test_config_prints_each_setting_with_its_origin_and_masks_secrets() -> None:
    environment = {"CHOREO_THREADS": "7", "CHOREO_KAFKA_PROPERTIES": "sasl.username=payments;sasl.password=s3cret"}

    said = choreo("config", DESK, "--bootstrap", "kafka:9092", environment=environment)

    assert said.code == 0
    assert "bootstrap            kafka:9092  flag --bootstrap" in said.out
    assert "threads              7           environment CHOREO_THREADS" in said.out
    assert "drain_s              2.0         code" in said.out
    assert "********" in said.out
    assert "s3cret" not in said.out + said.err


def test_config_as_json() -> None:
    settings = json.loads(choreo("config", DESK, "--json").out)["settings"]

    assert {"name": "drain_s", "value": "2.0", "origin": "code"} in settings


def test_a_misspelt_variable_is_one_line() -> None:
    said = choreo("config", DESK, environment={"CHOREO_BOOTSTRAB": "x"})

    assert said.code == 2
    assert said.err == "error  CHOREO_BOOTSTRAB is no setting of choreo; did you mean 'CHOREO_BOOTSTRAP'?\n"


# ---- publish --------------------------------------------------------------------------------------------------------


def published(broker: MemoryBroker) -> list[Envelope[cli_desk.OrderPlaced]]:
    plan = cli_desk.desk().plan(cli_desk.desk().settings)
    return [plan.codec.decoder(cli_desk.OrderPlaced)(record.value or b"") for record in broker.records("orders")]


def test_an_event_is_published_and_its_ids_printed() -> None:
    broker = cli_desk.fresh()

    said = choreo("publish", DESK, "order.placed", '{"order_id": "o-1", "total_cents": 500}', "--event-id", "e-1", "--json")

    assert said.code == 0
    assert json.loads(said.out) == {"event_id": "e-1", "flow_id": "e-1", "type": "order.placed", "topic": "orders"}
    assert published(broker)[0].payload == cli_desk.OrderPlaced(order_id="o-1", total_cents=500)


def test_a_key_replaces_the_events_own_and_the_payload_may_come_from_stdin() -> None:
    broker = cli_desk.fresh()

    said = choreo("publish", DESK, "order.placed", "-", "--key", "k-9", given='{"order_id": "o-1"}')

    assert said.code == 0
    assert "published  order.placed -> orders" in said.out
    assert [record.key for record in broker.records("orders")] == [b"k-9"]


@pytest.mark.parametrize(
    ("event_type", "payload", "told"),
    [
        ("order.plced", "{}", "desk has no event type 'order.plced'; did you mean 'order.placed'?"),
        ("order.placed", '{"orde', "the payload is not JSON"),
        ("order.placed", "[]", "payload of order.placed: expected object, got array of 0"),
        ("order.placed", "{}", "payload of order.placed: missing required field order_id"),
        ("order.placed", '{"order_id": 1}', "payload of order.placed: order_id: expected str, got int 1"),
        (
            "order.placed",
            '{"order_id": "o-1", "total_cent": 5}',
            "has no field 'total_cent', it would be lost; did you mean 'total_cents'?",
        ),
    ],
)
def test_what_the_services_class_does_not_accept_is_not_published(event_type: str, payload: str, told: str) -> None:
    broker = cli_desk.fresh()

    said = choreo("publish", DESK, event_type, payload)

    assert said.code == 2
    assert told in said.err
    assert said.err.count("\n") == 1
    assert broker.records("orders") == []


def test_a_missing_topic_is_told_before_anything_is_sent() -> None:
    cli_desk.fresh(own_topics=False)

    said = choreo("publish", DESK, "order.placed", '{"order_id": "o-1"}')

    assert said.code == 2
    assert "topics missing" in said.err
