"""Are old claims deleted in small steps, with room for others between, and does trouble end neither the cleaning nor the service?"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable

import pytest

from choreo.errors import ConfigurationError, StoreError
from choreo.runtime.claim_cleaning import EVERY_S, LEAST_PAUSE_S, SHARE, STEP, ClaimCleaning
from choreo.storage.memory import MemoryStore
from choreo.store import Claim

RETENTION_S = 30 * 86_400.0
AWAY = StoreError("PostgreSQL db:5432/shop: Connection refused", retriable=True)


class OldClaims(MemoryStore):
    """A store with so many claims that are too old. A step takes `step_s` on `clock`."""

    def __init__(self, count: int, clock: Clock, step_s: float = 0.0) -> None:
        super().__init__()
        self.count = count
        self.asked: list[tuple[float, int]] = []
        self.failures: list[StoreError] = []
        self._time = clock
        self._step_s = step_s

    def delete_older(self, age_s: float, limit: int) -> int:
        self.asked.append((age_s, limit))
        self._time.now_s += self._step_s
        if self.failures:
            raise self.failures.pop(0)
        deleted = min(self.count, limit)
        self.count -= deleted
        return deleted


class Clock:
    """Time that passes when somebody sleeps; `ends` after so many sleeps of a round's length."""

    def __init__(self, rounds: int = 1) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self._rounds = rounds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        if self.slept.count(EVERY_S) == self._rounds:
            raise asyncio.CancelledError
        await asyncio.sleep(0)


async def at_once(function: Callable[[], int]) -> int:
    return function()


def cleaning(store: OldClaims, clock: Clock, retention_s: float = RETENTION_S) -> ClaimCleaning:
    return ClaimCleaning(store, at_once, retention_s, sleep=clock.sleep, now_s=lambda: clock.now_s)


async def run(cleaning: ClaimCleaning) -> None:
    with pytest.raises(asyncio.CancelledError):
        await cleaning.run()


async def test_old_claims_are_deleted_in_steps_until_there_are_no_more() -> None:
    clock = Clock()
    store = OldClaims(2 * STEP + 7, clock)

    deleted = await cleaning(store, clock).clean()

    assert (deleted, store.count) == (2 * STEP + 7, 0)
    assert store.asked == [(RETENTION_S, STEP)] * 3


async def test_where_there_is_nothing_one_step_finds_that_out() -> None:
    clock = Clock()
    store = OldClaims(0, clock)

    deleted = await cleaning(store, clock).clean()

    assert (deleted, len(store.asked), clock.slept) == (0, 1, [])


@pytest.mark.parametrize(("step_s", "pause_s"), [(0.0, LEAST_PAUSE_S), (0.001, LEAST_PAUSE_S), (2.0, 2.0 * (SHARE - 1))])
async def test_between_steps_the_store_is_left_to_others(step_s: float, pause_s: float) -> None:
    clock = Clock()
    store = OldClaims(3 * STEP, clock, step_s)

    await cleaning(store, clock).clean()

    assert clock.slept == pytest.approx([pause_s] * 3)


async def test_claims_get_through_between_the_steps() -> None:
    """On one thread, as a worker's store is."""
    clock = Clock()
    store = OldClaims(3 * STEP, clock)
    calls: list[str] = []
    turn = asyncio.Lock()

    async def in_thread(function: Callable[[], int]) -> int:
        async with turn:
            calls.append("delete")
            return function()

    async def claim() -> None:
        for _ in range(3):
            async with turn:
                calls.append("claim")
            await asyncio.sleep(0)

    await asyncio.gather(ClaimCleaning(store, in_thread, RETENTION_S, sleep=clock.sleep, now_s=lambda: clock.now_s).clean(), claim())

    assert calls[:6] == ["delete", "claim"] * 3


async def test_it_goes_on_every_ten_minutes_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "choreo.claims")
    clock = Clock(rounds=3)
    store = OldClaims(STEP + 1, clock)
    cleans = cleaning(store, clock)

    await run(cleans)

    assert clock.slept == [LEAST_PAUSE_S, EVERY_S, EVERY_S, EVERY_S]
    assert cleans.deleted == STEP + 1
    assert [record.message for record in caplog.records] == [f"deleted {STEP + 1} claims older than 30 days"]


async def test_a_store_that_is_away_is_told_once_and_asked_again_in_the_next_round(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock(rounds=3)
    store = OldClaims(5, clock)
    store.failures = [AWAY, AWAY]
    cleans = cleaning(store, clock)

    await run(cleans)

    assert (cleans.deleted, cleans.troubled) == (5, None)
    assert [record.message for record in caplog.records] == [f"{AWAY}; old claims stay for now, the next attempt is in 600 s"]


async def test_trouble_in_the_middle_counts_what_was_deleted_before() -> None:
    clock = Clock()
    store = OldClaims(2 * STEP, clock)
    cleans = ClaimCleaning(store, fails_at_the_second(), RETENTION_S, sleep=clock.sleep, now_s=lambda: clock.now_s)

    await run(cleans)

    assert (cleans.deleted, cleans.troubled) == (STEP, AWAY)


def fails_at_the_second() -> Callable[[Callable[[], int]], asyncio.Future[int]]:
    calls = iter((False, True))

    async def call(function: Callable[[], int]) -> int:
        if next(calls):
            raise AWAY
        return function()

    return lambda function: asyncio.ensure_future(call(function))


async def test_what_waiting_cannot_mend_is_raised() -> None:
    clock = Clock()
    store = OldClaims(5, clock)
    store.failures = [StoreError("permission denied for table choreo_claims", retriable=False)]

    with pytest.raises(StoreError, match="permission denied"):
        await cleaning(store, clock).run()


async def test_claims_that_are_kept_for_ever_are_never_asked_for() -> None:
    clock = Clock()
    store = OldClaims(5, clock)

    await cleaning(store, clock, math.inf).run()

    assert (store.asked, clock.slept) == ([], [])


@pytest.mark.parametrize("retention_s", [0.0, -1.0, math.nan])
def test_no_time_at_all_is_refused(retention_s: float) -> None:
    clock = Clock()

    with pytest.raises(ConfigurationError, match="claims can't be kept for"):
        cleaning(OldClaims(0, clock), clock, retention_s)


async def test_it_works_on_a_store_that_is_one() -> None:
    store = MemoryStore()
    store.open("payments")
    claims = [Claim("charge-card", f"e-{number}") for number in range(STEP + 1)]
    store.claim(claims)

    deleted = await ClaimCleaning(store, at_once, 1e-9, sleep=Clock().sleep).clean()

    assert deleted == STEP + 1
    assert store.lookup(claims) == set()
