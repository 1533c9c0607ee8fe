"""How long must claims be kept, and what is said where they are not?"""

from __future__ import annotations

import math

import pytest

from choreo.broker import TopicInfo
from choreo.runtime.claim_retention import kept_s, needed_s, too_short

DAY_S = 86_400.0


def topic(name: str, days: float | None = None) -> TopicInfo:
    """Kept for so many days; None: nobody may know."""
    return TopicInfo(name, 6, 3, {}, None if days is None else round(days * DAY_S * 1000))


def kept_for_ever(name: str) -> TopicInfo:
    return TopicInfo(name, 6, 3, {}, -1)


ORDERS, PAYMENTS = topic("orders", 7), topic("payments", 3)
OWN = [topic("payments.dlq", 14), topic("payments.replay", 90)]


@pytest.mark.parametrize(
    ("asked", "expected_s"),
    [
        (topic("a", 3), 3 * DAY_S),
        (TopicInfo("a", 1, 1, {}, 1), 0.001),
        (kept_for_ever("a"), math.inf),
        (topic("a"), math.inf),
    ],
)
def test_a_topic_keeps_its_records_as_it_is_set(asked: TopicInfo, expected_s: float) -> None:
    assert kept_s(asked) == expected_s


def test_an_event_comes_again_from_its_topic_then_as_a_letter_then_by_a_replay() -> None:
    assert needed_s([ORDERS, PAYMENTS], OWN) == (7 + 14 + 90) * DAY_S
    assert needed_s([], OWN) == 104 * DAY_S
    assert needed_s([ORDERS], []) == 7 * DAY_S
    assert needed_s([ORDERS, kept_for_ever("prices")], OWN) == math.inf


@pytest.mark.parametrize(("days", "fine"), [(110.9, False), (111, False), (111.1, True), (math.inf, True)])
def test_claims_must_be_kept_longer_than_that(days: float, fine: bool) -> None:
    assert (too_short(days * DAY_S, [ORDERS, PAYMENTS], OWN) is None) == fine


def test_what_is_too_short_is_told_in_a_sentence_that_says_what_to_do() -> None:
    assert too_short(30 * DAY_S, [PAYMENTS, ORDERS], OWN) == (
        "claims are kept 30 d, but an event can come again for 111 d (orders 7 d + payments.dlq 14 d + payments.replay 90 d), and would then be"
        " handled twice; keep claims longer than 111 d, or let Kafka keep these topics for a shorter time"
    )


def test_events_that_stay_for_ever_ask_for_claims_that_do() -> None:
    told = too_short(3_650 * DAY_S, [ORDERS, kept_for_ever("prices")], OWN)

    assert told is not None
    assert "claims are kept 3,650 d, but an event can come again for ever (prices for ever + payments.dlq 14 d" in told
    assert "keep claims for ever, or let Kafka" in told
    assert too_short(math.inf, [kept_for_ever("prices")], OWN) is None
