"""Invariant 8: where a partition without a committed offset begins."""

from __future__ import annotations

import pytest

from choreo.core.start import Begin, OffsetsLost, decide_start
from choreo.record import TopicPartition

ORDERS = [TopicPartition("orders", number) for number in range(8)]
PAYMENTS = TopicPartition("payments", 0)


def test_a_group_that_never_ran_begins_where_its_start_policy_says() -> None:
    assert decide_start(ORDERS[3], {}, accept_lost_offsets=False) == Begin("policy")


def test_a_topic_that_is_new_to_the_group_begins_where_the_start_policy_says() -> None:
    assert decide_start(PAYMENTS, {ORDERS[0]: 4, ORDERS[1]: 4}, accept_lost_offsets=False) == Begin("policy")


@pytest.mark.parametrize("number", [4, 7])
def test_a_partition_by_which_the_topic_grew_begins_at_its_beginning(number: int) -> None:
    seen = {ORDERS[0]: 4, ORDERS[3]: 4}

    assert decide_start(ORDERS[number], seen, accept_lost_offsets=False) == Begin("beginning")


def test_a_topic_that_grew_twice_is_measured_by_what_it_had_first() -> None:
    seen = {ORDERS[0]: 2, ORDERS[2]: 4, ORDERS[3]: 4}

    found = [decide_start(partition, seen, accept_lost_offsets=False) for partition in (ORDERS[1], ORDERS[5])]

    assert found == [Begin("policy"), Begin("beginning")]


def test_a_partition_that_was_there_at_first_and_never_read_begins_where_the_start_policy_says() -> None:
    assert decide_start(ORDERS[2], {ORDERS[0]: 4}, accept_lost_offsets=False) == Begin("policy")


def test_a_partition_that_was_read_before_and_has_no_offset_any_more_is_lost() -> None:
    assert decide_start(ORDERS[2], {ORDERS[2]: 4}, accept_lost_offsets=False) == OffsetsLost(ORDERS[2])


def test_lost_offsets_that_are_accepted_begin_where_the_start_policy_says() -> None:
    assert decide_start(ORDERS[2], {ORDERS[2]: 4}, accept_lost_offsets=True) == Begin("policy")


def test_accepting_lost_offsets_does_not_skip_what_a_topic_grew_by() -> None:
    assert decide_start(ORDERS[6], {ORDERS[2]: 4}, accept_lost_offsets=True) == Begin("beginning")


def test_other_topics_say_nothing_about_growth() -> None:
    assert decide_start(ORDERS[6], {PAYMENTS: 1}, accept_lost_offsets=False) == Begin("policy")
