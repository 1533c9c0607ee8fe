"""Does a handler succeed once with an event, and is none lost, whatever the store does and however often the event comes?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

import pytest

from choreo.envelope import Envelope
from choreo.errors import ConfigurationError, StoreError, TransientError
from choreo.handler import Context, Failure
from choreo.runtime import claims, intake
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.storage.memory import MemoryStore
from choreo.store import Claim
from tests.runtime.shop import (
    DEADLINE_S,
    ONCE,
    P0,
    P1,
    SHOP,
    TWICE,
    Book,
    File,
    GuardedStore,
    Placed,
    becomes,
    committed,
    has_failed,
    numbered,
    place,
    shop,
    shop_broker,
)

READ_ONLY = StoreError("the file was made read-only, as the test asked", retriable=False)
LOCKED = StoreError("locked, as the test asked", retriable=True)


async def test_hundreds_of_duplicates_in_a_row_settle_on_their_way_to_a_thread() -> None:
    broker, store, file = shop_broker(), MemoryStore(), File()
    store.open(SHOP)
    store.claim([Claim("file", event_id) for event_id in numbered(400)])
    place(broker, *numbered(400))

    async with shop(broker, file, store=MemoryStore(shared_with=store)).worker() as worker:
        await becomes(lambda: committed(broker) == 400, "all are settled", worker)

    assert (worker.counters.duplicates, file.calls) == (400, [])


# ---- the store fails ------------------------------------------------------------------------------------------------------


async def test_what_comes_after_a_batch_that_could_not_be_looked_up_is_neither_handled_nor_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(intake, "BATCH", 5)
    both_have_come = threading.Event()
    looked_up: list[int] = []

    def fails_once(batch: Collection[Claim]) -> None:
        looked_up.append(len(batch))
        if len(looked_up) == 1:
            both_have_come.wait(DEADLINE_S)
            raise READ_ONLY

    broker, book = shop_broker(), Book()
    place(broker, *numbered(10))

    async with shop(broker, book, store=GuardedStore(fails_once)).worker() as worker:
        await becomes(lambda: worker.intake.ahead, "the second batch waits behind the first")
        both_have_come.set()
        failure = await has_failed(worker)
        await becomes(lambda: not broker.consumers(SHOP), "the worker has left its group")

    assert failure is READ_ONLY
    assert (looked_up, book.calls, committed(broker)) == ([5], [], 0)


async def test_a_worker_whose_store_fails_for_good_leaves_its_partitions_to_the_others() -> None:
    broker, store = shop_broker(), MemoryStore()
    unusable = MemoryStore(shared_with=store)
    unusable.fail(READ_ONLY, times=10**6)
    place(broker, *numbered(3))
    failing, healthy = Book(), Book()

    async with shop(broker, failing, store=unusable).worker() as worker:
        failure = await has_failed(worker)
        async with shop(broker, healthy, store=MemoryStore(shared_with=store)).worker() as other:
            await becomes(lambda: committed(broker) == 3, "the other has handled them", other)

    assert failure is READ_ONLY
    assert (failing.calls, healthy.calls) == ([], numbered(3))


async def test_a_store_that_is_down_costs_no_attempt_and_its_time_is_not_the_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RETRY_S", 0.01)
    monkeypatch.setattr(claims, "RECENT", 0)  # nothing looked up with its batch is believed: it is asked again before the call
    looked_up = 0
    down = True

    def answers_only_the_batch(_: Collection[Claim]) -> None:
        nonlocal looked_up
        looked_up += 1
        if looked_up > 1 and down:
            raise LOCKED

    attempts: list[int] = []

    async def note_attempt(context: Context) -> None:
        attempts.append(context.attempt)

    broker, book = shop_broker(), Book(note_attempt, retry=TWICE, timeout_s=0.05)
    place(broker, "e0")

    async with shop(broker, book, store=GuardedStore(answers_only_the_batch)).worker() as worker:
        # Each error is followed by RETRY_S: 30 of them are several times `timeout_s`.
        await becomes(lambda: worker.counters.store_errors >= 30 or worker.counters.dead_lettered, "the store is down for long", worker)
        down = False
        await becomes(lambda: committed(broker) == 1, "it is settled", worker)

    assert (attempts, worker.counters.retried, worker.counters.dead_lettered, worker.counters.handled) == ([1], 0, 0, 1)


# ---- the same event twice -------------------------------------------------------------------------------------------------


class Compensates(Book):
    """Fails when it is called first; its `recover` waits to be let go on, then raises `problem`, if there is one."""

    name = "compensates"

    def __init__(self, problem: Exception | None = None) -> None:
        super().__init__(self._fail_first, retry=ONCE, ordered=False)
        self.go_on = asyncio.Event()
        self.log: list[str] = []
        self._problem = problem

    async def _fail_first(self, context: Context) -> None:
        if len(self.calls) == 1:
            raise RuntimeError("the first call fails")
        self.log.append("handled")

    async def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> None:
        self.log.append("recover begins")
        await self.go_on.wait()
        self.log.append("recover ends")
        if self._problem is not None:
            raise self._problem


async def test_no_duplicate_succeeds_beside_a_recovery() -> None:
    broker, handler = shop_broker(), Compensates()
    place(broker, "same", "same")

    async with shop(broker, handler).worker() as worker:
        await becomes(lambda: handler.log and (worker.engine.running() == 2 or len(handler.calls) == 2), "both have begun", worker)
        handler.go_on.set()
        await becomes(lambda: committed(broker) == 2, "both are settled", worker)

    assert handler.log == ["recover begins", "recover ends"]
    assert (worker.counters.recovered, worker.counters.duplicates) == (1, 1)


async def test_a_duplicate_begins_when_the_recovery_has_failed() -> None:
    broker, handler = shop_broker(), Compensates(ValueError("no compensation either"))
    place(broker, "same", "same")

    async with shop(broker, handler).worker() as worker:
        await becomes(lambda: handler.log and (worker.engine.running() == 2 or len(handler.calls) == 2), "both have begun", worker)
        handler.go_on.set()
        await becomes(lambda: committed(broker) == 2, "both are settled", worker)

    assert handler.log == ["recover begins", "recover ends", "handled"]
    assert (worker.counters.dead_lettered, worker.counters.handled) == (1, 1)


async def test_an_event_that_waited_in_its_lane_is_not_handled_when_another_member_handled_its_duplicate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "FRESH_S", 0.0)  # what was looked up is old at once
    gate = asyncio.Event()

    async def head_waits(context: Context) -> None:
        if context.event_id == "head":
            await gate.wait()

    broker, store, book = shop_broker(partitions=2), MemoryStore(), Book(head_waits)

    async with (
        shop(broker, book, store=MemoryStore(shared_with=store)).worker() as one,
        shop(broker, book, store=MemoryStore(shared_with=store)).worker() as two,
    ):
        await becomes(lambda: len(one.engine.partitions) == len(two.engine.partitions) == 1, "each has a partition", one, two)
        place(broker, "head", "twice", key="k", partition=0)
        await becomes(lambda: one.engine.in_flight() + two.engine.in_flight() == 2, "both wait in their lane", one, two)
        place(broker, "twice", partition=1)
        await becomes(lambda: committed(broker, P1) == 1, "its duplicate is settled", one, two)
        gate.set()
        await becomes(lambda: committed(broker, P0) == 2, "it is settled as well", one, two)

    assert book.calls == ["head", "twice"]
    assert one.counters.duplicates + two.counters.duplicates == 1


async def test_an_attempt_is_not_repeated_when_another_member_handled_the_duplicate_during_it() -> None:
    gate = asyncio.Event()

    async def first_call_fails(context: Context) -> None:
        if context.origin.partition == 0:
            await gate.wait()
            raise TransientError("again at once", retry_after_s=0.0)

    broker, store, book = shop_broker(partitions=2), MemoryStore(), Book(first_call_fails, retry=TWICE)

    async with (
        shop(broker, book, store=MemoryStore(shared_with=store)).worker() as one,
        shop(broker, book, store=MemoryStore(shared_with=store)).worker() as two,
    ):
        await becomes(lambda: len(one.engine.partitions) == len(two.engine.partitions) == 1, "each has a partition", one, two)
        place(broker, "twice", partition=0)
        await becomes(lambda: book.calls == ["twice"], "its first attempt runs", one, two)
        place(broker, "twice", partition=1)
        await becomes(lambda: committed(broker, P1) == 1, "its duplicate is settled", one, two)
        gate.set()
        await becomes(lambda: committed(broker, P0) == 1, "it is settled as well", one, two)

    assert (book.calls, book.done) == (["twice", "twice"], ["twice"])
    assert (one.counters.duplicates + two.counters.duplicates, broker.records(f"{SHOP}.dlq")) == (1, [])


# ---- how long claims are kept -----------------------------------------------------------------------------------------------

DAY_S = 86_400.0


class NotedStore(MemoryStore):
    """Notes how old the claims were that it was told to delete."""

    def __init__(self) -> None:
        super().__init__()
        self.ages_s: list[float] = []

    def delete_older(self, age_s: float, limit: int) -> int:
        self.ages_s.append(age_s)
        return super().delete_older(age_s, limit)


async def test_claims_are_deleted_a_day_after_their_events_can_not_come_again() -> None:
    broker, store = shop_broker(), NotedStore()
    for topic, days in (("orders", 3), (f"{SHOP}.dlq", 14), (f"{SHOP}.replay", 90)):
        broker.cluster().configure(topic, {"retention.ms": str(int(days * DAY_S * 1000))})

    async with shop(broker, Book(), store=store).worker() as worker:
        await becomes(lambda: store.ages_s, "it cleans", worker)

    assert store.ages_s == [(3 + 14 + 90 + 1) * DAY_S]


async def test_where_a_topic_keeps_its_records_for_ever_claims_are_kept_for_ever() -> None:
    broker, store, book = shop_broker(), NotedStore(), Book()
    broker.cluster().configure("orders", {"retention.ms": "-1"})
    place(broker, "e0")

    async with shop(broker, book, store=store).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it is settled", worker)

    assert store.ages_s == []


async def test_a_service_that_would_forget_a_claim_before_its_event_is_gone_does_not_start() -> None:
    broker = shop_broker()
    settings = ServiceSettings(broker=broker, claims_retention_s=DAY_S)
    made = Service(SHOP, handlers=[Book()], store=MemoryStore(), settings=settings)

    with pytest.raises(ConfigurationError, match=r"shop: claims_retention_s: claims are kept 1 d, but an event can come again for 21 d"):
        async with made.worker():
            raise AssertionError("it runs")
