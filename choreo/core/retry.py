"""Shall this failure be tried again, and when? Pure: chance comes in as a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

import msgspec

from choreo.errors import ConfigurationError, DecodeError, PermanentError, TransientError

Permanent: TypeAlias = type[Exception] | Callable[[Exception], bool]
MAX_RETRY_AFTER_S = 3600.0


class RetryAfter(msgspec.Struct, frozen=True):
    """Try again after `delay_s` seconds."""

    delay_s: float


class GiveUp(msgspec.Struct, frozen=True):
    """Final. `permanent`: trying again could not have helped; else the attempts are used up."""

    permanent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how patiently a handler is tried.

    `max_attempts` counts attempts, the first included (3 = one call and two retries). The wait before attempt n+1 is
    drawn between 0 and ``min(max_delay_s, base_delay_s * multiplier ** (n - 1))`` seconds: full jitter, so that a
    thousand failures don't come back at once. `permanent` holds exception types or predicates that are never retried.
    The defaults are over in 2.5 s at the median and 5 s at worst.
    """

    max_attempts: int = 3
    base_delay_s: float = 1.0
    multiplier: float = 4.0
    max_delay_s: float = 30.0
    permanent: tuple[Permanent, ...] = ()

    def __post_init__(self) -> None:
        if type(self.max_attempts) is not int or not 1 <= self.max_attempts <= 20:
            raise ConfigurationError(f"RetryPolicy: max_attempts={self.max_attempts!r}; use 1 (no retry) to 20, retries are never infinite")
        for name, lowest in (("base_delay_s", 0), ("multiplier", 1), ("max_delay_s", 0)):
            number = getattr(self, name)
            if not (isinstance(number, int | float) and isfinite(number) and number >= lowest):
                raise ConfigurationError(
                    f"RetryPolicy: {name}={number!r}; base_delay_s and max_delay_s are finite seconds from 0, multiplier is at least 1"
                )
        _check_rules(self.permanent)

    def is_permanent(self, error: Exception) -> bool:
        """Whether trying again cannot help, by the error's type, by our own error tree, or by a predicate."""
        if isinstance(error, PermanentError | DecodeError):
            return True
        if isinstance(error, TransientError):
            return False
        return any(isinstance(error, rule) if isinstance(rule, type) else _says_yes(rule, error) for rule in self.permanent)

    def decide(self, error: Exception, *, attempt: int, dice: float) -> RetryAfter | GiveUp:
        """What to do after attempt number `attempt` (from 1) failed; `dice` is uniform in [0, 1)."""
        if self.is_permanent(error):
            return GiveUp(permanent=True)
        if attempt >= self.max_attempts:
            return GiveUp(permanent=False)
        if isinstance(error, TransientError) and error.retry_after_s is not None:
            return RetryAfter(min(max(0.0, error.retry_after_s), MAX_RETRY_AFTER_S))  # in this order, NaN becomes 0
        return RetryAfter(self.ceiling_s(attempt) * dice)

    def ceiling_s(self, attempt: int) -> float:
        """The longest wait after attempt number `attempt`, in seconds."""
        delay_s = min(self.base_delay_s, self.max_delay_s)
        for _ in range(attempt - 1):  # not by power, which overflows
            delay_s = min(delay_s * self.multiplier, self.max_delay_s)
        return delay_s

    def worst_s(self) -> float:
        """All waits together at worst, in seconds, handlers' own time not counted."""
        return sum(self.ceiling_s(attempt) for attempt in range(1, self.max_attempts))


def _check_rules(rules: object) -> None:
    if not isinstance(rules, tuple):
        raise ConfigurationError(f"RetryPolicy: permanent={rules!r}; use a tuple, as in permanent=(ValueError, http_client_error)")
    for rule in rules:
        if not (issubclass(rule, Exception) if isinstance(rule, type) else callable(rule)):
            raise ConfigurationError(f"RetryPolicy: permanent holds {rule!r}; use exception types, or functions of an exception to a bool")


def _says_yes(rule: Callable[[Exception], bool], error: Exception) -> bool:
    try:
        return bool(rule(error))
    except Exception as problem:  # noqa: BLE001 - a user's predicate must not stop the engine: it says nothing, and the error says so
        error.add_note(f"choreo: the predicate {getattr(rule, '__name__', rule)!r} in permanent= failed: {problem!r}")
        return False


def http_client_error(error: Exception) -> bool:
    """A predicate for `permanent`: an HTTP answer 4xx but 408, 425 and 429, as httpx, requests and aiohttp raise it."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "status", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 425, 429)
