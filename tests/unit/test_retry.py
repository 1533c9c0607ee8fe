"""Retries: attempts counted with the first, full jitter, never infinite."""

import math
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from choreo.core.retry import MAX_RETRY_AFTER_S, GiveUp, RetryAfter, RetryPolicy, http_client_error
from choreo.errors import ConfigurationError, DecodeError, HandlerTimeoutError, PermanentError, TransientError, UndeclaredEmitError

policies = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 20),
    base_delay_s=st.floats(0, 1e6),
    multiplier=st.floats(1, 1e300),
    max_delay_s=st.floats(0, 1e6),
)
dice = st.floats(0, 1, exclude_max=True)


def decisions(policy: RetryPolicy, error: Exception, roll: float = 0.5) -> list[RetryAfter | GiveUp]:
    """What the policy decides while every attempt fails with `error`, until it gives up."""
    found: list[RetryAfter | GiveUp] = []
    while not found or isinstance(found[-1], RetryAfter):
        found.append(policy.decide(error, attempt=len(found) + 1, dice=roll))
    return found


def test_three_attempts_are_one_call_and_two_retries() -> None:
    policy = RetryPolicy(max_attempts=3)

    actual = decisions(policy, ValueError("x"))

    assert actual == [RetryAfter(delay_s=0.5), RetryAfter(delay_s=2.0), GiveUp(permanent=False)]


def test_one_attempt_means_no_retry() -> None:
    policy = RetryPolicy(max_attempts=1)

    actual = decisions(policy, ValueError("x"))

    assert actual == [GiveUp(permanent=False)]


def test_the_defaults_wait_two_and_a_half_seconds_at_the_median_and_five_at_worst() -> None:
    policy = RetryPolicy()

    actual = (sum(each.delay_s for each in decisions(policy, ValueError("x")) if isinstance(each, RetryAfter)), policy.worst_s())

    assert actual == (2.5, 5.0)


def test_no_wait_is_longer_than_the_longest() -> None:
    policy = RetryPolicy(max_attempts=6, base_delay_s=1, multiplier=10, max_delay_s=30)

    actual = [policy.ceiling_s(attempt) for attempt in range(1, 6)]

    assert actual == [1, 10, 30, 30, 30]


def test_a_base_above_the_longest_wait_is_cut_to_it() -> None:
    policy = RetryPolicy(base_delay_s=60, max_delay_s=30)

    actual = policy.ceiling_s(1)

    assert actual == 30


@given(policy=policies, roll=dice)
@settings(deadline=None)
def test_every_delivery_ends_after_its_attempts(policy: RetryPolicy, roll: float) -> None:
    actual = decisions(policy, ValueError("x"), roll)

    assert (len(actual), actual[-1]) == (policy.max_attempts, GiveUp(permanent=False))


@given(policy=policies, roll=dice, attempt=st.integers(1, 19))
@settings(deadline=None)
def test_the_wait_is_full_jitter_between_nothing_and_the_ceiling(policy: RetryPolicy, roll: float, attempt: int) -> None:
    decision = policy.decide(ValueError("x"), attempt=attempt, dice=roll)

    actual = decision.delay_s if isinstance(decision, RetryAfter) else 0.0

    assert 0 <= actual <= policy.ceiling_s(attempt) <= policy.max_delay_s


@given(policy=policies, attempt=st.integers(1, 19))
@settings(deadline=None)
def test_the_lowest_throw_waits_not_at_all_and_the_highest_nearly_the_ceiling(policy: RetryPolicy, attempt: int) -> None:
    throws = (0.0, math.nextafter(1, 0))

    decided = [policy.decide(ValueError("x"), attempt=attempt, dice=throw) for throw in throws]

    actual = [decision.delay_s for decision in decided if isinstance(decision, RetryAfter)]
    assert actual == (pytest.approx([0.0, policy.ceiling_s(attempt)]) if attempt < policy.max_attempts else [])


@given(policy=policies)
@settings(deadline=None)
def test_waits_never_shrink_and_all_of_them_together_are_finite(policy: RetryPolicy) -> None:
    ceilings = [policy.ceiling_s(attempt) for attempt in range(1, policy.max_attempts)]

    assert ceilings == sorted(ceilings)
    assert policy.worst_s() == sum(ceilings) < math.inf


@given(after=st.floats(allow_nan=True, allow_infinity=True), roll=dice)
@settings(deadline=None)
def test_a_transient_errors_own_wait_is_kept_within_reason(after: float, roll: float) -> None:
    decision = RetryPolicy().decide(TransientError("busy", retry_after_s=after), attempt=1, dice=roll)

    actual = decision.delay_s if isinstance(decision, RetryAfter) else None

    assert actual == (0.0 if math.isnan(after) else min(max(after, 0.0), MAX_RETRY_AFTER_S))


def test_a_transient_error_says_how_long_to_wait() -> None:
    actual = decisions(RetryPolicy(max_attempts=2), TransientError("busy", retry_after_s=12.0))

    assert actual == [RetryAfter(delay_s=12.0), GiveUp(permanent=False)]


def test_a_transient_error_without_a_wait_takes_the_policys() -> None:
    actual = decisions(RetryPolicy(max_attempts=2), TransientError("busy"))

    assert actual == [RetryAfter(delay_s=0.5), GiveUp(permanent=False)]


def test_a_timeout_is_transient() -> None:
    actual = RetryPolicy(permanent=(Exception,)).decide(HandlerTimeoutError("60 s"), attempt=1, dice=0.0)

    assert actual == RetryAfter(delay_s=0.0)


def test_attempts_beyond_the_last_give_up_too() -> None:
    actual = RetryPolicy(max_attempts=3).decide(ValueError("x"), attempt=5, dice=0.5)

    assert actual == GiveUp(permanent=False)


# ---- permanent ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [PermanentError("no"), UndeclaredEmitError("no"), DecodeError("value", "not JSON")])
def test_our_permanent_errors_are_never_retried(error: Exception) -> None:
    actual = RetryPolicy().decide(error, attempt=1, dice=0.5)

    assert actual == GiveUp(permanent=True)


def test_types_and_their_subclasses_can_be_permanent() -> None:
    policy = RetryPolicy(permanent=(LookupError,))

    actual = [policy.is_permanent(error) for error in (LookupError("x"), KeyError("x"), ValueError("x"))]

    assert actual == [True, True, False]


def test_a_predicate_can_be_permanent() -> None:
    policy = RetryPolicy(permanent=(lambda error: "unknown" in str(error),))

    actual = [policy.is_permanent(error) for error in (ValueError("card unknown"), ValueError("busy"))]

    assert actual == [True, False]


def test_a_transient_error_is_transient_whatever_the_rules_say() -> None:
    policy = RetryPolicy(permanent=(Exception, lambda _: True))

    actual = policy.is_permanent(TransientError("busy"))

    assert actual is False


def test_a_predicate_that_fails_says_nothing_and_leaves_a_note() -> None:
    def broken(error: Exception) -> bool:
        return bool(error.args[7])

    error = ValueError("x")

    actual = RetryPolicy(permanent=(broken,)).decide(error, attempt=1, dice=0.5)

    assert (actual, error.__notes__) == (
        RetryAfter(delay_s=0.5),
        ["choreo: the predicate 'broken' in permanent= failed: IndexError('tuple index out of range')"],
    )


def test_permanent_is_said_before_the_attempts_are_used_up() -> None:
    actual = RetryPolicy(max_attempts=1, permanent=(ValueError,)).decide(ValueError("x"), attempt=1, dice=0.5)

    assert actual == GiveUp(permanent=True)


# ---- settings that are refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_attempts", [0, -1, 21, 10**9, 2.5, True, math.inf, "3", None])
def test_attempts_are_one_to_twenty(max_attempts: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RetryPolicy(max_attempts=max_attempts)

    assert str(refused.value) == (f"RetryPolicy: max_attempts={max_attempts!r}; use 1 (no retry) to 20, retries are never infinite")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_delay_s", -0.1),
        ("base_delay_s", math.inf),
        ("base_delay_s", math.nan),
        ("base_delay_s", "1"),
        ("multiplier", 0.9),
        ("multiplier", math.inf),
        ("multiplier", math.nan),
        ("max_delay_s", -1),
        ("max_delay_s", math.inf),
        ("max_delay_s", math.nan),
    ],
)
def test_delays_are_finite_and_grow(name: str, value: Any) -> None:
    settings: dict[str, Any] = {name: value}

    with pytest.raises(ConfigurationError) as refused:
        RetryPolicy(**settings)

    assert str(refused.value) == (
        f"RetryPolicy: {name}={value!r}; base_delay_s and max_delay_s are finite seconds from 0, multiplier is at least 1"
    )


@pytest.mark.parametrize("permanent", [ValueError, [ValueError], http_client_error])
def test_permanent_without_a_tuple_is_refused(permanent: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RetryPolicy(permanent=permanent)

    assert str(refused.value) == f"RetryPolicy: permanent={permanent!r}; use a tuple, as in permanent=(ValueError, http_client_error)"


@pytest.mark.parametrize("rule", ["ValueError", 404, int, KeyboardInterrupt, None])
def test_a_rule_that_is_neither_type_nor_function_is_refused(rule: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RetryPolicy(permanent=(rule,))

    assert str(refused.value) == f"RetryPolicy: permanent holds {rule!r}; use exception types, or functions of an exception to a bool"


# ---- http_client_error ----------------------------------------------------------------------------------------------


def by_httpx(status: int) -> Exception:
    request = httpx.Request("POST", "http://gateway/charges")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))


def by_requests(status: int) -> Exception:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("refused", response=response)


def by_aiohttp(status: int) -> Exception:
    error = OSError("refused")
    vars(error).update(SimpleNamespace(status=status).__dict__)
    return error


@pytest.mark.parametrize("raised", [by_httpx, by_requests, by_aiohttp])
def test_a_client_error_is_permanent_but_for_those_that_pass(raised: Any) -> None:
    statuses = (200, 399, 400, 404, 408, 409, 422, 425, 429, 451, 499, 500, 503)

    actual = [status for status in statuses if http_client_error(raised(status))]

    assert actual == [400, 404, 409, 422, 451, 499]


@pytest.mark.parametrize("error", [ValueError("x"), requests.ConnectionError("down"), httpx.ConnectError("down")])
def test_an_error_without_an_answer_is_no_client_error(error: Exception) -> None:
    actual = http_client_error(error)

    assert actual is False
