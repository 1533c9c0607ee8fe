"""What a service's topics should be, what is to be done about them, and that nothing is ever taken away."""

from __future__ import annotations

import pytest

from choreo.broker import TopicInfo
from choreo.errors import BrokerError
from choreo.operations.topics import (
    LETTERS_CONFIG,
    Configure,
    Create,
    Declared,
    Differs,
    Fine,
    Grow,
    Needs,
    Step,
    Wishes,
    apply_topics,
    declare,
    dlq_config,
    plan_topics,
    to_do,
)
from choreo.testing import MemoryBroker

NEEDS = Needs(consumed=["orders"], emitted=["payments"], dlq="shop.dlq", letters="shop.letters", replay="shop.replay", names=str)
DAY_MS = 86_400_000


def declared(actual: dict[str, TopicInfo] | None = None, *, brokers: int = 3, **wishes: int) -> dict[str, Declared]:
    found = declare(NEEDS, Wishes(**wishes), actual or {}, brokers)
    return {topic.name: topic for topic in found}


def fine(topic: Declared, **changes: object) -> TopicInfo:
    """The topic as it was declared, but for `changes`."""
    info = {"partitions": topic.partitions, "replication": topic.replication, "config": topic.config, **changes}
    return TopicInfo(topic.name, **info)  # type: ignore[arg-type]


# ---- what is declared -----------------------------------------------------------------------------------------------


def test_topics_of_events_get_six_partitions_and_three_replicas() -> None:
    orders = declared()["orders"]

    assert (orders.partitions, orders.replication, orders.config) == (6, 3, {"min.insync.replicas": "2"})


@pytest.mark.parametrize(("brokers", "replication"), [(1, 1), (2, 2), (5, 3)])
def test_there_are_no_more_replicas_than_brokers(brokers: int, replication: int) -> None:
    assert {topic.replication for topic in declared(brokers=brokers).values()} == {replication}


def test_choreos_own_topics_are_as_wide_as_the_widest_consumed_one() -> None:
    actual = {"orders": TopicInfo("orders", 12, 3), "payments": TopicInfo("payments", 48, 3)}

    topics = declared(actual)

    assert [topics[name].partitions for name in ("shop.dlq", "shop.letters", "shop.replay")] == [12, 12, 1]


def test_the_dlq_has_room_for_the_largest_event_with_the_headers_of_a_letter() -> None:
    actual = {"orders": TopicInfo("orders", 6, 3, {"max.message.bytes": "10000000"})}

    assert declared()["shop.dlq"].config["max.message.bytes"] == str(2 * 1_048_576)
    assert declared(actual)["shop.dlq"].config["max.message.bytes"] == "11000000"


def test_letters_are_compacted_but_not_within_a_week_and_letters_and_runs_are_kept() -> None:
    topics = declared()

    assert topics["shop.letters"].config["cleanup.policy"] == "compact"
    assert topics["shop.letters"].config["min.compaction.lag.ms"] == str(7 * DAY_MS)
    assert topics["shop.dlq"].config["retention.ms"] == str(14 * DAY_MS)
    assert topics["shop.replay"].config["retention.ms"] == str(90 * DAY_MS)


def test_names_are_the_brokers() -> None:
    needs = Needs(
        consumed=["orders"],
        emitted=["orders"],
        dlq="shop.dlq",
        letters="shop.letters",
        replay="shop.replay",
        names=lambda name: f"t1-{name}",
    )

    topics = declare(needs, Wishes(), {}, 1)

    assert [topic.name for topic in topics] == ["t1-orders", "t1-shop.dlq", "t1-shop.letters", "t1-shop.replay"]


def test_a_service_that_only_publishes_has_no_topics_of_choreos_own() -> None:
    needs = Needs(consumed=[], emitted=["orders"], dlq=None, letters=None, replay=None, names=str)

    assert [topic.name for topic in declare(needs, Wishes(), {}, 1)] == ["orders"]


# ---- the plan -------------------------------------------------------------------------------------------------------


def plan(actual: dict[str, TopicInfo], *, letters: dict[str, int] | None = None, brokers: int = 3, **wishes: int) -> dict[str, Step]:
    topics = declared(actual, brokers=brokers, **wishes)
    present = {name: fine(topic) for name, topic in topics.items()} | actual
    steps = plan_topics(list(topics.values()), present, letters or {})
    return {step.topic.name: step for step in steps}


def test_what_is_missing_is_made() -> None:
    steps = plan_topics(list(declared().values()), {}, {})

    assert [type(step) for step in steps] == [Create] * 5


def test_topics_as_declared_need_nothing() -> None:
    assert {type(step) for step in plan({}).values()} == {Fine}


def test_partitions_are_added_only_when_somebody_asks() -> None:
    narrow = {"orders": TopicInfo("orders", 3, 3)}

    assert isinstance(plan(narrow)["orders"], Fine)
    assert plan(narrow, partitions=6)["orders"] == Grow(declared(narrow, partitions=6)["orders"], 3)


def test_partitions_are_not_added_while_letters_of_the_topic_are_open() -> None:
    step = plan({"orders": TopicInfo("orders", 3, 3)}, partitions=6, letters={"orders": 46})["orders"]

    assert isinstance(step, Differs)
    assert "46 letters of it are open" in step.what


def test_partitions_are_never_taken_away() -> None:
    step = plan({"orders": TopicInfo("orders", 12, 3)}, partitions=6)["orders"]

    assert isinstance(step, Fine)
    assert "never taken away" in step.note


def test_the_topic_of_letters_never_gets_more_partitions() -> None:
    steps = plan({"orders": TopicInfo("orders", 12, 3), "shop.letters": TopicInfo("shop.letters", 6, 3, LETTERS_CONFIG)}, partitions=24)

    assert isinstance(steps["shop.letters"], Fine)


def test_too_few_replicas_are_told_and_left_alone() -> None:
    step = plan({"orders": TopicInfo("orders", 6, 1)})["orders"]

    assert isinstance(step, Differs)
    assert step.what == "replication 1, should be 3"


def test_letters_that_are_not_compacted_are_set_right() -> None:
    step = plan({"shop.letters": TopicInfo("shop.letters", 6, 3, {"retention.ms": "1000"})})["shop.letters"]

    assert isinstance(step, Configure)
    assert step.changes == dict(LETTERS_CONFIG)
    assert step.was["cleanup.policy"] is None


def test_a_limit_that_is_higher_than_declared_stays() -> None:
    generous = {**dlq_config(0), "retention.ms": str(365 * DAY_MS), "max.message.bytes": "50000000"}
    forever = {**dlq_config(0), "retention.ms": "-1"}

    for config in (generous, forever):
        assert isinstance(plan({"shop.dlq": TopicInfo("shop.dlq", 6, 3, config)})["shop.dlq"], Fine)


def test_a_retention_that_is_too_short_is_raised() -> None:
    short = {**dlq_config(0), "retention.ms": str(DAY_MS)}

    step = plan({"shop.dlq": TopicInfo("shop.dlq", 6, 3, short)})["shop.dlq"]

    assert isinstance(step, Configure)
    assert step.changes == {"retention.ms": str(14 * DAY_MS)}
    assert step.was == {"retention.ms": str(DAY_MS)}


def test_settings_of_topics_of_events_are_their_owners() -> None:
    own = {"cleanup.policy": "compact", "retention.ms": "1000"}

    assert isinstance(plan({"orders": TopicInfo("orders", 6, 3, own)})["orders"], Fine)


# ---- carrying it out ------------------------------------------------------------------------------------------------


def test_applying_a_plan_leaves_nothing_to_do() -> None:
    broker = MemoryBroker()
    broker.create_topic("orders", partitions=3)
    broker.create_topic("shop.letters", partitions=6)
    cluster = broker.cluster()
    done: list[Step] = []

    apply_topics(cluster, plan_topics(declare(NEEDS, Wishes(partitions=6), cluster.topics(), 1), cluster.topics(), {}), done.append)

    left = plan_topics(declare(NEEDS, Wishes(partitions=6), cluster.topics(), 1), cluster.topics(), {})
    assert {type(step) for step in done} == {Grow, Create, Configure}
    assert to_do(left) == []


def test_what_was_done_before_a_failure_was_told() -> None:
    broker = MemoryBroker()
    cluster = broker.cluster()
    steps = plan_topics(declare(NEEDS, Wishes(), {}, 1), {}, {})
    broker.create_topic("shop.dlq")
    done: list[Step] = []

    with pytest.raises(BrokerError, match="there is such a topic already"):
        apply_topics(cluster, steps, done.append)

    assert [step.topic.name for step in done] == ["orders", "payments"]
