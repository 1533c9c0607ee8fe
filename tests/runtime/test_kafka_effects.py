"""Effects `kafka` in trouble: transactions that are aborted, fenced, held, or end nobody knows how; members that go meanwhile.

What counts are the children on the topic: one for each event that was handled.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
import pytest

from choreo.broker import METADATA_TOO_LARGE, Ended, Work
from choreo.core.offset_map import OffsetMap, read_map
from choreo.core.retry import RetryPolicy
from choreo.envelope import Envelope
from choreo.errors import BrokerError, PermanentError
from choreo.handler import Context, Failure, Handler
from choreo.letter import LetterState, ReplayOutcome, Request, dlq_headers, read_replay, read_state, replay_record
from choreo.record import Committed, Outgoing, TopicPartition
from choreo.runtime import atomic
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.testing import MemoryBroker
from choreo.testing.memory_consumer import MemoryConsumer
from tests.runtime.shop import (
    DEADLINE_S,
    ONCE,
    P0,
    SHOP,
    Book,
    Paid,
    Placed,
    Refused,
    becomes,
    committed,
    has_failed,
    numbered,
    place,
    shop_broker,
)

ID = "shop-1"


class Pay(Handler[Placed]):
    """Keeps the events it is called for; those in `failing` raise, the others are paid."""

    retry = ONCE

    def __init__(self, *, failing: set[str] | None = None, gate: asyncio.Event | None = None, waiting: str = "") -> None:
        self.calls: list[str] = []
        self.failing = failing or set()
        self._gate, self._waiting = gate, waiting

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid:
        self.calls.append(context.event_id)
        if context.event_id == self._waiting and self._gate is not None:
            await self._gate.wait()
        if context.event_id in self.failing:
            raise PermanentError("no")
        return Paid(order_id=event.payload.order_id)


class PayOnThread(Handler[Placed]):
    retry = ONCE

    def handle(self, event: Envelope[Placed], context: Context) -> Paid:
        return Paid(order_id=event.payload.order_id)


class PayOrRefund(Handler[Placed]):
    retry = ONCE

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid:
        raise PermanentError("no")

    async def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> Refused:
        return Refused(order_id=event.payload.order_id)


def shop(
    broker: MemoryBroker, *handlers: Handler[Placed, Any], transactional_id: str | None = ID, drain_s: float = 2.0, **settings: Any
) -> Service:
    chosen = ServiceSettings(broker=broker, effects="kafka", transactional_id=transactional_id, drain_s=drain_s, **settings)
    return Service(SHOP, handlers=handlers, publishes=[Paid, Refused], settings=chosen)


def children(broker: MemoryBroker) -> Counter[str]:
    """How many answers there are to each order."""
    return Counter((record.key or b"").decode() for record in broker.records("answers"))


def states(broker: MemoryBroker) -> list[LetterState]:
    found = [read_state(record) for record in broker.records(f"{SHOP}.letters")]
    return [state for state in found if isinstance(state, LetterState)]


def outcomes(broker: MemoryBroker) -> list[str]:
    found = [read_replay(record) for record in broker.records(f"{SHOP}.replay")]
    return [entry.result for entry in found if isinstance(entry, ReplayOutcome)]


def beside(broker: MemoryBroker) -> OffsetMap:
    """What stands beside the committed offset."""
    (topic_id,) = broker.cluster().topic_ids(["orders"]).values()
    found = read_map(broker.committed_texts(SHOP)[P0], topic_id=topic_id, offset=committed(broker) or 0)
    assert isinstance(found, OffsetMap)
    return found


def ask(broker: MemoryBroker, letter: LetterState) -> None:
    request = Request(
        run="r1",
        handler=letter.handler,
        event_id=letter.event_id,
        origin=letter.origin,
        dlq=letter.dlq,
        by="ana",
        reason="mended",
        forced=False,
        at=letter.first_failed_at,
    )
    broker.write(replay_record(f"{SHOP}.replay", request))


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "AGAIN_FIRST_S", 0.02)
    monkeypatch.setattr(atomic, "AGAIN_MOST_S", 0.05)


# ---- aborted --------------------------------------------------------------------------------------------------------------


async def test_what_an_aborted_transaction_held_goes_into_the_next_and_no_handler_runs_again() -> None:
    broker, pay = shop_broker(), Pay()
    place(broker, *numbered(20))
    broker.fail_transactions("NOT_ENOUGH_REPLICAS", times=3)

    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 20, "all is committed", worker)

    assert sorted(pay.calls) == sorted(numbered(20))
    assert children(broker) == dict.fromkeys(numbered(20), 1)
    assert (worker.counters.aborted, worker.counters.rewinds, worker.clean) == (3, 0, True)


async def test_a_key_goes_on_only_when_the_event_before_is_committed() -> None:
    broker, pay = shop_broker(), Pay()
    place(broker, "first", "second", key="one")
    broker.hold_transactions()

    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: broker.held_transactions(), "what says that it begins is held", worker)
        broker.release_transactions()
        await becomes(lambda: pay.calls, "the first is handled", worker)
        broker.hold_transactions()
        await asyncio.sleep(0.1)
        while_held = list(pay.calls)
        broker.release_transactions()
        await becomes(lambda: committed(broker) == 2, "both are committed", worker)

    assert len(while_held) <= 2
    assert pay.calls == ["first", "second"]
    assert [record.key for record in broker.records("answers")] == [b"one", b"one"] or children(broker).total() == 2


async def test_a_record_that_is_too_large_is_its_own_events_letter() -> None:
    class PayMuch(Pay):
        async def handle(self, event: Envelope[Placed], context: Context) -> Paid:
            paid = await super().handle(event, context)
            return Paid(order_id="x" * 2_000_000) if context.event_id == "e3" else paid

    broker, pay = shop_broker(), PayMuch()
    place(broker, *numbered(8))

    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 8, "all is committed", worker)

    assert children(broker) == dict.fromkeys([event for event in numbered(8) if event != "e3"], 1)
    assert [(state.event_id, state.state) for state in states(broker)] == [("e3", "open")]
    assert sorted(pay.calls) == sorted(numbered(8))


async def test_a_record_whose_topic_is_not_there_waits_alone() -> None:
    broker, pay = shop_broker(), Pay()
    broker.fail_sends("answers", "_MSG_TIMED_OUT", times=2)
    place(broker, "e0")

    async with shop(broker, pay, File()).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it went through at last", worker)

    assert children(broker) == {"e0": 1}
    assert pay.calls == ["e0"]


class File(Handler[Placed]):
    retry = ONCE

    async def handle(self, event: Envelope[Placed], context: Context) -> None: ...


# ---- nobody knows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("was_committed", [True, False])
async def test_where_nobody_knows_the_group_reads_on_from_what_is_committed(was_committed: bool) -> None:
    broker, pay = shop_broker(), Pay()
    async with shop(broker, pay).worker() as worker:
        place(broker, *numbered(10))
        await becomes(lambda: committed(broker) == 10, "the first are committed", worker)
        broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=was_committed)
        place(broker, *(f"f{number}" for number in range(10)))
        await becomes(lambda: committed(broker) == 20, "all are committed", worker)

    assert children(broker) == dict.fromkeys([*numbered(10), *(f"f{number}" for number in range(10))], 1)
    assert worker.counters.rewinds == 1
    assert len(pay.calls) >= 20


@pytest.mark.parametrize("was_committed", [True, False])
async def test_where_nobody_knows_of_a_letter_it_is_there_once(was_committed: bool) -> None:
    broker, pay = shop_broker(), Pay(failing={"bad"})
    async with shop(broker, pay).worker() as worker:
        place(broker, "good")
        await becomes(lambda: committed(broker) == 1, "the first is committed", worker)
        broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=was_committed)
        place(broker, "bad")
        await becomes(lambda: committed(broker) == 2, "the letter is committed", worker)

    (letter,) = [dlq_headers(record) for record in broker.records(f"{SHOP}.dlq")]
    assert letter["event-id"] == "bad"
    assert [(state.event_id, state.state) for state in states(broker)] == [("bad", "open")]


@pytest.mark.parametrize("was_committed", [True, False])
async def test_where_nobody_knows_of_a_replay_it_is_resolved_once(was_committed: bool) -> None:
    broker, pay = shop_broker(), Pay(failing={"bad"})
    place(broker, "bad")
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "the letter is committed", worker)
        pay.failing.clear()
        broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=was_committed)
        ask(broker, states(broker)[0])
        await becomes(lambda: outcomes(broker), "it is answered", worker)
        await becomes(lambda: worker.counters.rewinds == 1 and worker.engine.partitions, "it goes on", worker)

    assert children(broker) == {"bad": 1}
    assert [state.state for state in states(broker)] == ["open", "resolved"]
    assert outcomes(broker) == ["resolved"]


async def test_where_nobody_knows_at_the_end_the_next_one_finds_out() -> None:
    broker, pay = shop_broker(), Pay()
    async with shop(broker, pay).worker() as worker:
        place(broker, "e0")
        await becomes(lambda: committed(broker) == 1, "it is at work", worker)
        broker.hold_transactions()
        place(broker, "e1")
        await becomes(lambda: broker.held_transactions(), "a transaction is under way", worker)
        broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=True)
        asyncio.get_running_loop().call_later(0.2, broker.release_transactions)
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 2, "all is committed", worker)

    assert children(broker) == {"e0": 1, "e1": 1}


# ---- who else there is ----------------------------------------------------------------------------------------------------


async def test_of_two_with_one_id_the_older_ends_at_once_and_says_why() -> None:
    broker, older, newer = shop_broker(), Pay(), Pay()
    async with shop(broker, older).worker() as first:
        await becomes(lambda: first.engine.partitions, "it is assigned", first)
        async with shop(broker, newer).worker() as second:
            place(broker, *numbered(10))
            began_s = time.monotonic()
            failure = await has_failed(first)
            await becomes(lambda: committed(broker) == 10, "the other does it all", second)
            took_s = time.monotonic() - began_s

    assert isinstance(failure, BrokerError)
    assert (failure.code, "give each worker its own" in str(failure)) == ("_FENCED", True)
    assert children(broker) == dict.fromkeys(numbered(10), 1)
    assert took_s < 4


async def test_who_is_fenced_though_nobody_else_has_its_id_goes_on(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broker, pay = shop_broker(), Pay()
    async with shop(broker, pay, transactional_id=None).worker() as worker:
        await becomes(lambda: worker.engine.partitions, "it is assigned", worker)
        broker.fail_transactions("_FENCED", retriable=False)
        place(broker, *numbered(10))
        await becomes(lambda: committed(broker) == 10, "all is committed", worker)

    assert children(broker) == dict.fromkeys(numbered(10), 1)
    assert sorted(pay.calls) == sorted(numbered(10))


async def test_a_member_that_is_lost_in_the_middle_leaves_nothing_twice() -> None:
    broker, pay, other = shop_broker(partitions=2), Pay(), Pay()
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: len(worker.engine.partitions) == 2, "it is assigned", worker)
        place(broker, "warm")
        await becomes(lambda: children(broker) == {"warm": 1}, "it is at work", worker)
        broker.hold_transactions()
        place(broker, *numbered(20))
        await becomes(lambda: broker.held_transactions() and len(pay.calls) > 1, "a transaction is under way", worker)
        (consumer,) = broker.consumers(SHOP)
        broker.lose(consumer)
        broker.release_transactions()
        async with shop(broker, other, transactional_id="shop-2").worker() as second:
            await becomes(lambda: sum(broker.committed(SHOP).values()) == 21, "all is committed", worker, second)

    assert children(broker) == dict.fromkeys([*numbered(20), "warm"], 1)


async def test_a_replay_of_a_member_that_stood_still_meanwhile_is_done_by_its_heir_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, pay, other, goes_on = shop_broker(), Pay(failing={"bad"}), Pay(), threading.Event()
    place(broker, "bad")
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "the letter is committed", worker)
        pay.failing.clear()
        assert worker.atomic is not None
        transactor = worker.atomic._transactor
        run, begun, ended = transactor.run, list[Work](), list[Ended]()

        def stands_still(work: Work) -> Ended:
            begun.append(work)
            goes_on.wait(DEADLINE_S)
            ended.append(run(work))
            return ended[-1]

        monkeypatch.setattr(transactor, "run", stands_still)
        ask(broker, states(broker)[0])
        await becomes(lambda: len(pay.calls) == 2 and begun, "it has run the letter again", worker)
        (consumer,) = broker.consumers(SHOP)
        broker.kill(consumer)
        async with shop(broker, other, transactional_id="shop-2").worker() as second:
            await becomes(lambda: outcomes(broker), "its heir has answered", second)
            goes_on.set()
            await becomes(lambda: ended, "it goes on", second)

    assert ended[0].outcome == "aborted"
    assert children(broker) == {"bad": 1}
    assert [state.state for state in states(broker)] == ["open", "resolved"]
    assert outcomes(broker) == ["resolved"]


async def test_a_rebalance_while_a_transaction_is_held_longer_than_there_is_time_leaves_nothing_twice() -> None:
    broker, pay, other = shop_broker(partitions=2), Pay(), Pay()
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: len(worker.engine.partitions) == 2, "it is assigned", worker)
        object.__setattr__(worker.plan, "revoke_s", 0.2)
        broker.hold_transactions()
        place(broker, *numbered(20))
        await becomes(lambda: broker.held_transactions(), "a transaction is under way", worker)
        async with shop(broker, other, transactional_id="shop-2").worker() as second:
            await asyncio.sleep(0.5)
            broker.release_transactions()
            await becomes(lambda: sum(broker.committed(SHOP).values()) == 20, "all is committed", worker, second)

    assert children(broker) == dict.fromkeys(numbered(20), 1)


async def test_a_member_that_is_killed_is_followed_by_one_that_does_the_rest() -> None:
    broker, pay, other = shop_broker(), Pay(), Pay()
    place(broker, *numbered(10))
    async with shop(broker, pay, drain_s=0.1).worker() as worker:
        await becomes(lambda: children(broker).total() > 0, "it is at work", worker)
        broker.hold_transactions()
        place(broker, "late")
        await becomes(lambda: "late" in pay.calls and broker.held_transactions(), "a transaction is under way", worker)
        (consumer,) = broker.consumers(SHOP)
        broker.kill(consumer)
        async with shop(broker, other).worker() as second:  # opening its id aborts what is held
            broker.release_transactions()
            await becomes(lambda: committed(broker) == 11, "all is committed", second)

    assert children(broker) == dict.fromkeys([*numbered(10), "late"], 1)


# ---- all kinds of handlers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("handler", [PayOnThread(), PayOrRefund()], ids=["on a thread", "recovered"])
async def test_other_kinds_of_handlers_have_their_children_once(handler: Handler[Placed]) -> None:
    broker = shop_broker()
    place(broker, *numbered(30))
    broker.fail_transactions("NOT_ENOUGH_REPLICAS", times=2)

    async with shop(broker, handler).worker() as worker:
        await becomes(lambda: committed(broker) == 30, "all is committed", worker)

    assert children(broker) == dict.fromkeys(numbered(30), 1)
    assert states(broker) == []


async def test_one_at_a_time_goes_one_a_transaction() -> None:
    class PayOneAtATime(Pay):
        max_concurrency = 1

    broker, pay = shop_broker(), PayOneAtATime()
    place(broker, *numbered(10))
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 10, "all is committed", worker)

    assert worker.counters.transactions >= 10
    assert children(broker) == dict.fromkeys(numbered(10), 1)


async def test_nothing_else_commits_and_no_offset_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(consumer: MemoryConsumer, offsets: Mapping[TopicPartition, Committed]) -> None:
        assert not offsets, "a plain commit beside transactions"

    monkeypatch.setattr(MemoryConsumer, "commit", never)
    broker, book = shop_broker(), Book(retry=RetryPolicy(max_attempts=2, base_delay_s=0.0))
    broker.write(Outgoing("orders", b"other", orjson.dumps({"type": "other.type", "timestamp": "2026-11-22T22:36:07Z", "payload": {}})))
    place(broker, *numbered(50))
    seen: list[int] = []

    async with shop(broker, book).worker() as worker:

        def rises() -> bool:
            seen.append(committed(broker) or 0)
            return seen[-1] == 51

        await becomes(rises, "all is committed", worker)

    assert seen == sorted(seen)
    assert worker.counters.skipped_type == 1


async def test_what_is_finished_above_the_offset_is_not_run_again() -> None:
    gate = asyncio.Event()
    broker, pay, again = shop_broker(), Pay(gate=gate, waiting="slow"), Pay()
    place(broker, "slow", *numbered(10))
    async with shop(broker, pay, drain_s=0.05).worker() as worker:
        await becomes(lambda: children(broker).total() == 10, "the others are through", worker)
    assert committed(broker) == 0
    async with shop(broker, again).worker() as worker:
        await becomes(lambda: committed(broker) == 11, "all is committed", worker)

    assert again.calls == ["slow"]
    assert children(broker) == dict.fromkeys(["slow", *numbered(10)], 1)


async def test_one_at_a_time_goes_on_after_nobody_knew() -> None:
    class PayOneAtATime(Pay):
        max_concurrency = 1

    broker, pay = shop_broker(), PayOneAtATime()
    async with shop(broker, pay).worker() as worker:
        place(broker, *numbered(3))
        await becomes(lambda: committed(broker) == 3, "it is at work", worker)
        broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=True)
        place(broker, "a", "b", "c")
        await becomes(lambda: committed(broker) == 6, "all is committed", worker)

    assert children(broker) == dict.fromkeys([*numbered(3), "a", "b", "c"], 1)


async def test_after_a_clean_end_no_bad_end_is_counted() -> None:
    broker, pay = shop_broker(), Pay()
    place(broker, "e0")
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "all is committed", worker)
        during = beside(broker).unclean
    assert (during, beside(broker).unclean) == (1, 0)


async def test_where_a_group_begins_is_committed_though_the_first_transaction_is_aborted() -> None:
    broker, book = shop_broker(), Book()
    place(broker, "before")
    broker.fail_transactions("NOT_ENOUGH_REPLICAS")
    async with shop(broker, book, start="latest").worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it is pinned", worker)
    assert book.calls == []


# ---- what can't go on -----------------------------------------------------------------------------------------------------


async def test_a_broker_that_takes_little_beside_an_offset_ends_the_worker() -> None:
    broker, pay = shop_broker(), Pay()
    broker.fail_transactions(METADATA_TOO_LARGE, retriable=False)
    place(broker, "e0")
    async with shop(broker, pay).worker() as worker:
        failure = await has_failed(worker)

    assert "raise the broker's offset.metadata.max.bytes to 4096" in str(failure)
    assert children(broker) == {}


async def test_a_coordinator_that_is_away_at_the_start_is_waited_for() -> None:
    broker, pay = shop_broker(), Pay()
    broker.fail_opens("_TIMED_OUT", times=2)
    place(broker, "e0")
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "all is committed", worker)

    assert children(broker) == {"e0": 1}


async def test_a_right_that_is_missing_at_the_start_ends_it() -> None:
    broker = shop_broker()
    broker.fail_opens("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", retriable=False)

    with pytest.raises(BrokerError, match="TRANSACTIONAL_ID_AUTHORIZATION_FAILED"):
        async with shop(broker, Pay()).worker():
            pass


async def test_a_child_is_seen_with_the_offset_of_its_event() -> None:
    broker, pay = shop_broker(), Pay()
    async with shop(broker, pay).worker() as worker:
        await becomes(lambda: worker.engine.partitions, "it is assigned", worker)
        for number in range(20):
            place(broker, f"e{number}")
            await becomes(lambda: children(broker).total() == number + 1, "its child is there", worker)  # noqa: B023
            assert committed(broker) == number + 1


async def test_crashes_are_counted_in_transactions_before_anything_is_handed_out() -> None:
    broker, pay = shop_broker(), Pay()
    place(broker, "e0")
    broker.hold_transactions()
    async with shop(broker, pay, drain_s=0.05).worker() as worker:
        await becomes(lambda: broker.held_transactions(), "it says that it begins", worker)
        await asyncio.sleep(0.05)
        called_before = list(pay.calls)
        broker.release_transactions()
        await becomes(lambda: committed(broker) == 1, "all is committed", worker)

    assert called_before == []
