"""Do the effects of deliveries that share a transaction happen once, whatever becomes of it? The database is a ledger in memory."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from choreo.core import burst_size
from choreo.core.retry import RetryPolicy
from choreo.envelope import Envelope
from choreo.errors import PermanentError, StoreError, TransientError
from choreo.events import Tombstone
from choreo.handler import Context, Failure, Handler
from choreo.record import TopicPartition
from choreo.runtime import bursts
from choreo.runtime.claims import digest
from choreo.store import Claim
from tests.runtime.ledger import Ledger, LedgerStore, LedgerTransaction, PlainLedger, deadlock, down, times, unanswered
from tests.runtime.shop import (
    DEADLINE_S,
    ONCE,
    P0,
    P1,
    SHOP,
    TWICE,
    Paid,
    Placed,
    Refused,
    becomes,
    committed,
    has_failed,
    numbered,
    place,
    placed,
    shop,
    shop_broker,
)

Act = Callable[[Context[Ledger]], Awaitable[None]]


async def nothing(context: Context[Ledger]) -> None:
    """Does nothing."""


class Enter(Handler[Placed, Ledger]):
    """Writes the event's id into the ledger, then does what it was told, then emits `Paid`."""

    def __init__(self, act: Act = nothing, *, retry: RetryPolicy = ONCE, timeout_s: float = 60.0, ordered: bool = True) -> None:
        self.calls: list[tuple[str, int]] = []
        self.retry, self.timeout_s, self.ordered = retry, timeout_s, ordered
        self._act = act

    async def handle(self, event: Envelope[Placed], context: Context[Ledger]) -> Paid:
        self.calls.append((context.event_id, context.attempt))
        await context.transaction.write(context.event_id)
        await self._act(context)
        return Paid(order_id=event.payload.order_id)


class EnterPlainly(Handler[Placed, PlainLedger]):
    """`Enter`, as a plain ``def``."""

    def __init__(self, act: Callable[[Context[PlainLedger]], None] = lambda context: None, *, retry: RetryPolicy = ONCE) -> None:
        self.calls: list[tuple[str, int]] = []
        self.retry = retry
        self._act = act

    def handle(self, event: Envelope[Placed], context: Context[PlainLedger]) -> Paid:
        self.calls.append((context.event_id, context.attempt))
        context.transaction.write_now(context.event_id)
        self._act(context)
        return Paid(order_id=event.payload.order_id)


class Enters(Enter):
    """`Enter`, with a last resort that writes and emits as well."""

    name = "enter"

    async def recover(self, event: Envelope[Placed], failure: Failure, context: Context[Ledger]) -> Refused:
        await context.transaction.write(f"recovered {context.event_id} after {failure.attempts}")
        return Refused(order_id=event.payload.order_id)


def raises(error: Exception, *event_ids: str) -> Act:
    """A handler that fails for these events, each time."""

    async def act(context: Context[Ledger]) -> None:
        if context.event_id in event_ids:
            raise error

    return act


def first_time(error: Exception, *event_ids: str) -> Act:
    """A handler that fails for these events at their first attempt."""

    async def act(context: Context[Ledger]) -> None:
        if context.event_id in event_ids and context.attempt == 1:
            raise error

    return act


def emitted(store: LedgerStore) -> list[str]:
    """Of each row: whose child it is."""
    return sorted(dict(row.record.headers)["choreo-causation-id"].decode() for row in store.rows)  # type: ignore[union-attr]


def claimed(store: LedgerStore) -> list[str]:
    """The ids of the events that are claimed; the store may be closed."""
    again = LedgerStore(shared_with=store)
    again.open(SHOP)
    return sorted(claim.event_id for _, claim in again._claims)


def is_through(broker: object, count: int, partition: TopicPartition = P0) -> Callable[[], bool]:
    return lambda: committed(broker, partition) == count  # type: ignore[arg-type]


@pytest.fixture(params=[False, True], ids=["async", "on threads"])
def enter(request: pytest.FixtureRequest) -> Enter | EnterPlainly:
    return EnterPlainly() if request.param else Enter()


# ---- all is well ----------------------------------------------------------------------------------------------------------


async def test_writes_claims_and_emits_of_many_events_are_committed_in_few_transactions(enter: Enter | EnterPlainly) -> None:
    broker, store = shop_broker(), LedgerStore()
    place(broker, *numbered(300))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 300), "all are committed", worker)

    assert sorted(store.committed) == emitted(store) == sorted(numbered(300))
    assert claimed(store) == sorted(numbered(300))
    assert len(store.bursts) < 40
    assert store.open_now == 0


async def test_events_of_one_key_are_handled_in_order(enter: Enter | EnterPlainly) -> None:
    broker, store = shop_broker(), LedgerStore()
    place(broker, *numbered(30), key="k")

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 30), "all are committed", worker)

    assert store.committed == numbered(30)


async def test_an_event_that_was_handled_before_is_not_handled_again(enter: Enter | EnterPlainly) -> None:
    broker, store = shop_broker(), LedgerStore()
    store.open(SHOP)
    store.claim([Claim(enter.name, "e1")], [digest(placed("e1"))])
    place(broker, *numbered(3))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert (sorted(store.committed), worker.counters.duplicates, worker.counters.id_collisions) == (["e0", "e2"], 1, 0)


async def test_the_same_id_with_another_payload_is_not_applied_and_counted() -> None:
    broker, store, enter = shop_broker(), LedgerStore(), Enter()
    store.open(SHOP)
    store.claim([Claim("enter", "e0")], [digest(b"another payload")])
    place(broker, "e0")

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 1), "it is committed", worker)

    assert (store.committed, worker.counters.id_collisions) == ([], 1)


async def test_duplicates_that_are_ready_together_take_effect_once(enter: Enter | EnterPlainly) -> None:
    broker, store = shop_broker(partitions=2), LedgerStore()
    for event_id in numbered(50):
        place(broker, event_id, event_id, key="a", partition=0, value=placed(event_id))
        place(broker, event_id, key="b", partition=1, value=placed(event_id))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(lambda: (committed(broker, P0), committed(broker, P1)) == (100, 50), "all are committed", worker)

    assert sorted(store.committed) == emitted(store) == sorted(numbered(50))
    assert worker.counters.duplicates == 100


# ---- a handler fails ------------------------------------------------------------------------------------------------------


async def test_what_a_failing_handler_wrote_is_undone_and_what_others_wrote_stays() -> None:
    broker, store = shop_broker(), LedgerStore()
    enter = Enter(first_time(TransientError("not yet"), "e3"), retry=TWICE)
    place(broker, *numbered(8))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 8), "all are committed", worker)

    assert sorted(store.committed) == emitted(store) == numbered(8)
    assert [call for call in enter.calls if call[0] == "e3"] == [("e3", 1), ("e3", 2)]
    assert (len(enter.calls), worker.counters.retried) == (9, 1)


async def test_an_event_that_fails_for_good_becomes_a_letter_without_a_write_a_claim_or_an_emit() -> None:
    broker, store = shop_broker(), LedgerStore()
    enter = Enter(raises(PermanentError("never"), "e1"))
    place(broker, *numbered(3))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert (sorted(store.committed), emitted(store)) == (["e0", "e2"], ["e0", "e2"])
    assert claimed(store) == ["e0", "e2"]
    assert len(broker.records(f"{SHOP}.dlq")) == worker.counters.dead_lettered == 1


async def test_a_failure_counts_only_once_when_the_burst_that_it_happened_in_is_lost() -> None:
    broker, store = shop_broker(), LedgerStore()
    store.hook = times(1, "commit", deadlock)
    enter = Enter(raises(TransientError("always"), "e1"), retry=TWICE)
    place(broker, *numbered(3))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert [attempt for event_id, attempt in enter.calls if event_id == "e1"] == [1, 1, 2]
    assert sorted(store.committed) == ["e0", "e2"]


async def test_an_undeclared_emit_is_a_permanent_failure_and_nothing_of_it_stays() -> None:
    class Careless(Handler[Placed, Ledger]):
        name = "enter"

        async def handle(self, event: Envelope[Placed], context: Context[Ledger]) -> Paid:
            await context.transaction.write(context.event_id)
            return Refused(order_id="o")  # type: ignore[return-value]

    broker, store = shop_broker(), LedgerStore()
    place(broker, "e0")

    async with shop(broker, Careless(), store=store).worker() as worker:
        await becomes(is_through(broker, 1), "it is committed", worker)

    assert (store.committed, store.rows, worker.counters.dead_lettered) == ([], [], 1)


async def test_a_tombstone_is_a_row_of_its_events_type() -> None:
    class Erase(Handler[Placed, Ledger]):
        async def handle(self, event: Envelope[Placed], context: Context[Ledger]) -> Tombstone[Paid]:
            return Tombstone(of=Paid, key=event.payload.order_id)

    broker, store = shop_broker(), LedgerStore()
    place(broker, "e0")

    async with shop(broker, Erase(), store=store).worker() as worker:
        await becomes(is_through(broker, 1), "it is committed", worker)

    assert [(row.event_type, row.record.key, row.record.value) for row in store.rows] == [("order.paid", b"e0", None)]
    assert emitted(store) == ["e0"]


async def test_a_handler_that_takes_too_long_is_cancelled_and_its_burst_goes_on() -> None:
    async def hangs(context: Context[Ledger]) -> None:
        if context.event_id == "e1" and context.attempt == 1:
            await asyncio.sleep(DEADLINE_S)

    broker, store, enter = shop_broker(), LedgerStore(), Enter(hangs, retry=TWICE, timeout_s=0.05)
    place(broker, *numbered(3))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert (sorted(store.committed), worker.counters.retried) == (numbered(3), 1)


async def test_a_handler_that_swallows_its_cancellation_and_answers_has_succeeded() -> None:
    async def stubborn(context: Context[Ledger]) -> None:
        try:
            await asyncio.sleep(DEADLINE_S if context.event_id == "e1" else 0.0)
        except asyncio.CancelledError:
            pass

    broker, store, enter = shop_broker(), LedgerStore(), Enter(stubborn, timeout_s=0.05)
    place(broker, *numbered(3))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert (sorted(store.committed), worker.counters.dead_lettered) == (numbered(3), 0)


async def test_an_event_that_cannot_be_decoded_is_a_letter_and_its_neighbours_are_handled() -> None:
    broker, store, enter = shop_broker(), LedgerStore(), Enter()
    place(broker, "e0", "e1")
    place(broker, "bad", value=b'{"type":"order.placed","timestamp":"2026-11-22T22:36:07Z","payload":{"order_id":7}}')

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert (sorted(store.committed), worker.counters.dead_lettered) == (["e0", "e1"], 1)


# ---- the last resort ------------------------------------------------------------------------------------------------------


async def test_what_recover_writes_and_emits_is_committed_with_the_claim() -> None:
    broker, store = shop_broker(), LedgerStore()
    enter = Enters(raises(PermanentError("never"), "e1"))
    place(broker, *numbered(2))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 2), "all are committed", worker)

    assert sorted(store.committed) == ["e0", "recovered e1 after 1"]
    assert sorted(row.event_type for row in store.rows) == ["order.paid", "order.refused"]
    assert claimed(store) == ["e0", "e1"]
    assert (worker.counters.recovered, worker.counters.dead_lettered) == (1, 0)


async def test_a_recover_whose_transaction_is_lost_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "AGAIN_MOST_S", 0.001)
    broker, store = shop_broker(), LedgerStore()
    enter = Enters(raises(PermanentError("never"), "e0"))
    store.hook = times(3, "commit", deadlock)
    place(broker, "e0")

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 1), "it is committed", worker)

    assert (store.committed, worker.counters.recovered) == (["recovered e0 after 1"], 1)


async def test_a_recover_that_begins_while_the_partition_is_being_given_up_runs() -> None:
    """Taken for done without having run, the event would be lost."""
    broker, store = shop_broker(), LedgerStore()
    entered, goes_on = asyncio.Event(), asyncio.Event()

    async def fails_late(context: Context[Ledger]) -> None:
        entered.set()
        await goes_on.wait()
        raise PermanentError("never")

    enter = Enters(fails_late)
    place(broker, "e0")
    async with shop(broker, enter, store=store, drain_s=DEADLINE_S).worker():
        await entered.wait()
        asyncio.get_running_loop().call_later(0.05, goes_on.set)

    assert (store.committed, committed(broker)) == (["recovered e0 after 1"], 1)


# ---- the database ends it -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["look_up", "begin_delivery", "keep", "commit", "committed"])
async def test_a_burst_that_is_lost_at_any_step_runs_again_one_by_one_without_counting(
    enter: Enter | EnterPlainly, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bursts, "AGAIN_FIRST_S", 0.001)
    broker, store = shop_broker(), LedgerStore()
    store.hook = times(4, step, deadlock if step != "committed" else unanswered)
    place(broker, *numbered(40))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 40), "all are committed", worker)

    assert sorted(store.committed) == emitted(store) == sorted(numbered(40))
    assert {attempt for _, attempt in enter.calls} == {1}
    assert (worker.counters.retried, worker.counters.dead_lettered) == (0, 0)
    assert worker.counters.bursts_lost >= 1
    assert 1 in store.bursts
    assert store.open_now == 0


async def test_a_burst_in_which_another_member_claimed_an_event_leaves_nothing_and_the_event_is_a_duplicate() -> None:
    broker, store, enter = shop_broker(), LedgerStore(), Enter()
    stolen: list[str] = []

    def steals(step: str, transaction: LedgerTransaction) -> None:
        if step == "commit" and not stolen and "e2" in transaction.writes:
            stolen.append("e2")
            store.claim([Claim("enter", "e2")], [digest(placed("e2"))])

    store.hook = steals
    place(broker, *numbered(8))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 8), "all are committed", worker)

    assert sorted(store.committed) == emitted(store) == [e for e in numbered(8) if e != "e2"]
    assert (stolen, worker.counters.duplicates) == (["e2"], 1)


async def test_a_delivery_that_is_lost_even_alone_fails_once_patience_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "PATIENCE_S", 0.05)
    monkeypatch.setattr(bursts, "HELD_S", 0.0)
    monkeypatch.setattr(bursts, "AGAIN_MOST_S", 0.01)
    broker, store = shop_broker(), LedgerStore()

    def blocks_itself(step: str, transaction: LedgerTransaction) -> None:
        if step == "commit" and "e1" in transaction.writes:
            raise deadlock()

    store.hook = blocks_itself
    place(broker, *numbered(3))

    async with shop(broker, Enter(timeout_s=0.1), store=store).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert (sorted(store.committed), worker.counters.dead_lettered) == (["e0", "e2"], 1)
    (letter,) = broker.records(f"{SHOP}.dlq")
    assert any(b"lost, alone" in (value or b"") for _, value in letter.headers)


# ---- the database is away -------------------------------------------------------------------------------------------------


async def test_while_the_database_is_away_events_wait_and_nothing_is_counted(
    enter: Enter | EnterPlainly, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bursts, "DOWN_S", 0.02)
    broker, store = shop_broker(), LedgerStore()
    store.hook = times(5, "begin", down)
    place(broker, *numbered(100))

    async with shop(broker, enter, store=store).worker() as worker:
        await becomes(is_through(broker, 100), "all are committed", worker)

    assert sorted(store.committed) == sorted(numbered(100))
    assert {attempt for _, attempt in enter.calls} == {1}
    assert worker.counters.store_errors == 5
    assert [line.message for line in caplog.records if "away" in line.message or "answers again" in line.message] == [
        "the database is away, as the test asked; nothing is lost, events wait, trying again every 0 s",
        "the database answers again: in memory, gone with the process",
    ]


async def test_a_database_that_waiting_cannot_mend_stops_the_worker_without_committing() -> None:
    broker, store, enter = shop_broker(), LedgerStore(), Enter()

    def refuses() -> Exception:
        return StoreError("the database is of no use, as the test asked", retriable=False)

    store.hook = times(1, "begin", refuses)
    place(broker, "e0")

    async with shop(broker, enter, store=store).worker() as worker:
        failure = await has_failed(worker)

    assert str(failure) == "the database is of no use, as the test asked"
    assert enter.calls == []
    assert committed(broker) in (None, 0)


# ---- partitions come and go -----------------------------------------------------------------------------------------------


async def test_a_burst_under_way_at_a_stop_is_committed_and_nothing_comes_again(enter: Enter | EnterPlainly) -> None:
    broker, store = shop_broker(), LedgerStore(most=1)
    entered, goes_on = threading.Event(), threading.Event()

    async def holds(step: str) -> None:
        if step == "commit":
            entered.set()
            while not goes_on.is_set():
                await asyncio.sleep(0.001)

    def holds_plainly(step: str) -> None:
        if step == "commit":
            entered.set()
            goes_on.wait(DEADLINE_S)

    store.hook = lambda step, transaction: holds(step) if isinstance(enter, Enter) else holds_plainly(step)
    place(broker, *numbered(8))

    async with shop(broker, enter, store=store, drain_s=DEADLINE_S).worker() as worker:
        await becomes(entered.is_set, "a burst is at its end", worker)
        asyncio.get_running_loop().call_later(0.05, goes_on.set)

    assert worker.clean
    assert sorted(store.committed) == numbered(8)[: committed(broker)]
    assert len(enter.calls) == len(store.committed)


async def test_a_burst_that_outlasts_a_revoke_is_rolled_back_and_handled_by_the_next_owner() -> None:
    broker, store = shop_broker(), LedgerStore()
    entered = asyncio.Event()

    async def hangs(context: Context[Ledger]) -> None:
        if context.event_id == "e1":
            entered.set()
            await asyncio.sleep(60.0)

    place(broker, *numbered(3))
    async with shop(broker, Enter(hangs), store=store, drain_s=0.1).worker():
        await entered.wait()
    left = (list(store.committed), committed(broker))
    second = Enter()
    async with shop(broker, second, store=LedgerStore(shared_with=store)).worker() as worker:
        await becomes(is_through(broker, 3), "all are committed", worker)

    assert left == ([], 0)
    assert sorted(store.committed) == emitted(store) == numbered(3)
    assert {attempt for _, attempt in second.calls} == {1}


# ---- how large ------------------------------------------------------------------------------------------------------------


async def test_a_slow_handler_has_its_transactions_to_itself() -> None:
    broker, store = shop_broker(), LedgerStore(most=1)

    async def slow(context: Context[Ledger]) -> None:
        await asyncio.sleep(0.03)

    place(broker, *numbered(14))
    async with shop(broker, Enter(slow), store=store).worker() as worker:
        await becomes(is_through(broker, 14), "all are committed", worker)

    assert set(store.bursts[1:]) == {1}


async def test_a_burst_that_takes_too_long_leaves_the_rest_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.runtime.burst.LIMIT_S", 0.02)
    monkeypatch.setattr(burst_size, "SLOW_S", 5.0)
    broker, store = shop_broker(), LedgerStore(most=1)
    at_commit: list[int] = []
    store.hook = lambda step, transaction: at_commit.append(len(transaction.writes)) if step == "commit" else None

    async def slow(context: Context[Ledger]) -> None:
        await asyncio.sleep(0.015)

    place(broker, *numbered(8))
    async with shop(broker, Enter(slow), store=store).worker() as worker:
        await becomes(is_through(broker, 8), "all are committed", worker)

    assert (max(at_commit), sum(at_commit)) == (2, 8)


async def test_a_handler_that_shares_its_transaction_may_be_silent_for_less_long() -> None:
    broker, store = shop_broker(), LedgerStore(most=1)
    quiet: dict[int, float] = {}

    def notes(step: str, transaction: LedgerTransaction) -> None:
        if step == "end":
            quiet[store.bursts[-1]] = transaction.quiet_s

    store.hook = notes
    place(broker, "e0")
    async with shop(broker, Enter(timeout_s=90.0), store=store).worker() as worker:
        await becomes(is_through(broker, 1), "it is committed", worker)
        place(broker, *numbered(5)[1:])
        await becomes(is_through(broker, 5), "all are committed", worker)

    assert quiet[1] == 90.0
    assert {seconds for count, seconds in quiet.items() if count > 1} <= {5.0}
