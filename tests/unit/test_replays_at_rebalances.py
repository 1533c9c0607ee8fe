"""Is each request answered once and rightly, whatever becomes of its partition, its letter, and the thread that follows the log?"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import pytest
from msgspec.structs import replace as changed

from choreo import BrokerError, Context, Envelope, Event, Handler, MemoryStore, RetryPolicy, Service, ServiceSettings
from choreo.broker import Report
from choreo.core.partition import STOPPING
from choreo.letter import LetterState, Place, ReplayOutcome, Request, read_replay, read_state, state_record
from choreo.record import Outgoing, Record, TopicPartition
from choreo.replay.run import Reason, run_entries, write_run
from choreo.runtime.history import LetterKey
from choreo.runtime.replay_log import letter_of
from choreo.runtime.worker import Plan, Worker
from choreo.store import Store
from choreo.testing import MemoryBroker
from choreo.testing.memory_consumer import MemoryReader
from choreo.testing.memory_producer import MemoryProducer

T = TypeVar("T")

DEADLINE_S = 10.0
FIRST, SECOND = TopicPartition("orders", 0), TopicPartition("orders", 1)
FOLLOWER = "choreo-replay"


class Placed(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class Work(Handler[Placed]):
    """Fails while it is `broken`, else waits for its gate; `begun` and `done` hold the event ids."""

    name = "work"
    retry = RetryPolicy(max_attempts=1)
    max_concurrency = 1

    def __init__(self, message: str = "no") -> None:
        self.broken = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun: list[str] = []
        self.done: list[str] = []
        self._message = message

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.begun.append(context.event_id)
        if self.broken:
            raise ValueError(self._message)
        await self.gate.wait()
        self.done.append(context.event_id)


class Hasty(Service):
    """A service whose revokes wait for a fifth of a second only."""

    def plan(self, settings: ServiceSettings) -> Plan:
        return replace(super().plan(settings), revoke_s=0.2)


class Shop(MemoryBroker):
    """The broker of a service `shop`, and what a test does with its letters. `before` is called in the thread that follows the
    replay log, with the name of the reader's method and the topic, before its reader answers. What is sent to the topic that
    is `silent` is written, but nobody hears of it for now."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[str, str], None] = lambda asked, topic: None
        self.silent = ""
        self.create_topic("orders", partitions=2)
        for topic in ("dlq", "letters", "replay"):
            self.create_topic(f"shop.{topic}")

    def reader(self) -> MemoryReader:
        return _Reader(self)

    def producer(self) -> MemoryProducer:
        return _Producer(self)

    # ---- what goes in ---------------------------------------------------------------------------------------------------

    def put(self, event_id: str, partition: int = 0) -> None:
        value = b'{"type": "order.placed", "timestamp": "2026-01-01T00:00:00Z", "payload": {"order_id": "o"}}'
        self.write(Outgoing("orders", event_id.encode(), value, [("choreo-id", event_id.encode())], partition))

    def ask(self, run: str, *letters: LetterState) -> None:
        write_run(self, "shop.replay", run_entries(run, letters, Reason(by="ana"), datetime.now(UTC)))

    def once(self, asked: str, topic: str, then: Callable[[], None]) -> None:
        """`then` is called when the follower's reader is next asked so about that topic."""

        def before(*actual: str) -> None:
            if actual == (asked, topic):
                self.before = lambda asked, topic: None
                then()

        self.before = before

    # ---- what comes out -------------------------------------------------------------------------------------------------

    def states(self) -> list[LetterState]:
        """All states that were written, the oldest first."""
        found = [read_state(record) for record in self.records("shop.letters")]
        return [state for state in found if isinstance(state, LetterState)]

    def outcomes(self) -> list[tuple[str, str, str]]:
        """Run, event and result of all outcomes that were written, the oldest first."""
        return [(outcome.run, outcome.event_id, outcome.result) for outcome in self.answers()]

    def answers(self) -> list[ReplayOutcome]:
        entries = [read_replay(record) for record in self.records("shop.replay")]
        return [entry for entry in entries if isinstance(entry, ReplayOutcome)]


class _Reader(MemoryReader):
    def __init__(self, shop: Shop) -> None:
        super().__init__(shop._state)
        self._shop = shop

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        self._asked("ends", topic)
        return super().ends(topic)

    def read(self, timeout_s: float) -> list[Record]:
        self._asked("read", next((partition.topic for partition in self.position()), ""))
        return super().read(timeout_s)

    def _asked(self, what: str, topic: str) -> None:
        if threading.current_thread().name == FOLLOWER:
            self._shop.before(what, topic)


class _Producer(MemoryProducer):
    def __init__(self, shop: Shop) -> None:
        super().__init__(shop._state)
        self._shop = shop
        self._unheard: list[Callable[[], None]] = []

    def send(self, record: Outgoing, report: Callable[[Report], None]) -> None:
        def hear(said: Report) -> None:
            if self._shop.silent == record.topic:
                self._unheard.append(partial(report, said))
            else:
                report(said)

        super().send(record, hear)

    def poll(self, timeout_s: float) -> int:
        while self._unheard and not self._shop.silent:
            self._unheard.pop(0)()
        return super().poll(timeout_s)


@pytest.fixture(autouse=True)
def no_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.runtime.replay_log.AGAIN_S", 0.01)


@pytest.fixture
def shop() -> Shop:
    return Shop()


def service(shop: Shop, work: Work, store: Store | None = None, *, kind: type[Service] = Service, drain_s: float = 2.0) -> Service:
    """Its effects are `offsets` unless it has a store: then nothing but the replays' own order keeps a letter from running twice."""
    settings = ServiceSettings(broker=shop, drain_s=drain_s, effects=None if store is not None else "offsets")
    return kind("shop", handlers=[work], store=store, settings=settings)


async def until(condition: Callable[[], T], what: str, *workers: Worker) -> T:
    """The first true answer; raises what a worker failed of."""
    ends_at = time.monotonic() + DEADLINE_S
    while not (answer := condition()):
        for worker in workers:
            if worker.failure.done():
                worker.failure.result()
        assert time.monotonic() < ends_at, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.002)
    return answer


async def died(shop: Shop, worker: Worker, *events: tuple[str, int]) -> Sequence[LetterState]:
    """The letters of these events, each with its partition; the offsets are committed."""
    for event_id, partition in events:
        shop.put(event_id, partition)
    await until(lambda: len(shop.states()) == len(events), "the events are dead-lettered", worker)
    ends = {TopicPartition("orders", partition) for _, partition in events}
    await until(lambda: all(shop.committed("shop").get(partition) for partition in ends), "their offsets are committed", worker)
    return shop.states()


async def answered(shop: Shop, count: int, *workers: Worker) -> list[tuple[str, str, str]]:
    await until(lambda: len(shop.outcomes()) >= count, f"{count} outcomes", *workers)
    return shop.outcomes()


async def owns(worker: Worker, *partitions: TopicPartition) -> None:
    await until(lambda: worker.engine.partitions.keys() == set(partitions), f"it owns {partitions}", worker)


def lose(shop: Shop) -> None:
    (consumer,) = shop.consumers("shop")
    shop.lose(consumer)


# ---- partitions that go and come back -------------------------------------------------------------------------------


async def test_a_request_whose_partition_was_lost_while_it_ran_is_begun_again_when_it_comes_back(shop: Shop) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        work.broken = False
        work.gate.clear()
        shop.ask("r1", letter)
        await until(lambda: work.begun == ["e1", "e1"], "the replay has begun", worker)

        lose(shop)
        await until(lambda: worker.counters.rebalances == 3, "lost and assigned again", worker)
        work.gate.set()
        outcomes = await answered(shop, 1, worker)

    assert outcomes == [("r1", "e1", "resolved")]


async def test_a_request_that_was_cut_short_by_a_revoke_is_begun_again_when_its_partition_comes_back(shop: Shop) -> None:
    works = [Work(), Work()]
    async with service(shop, works[0], kind=Hasty).worker() as first:
        (letter,) = await died(shop, first, ("e1", 1))
        for work in works:
            work.broken = False
            work.gate.clear()
        shop.ask("r1", letter)
        await until(lambda: len(works[0].begun) == 2, "the replay has begun", first)

        async with service(shop, works[1], kind=Hasty, drain_s=0.0).worker() as second:
            await until(lambda: works[1].begun == ["e1"], "the new owner has begun it", first, second)
        await owns(first, FIRST, SECOND)
        works[0].gate.set()
        outcomes = await answered(shop, 1, first)

    assert outcomes == [("r1", "e1", "resolved")]
    assert [work.done for work in works] == [["e1"], []]


async def test_no_outcome_is_written_for_an_assignment_that_is_over(shop: Shop) -> None:
    work = Work()
    async with service(shop, work, MemoryStore()).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        work.broken = False
        shop.hold_sends("shop.letters")
        shop.ask("r1", letter)
        await until(lambda: work.done == ["e1"], "the replay has succeeded", worker)

        lose(shop)
        await until(lambda: worker.counters.duplicates == 1, "it is asked for once more, and is done already", worker)
        shop.release_sends("shop.letters")
        await answered(shop, 1, worker)
        shop.ask("r2", letter)
        await until(lambda: any(run == "r2" for run, _, _ in shop.outcomes()), "the log has gone on", worker)

    assert shop.outcomes() == [("r1", "e1", "already-done"), ("r2", "e1", "already-done")]


async def test_a_letter_that_was_fetched_for_an_assignment_that_is_over_does_not_run(shop: Shop) -> None:
    works = [Work(), Work()]
    reached, go_on = threading.Event(), threading.Event()

    def wait_in_the_fetch() -> None:
        reached.set()
        go_on.wait(DEADLINE_S)

    async with service(shop, works[0]).worker() as first:
        (letter,) = await died(shop, first, ("e1", 1))
        works[0].broken = works[1].broken = False
        shop.once("ends", "shop.dlq", wait_in_the_fetch)
        shop.ask("r1", letter)
        await until(reached.is_set, "the letter is being fetched", first)

        async with service(shop, works[1]).worker() as second:
            await answered(shop, 1, first, second)
        await owns(first, FIRST, SECOND)
        go_on.set()
        shop.ask("r2", letter)
        outcomes = await answered(shop, 2, first)

    assert outcomes == [("r1", "e1", "resolved"), ("r2", "e1", "already-done")]
    assert [work.done for work in works] == [[], ["e1"]]


async def test_a_revoke_waits_until_what_was_replayed_is_answered(shop: Shop) -> None:
    works = [Work(), Work()]
    async with service(shop, works[0]).worker() as first:
        (letter,) = await died(shop, first, ("e1", 1))
        works[0].broken = works[1].broken = False
        shop.hold_sends("shop.letters")
        shop.ask("r1", letter)
        await until(lambda: works[0].done == ["e1"], "the replay has succeeded", first)

        async with service(shop, works[1]).worker() as second:
            await until(lambda: going(first, SECOND) or SECOND in second.engine.partitions, "the partition goes", first, second)
            shop.release_sends("shop.letters")
            await owns(second, SECOND)
            shop.ask("r2", letter)
            outcomes = await answered(shop, 2, first, second)

    assert outcomes == [("r1", "e1", "resolved"), ("r2", "e1", "already-done")]
    assert works[1].done == []


def going(worker: Worker, wanted: TopicPartition) -> bool:
    partition = worker.engine.partitions.get(wanted)
    return partition is not None and partition.state is STOPPING


@pytest.mark.parametrize("topic", ["shop.letters", "shop.replay"])
async def test_a_drain_ends_when_what_was_replayed_is_answered(shop: Shop, topic: str) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        work.broken = False
        shop.ask("r1", letter)
        shop.hold_sends(topic)
        await until(lambda: work.done == ["e1"], "the replay has succeeded", worker)

        draining = asyncio.create_task(worker.membership.drain(worker.engine.stop([FIRST]), math.inf))
        await asyncio.sleep(0)
        ended_at_once = draining.done()
        shop.release_sends(topic)
        clean = await draining

    assert (ended_at_once, clean) == (False, True)
    assert shop.outcomes() == [("r1", "e1", "resolved")]


async def test_a_stop_whose_time_is_over_before_a_replay_is_answered_is_not_clean(shop: Shop) -> None:
    work = Work()
    async with service(shop, work, drain_s=0.1).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        work.broken = False
        shop.ask("r1", letter)
        shop.hold_sends("shop.letters")
        await until(lambda: work.done == ["e1"], "the replay has succeeded", worker)

    assert not worker.clean
    assert shop.outcomes() == []


# ---- letters of partitions that are gone ----------------------------------------------------------------------------


async def test_a_letter_acknowledged_after_its_partition_went_stays_an_abandoned_copy(shop: Shop) -> None:
    dies, works = Work(), Work()
    works.broken = False
    async with service(shop, dies, kind=Hasty).worker() as first:
        shop.hold_sends("shop.dlq")
        shop.put("e1", 1)
        await until(lambda: dies.begun == ["e1"], "it died, and its letter is on its way", first)

        async with service(shop, works).worker() as second:
            await until(lambda: works.done == ["e1"], "the new owner has handled it", first, second)
            shop.release_sends("shop.dlq")
            await until(lambda: first.counters.late == 1, "the letter came too late", first, second)

    assert (len(shop.records("shop.dlq")), shop.states()) == (1, [])
    assert first.counters.dead_lettered == 0


@pytest.mark.parametrize("topic", ["shop.dlq", "shop.letters"])
async def test_a_letter_that_could_not_be_written_is_not_tried_again_when_its_partition_is_gone(
    shop: Shop, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    later: list[Callable[[], None]] = []
    work = Work()
    async with service(shop, work).worker() as worker:
        monkeypatch.setattr(worker.sends, "later", later.append)
        shop.fail_sends(topic, "MSG_SIZE_TOO_LARGE")
        shop.put("e1", 0)
        (try_again,) = await until(lambda: later, "it died, and its letter can't be written", worker)

        work.broken = False
        lose(shop)
        await until(lambda: worker.counters.rebalances == 3, "lost and assigned again", worker)
        try_again()
        await until(lambda: work.done == ["e1"], "it came again, and its handler had a free place", worker)

    assert (worker.counters.late, shop.states()) == (1, [])
    assert len(shop.records("shop.dlq")) == (topic == "shop.letters")


async def test_a_letter_whose_error_is_no_utf_8_is_written_and_can_be_replayed(shop: Shop) -> None:
    work = Work("no file caf\udce9")
    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        shop.ask("r1", letter)
        await answered(shop, 1, worker)

    assert letter.message == "orders[0]@0: no file caf\\udce9"
    assert [(answer.result, answer.error) for answer in shop.answers()] == [("failed-again", letter.message)]
    assert len(shop.records("shop.dlq")) == 2


# ---- one letter, several requests -----------------------------------------------------------------------------------


async def test_a_letter_that_two_runs_ask_for_at_once_runs_once(shop: Shop) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        letter, other = await died(shop, worker, ("e1", 0), ("e2", 0))
        work.broken = False
        work.gate.clear()
        shop.ask("r1", letter)
        shop.ask("r2", letter)
        shop.ask("r3", changed(other, event_id="e-none"))
        await answered(shop, 1, worker)  # so the second run has been read, too
        work.gate.set()
        outcomes = await answered(shop, 3, worker)

    assert outcomes == [("r3", "e-none", "refused"), ("r1", "e1", "resolved"), ("r2", "e1", "already-done")]
    assert work.done == ["e1"]


async def test_the_second_run_has_its_turn_also_when_the_log_tells_of_the_first_ones_outcome_before_the_producer(shop: Shop) -> None:
    work, reads = Work(), 0

    def count(asked: str, topic: str) -> None:
        nonlocal reads
        reads += (asked, topic) == ("read", "shop.replay")

    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        work.broken = False
        shop.ask("r1", letter)
        shop.ask("r2", letter)
        shop.silent = "shop.replay"
        await answered(shop, 1, worker)
        shop.before = count
        await until(lambda: reads == 2, "the follower has read the outcome and gone on", worker)
        shop.silent = ""
        outcomes = await answered(shop, 2, worker)

    assert outcomes == [("r1", "e1", "resolved"), ("r2", "e1", "already-done")]


async def test_a_letter_that_fails_again_runs_for_the_next_run_with_its_newer_letter(shop: Shop) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        shop.ask("r1", letter)
        shop.ask("r2", letter)
        outcomes = await answered(shop, 2, worker)

    assert outcomes == [("r1", "e1", "failed-again"), ("r2", "e1", "failed-again")]
    assert [(state.run, state.dlq.offset) for state in shop.states()] == [("", 0), ("r1", 1), ("r2", 2)]


async def test_of_an_event_that_died_on_two_partitions_the_letter_that_was_asked_for_is_resolved(shop: Shop) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        asked, _ = await died(shop, worker, ("e1", 0), ("e1", 1))
        work.broken = False
        shop.ask("r1", asked)
        outcomes = await answered(shop, 1, worker)

    assert outcomes == [("r1", "e1", "resolved")]
    assert [(state.state, state.origin, state.dlq) for state in shop.states()[2:]] == [("resolved", asked.origin, asked.dlq)]


# ---- the follower ---------------------------------------------------------------------------------------------------


def fails() -> None:
    raise BrokerError("a broker is down, as the test asked", code="_TIMED_OUT")


@pytest.mark.parametrize(("asked", "topic"), [("ends", "shop.letters"), ("ends", "shop.dlq"), ("read", "shop.dlq")])
async def test_a_letter_whose_fetch_failed_is_fetched_again(shop: Shop, asked: str, topic: str) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        letters = await died(shop, worker, ("e1", 0), ("e2", 0))
        work.broken = False
        shop.once(asked, topic, fails)
        shop.ask("r1", *letters)
        outcomes = await answered(shop, 2, worker)

    assert outcomes == [("r1", "e1", "resolved"), ("r1", "e2", "resolved")]
    assert work.done == ["e1", "e2"]


@pytest.mark.parametrize("asked", ["ends", "read"])
async def test_a_partition_becomes_ready_also_when_the_log_could_not_be_read_at_its_assignment(shop: Shop, asked: str) -> None:
    # The end is asked for when the order comes; what stands before it is read after that.
    work = Work()
    shop.once("ends", "shop.replay", fails if asked == "ends" else lambda: shop.once("read", "shop.replay", fails))
    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        work.broken = False
        shop.ask("r1", letter)
        outcomes = await answered(shop, 1, worker)

    assert outcomes == [("r1", "e1", "resolved")]


async def test_a_run_that_was_answered_does_not_run_again_when_the_log_could_not_be_read(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A read may give one record at a time: then a request stands there alone, and its answer comes later.
    monkeypatch.setattr("choreo.testing.memory_consumer._MAX_READ_RECORDS", 1)
    work = Work()
    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        shop.ask("r1", letter)
        await answered(shop, 1, worker)

        failed = threading.Event()

        def fails_and_says_so() -> None:
            failed.set()
            fails()

        shop.once("read", "shop.replay", fails_and_says_so)
        await until(failed.is_set, "the log could not be read", worker)
        shop.ask("r2", letter)
        await until(lambda: any(run == "r2" for run, _, _ in shop.outcomes()), "the log has gone on", worker)

    assert shop.outcomes() == [("r1", "e1", "failed-again"), ("r2", "e1", "failed-again")]
    assert len(work.begun) == 3


async def test_a_letter_in_a_partition_that_the_dlq_does_not_have_is_refused_and_the_next_one_runs(shop: Shop) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        odd = changed(letter, event_id="e2", dlq=Place("shop.dlq", 9, 0))
        shop.write(state_record("shop.letters", odd, 1))
        work.broken = False
        shop.ask("r1", odd, letter)
        outcomes = await answered(shop, 2, worker)

    assert outcomes == [("r1", "e2", "refused"), ("r1", "e1", "resolved")]
    assert shop.answers()[0].error.startswith("its letter shop.dlq[9]@0 is gone")


async def test_an_error_that_must_not_happen_in_the_follower_ends_the_worker(shop: Shop) -> None:
    def breaks() -> None:
        raise RuntimeError("a mistake of ours")

    async with service(shop, Work()).worker() as worker:
        await owns(worker, FIRST, SECOND)
        shop.once("read", "shop.replay", breaks)

        with pytest.raises(RuntimeError, match="a mistake of ours"):
            await asyncio.wait_for(worker.failure, DEADLINE_S)


async def test_an_error_that_must_not_happen_when_a_letter_has_come_ends_the_worker(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError("a mistake of ours")

    async with service(shop, Work()).worker() as worker:
        (letter,) = await died(shop, worker, ("e1", 0))
        monkeypatch.setattr(worker.reader, "read_for", breaks)
        shop.ask("r1", letter)

        with pytest.raises(RuntimeError, match="a mistake of ours"):
            await asyncio.wait_for(worker.failure, DEADLINE_S)


# ---- one request among others ---------------------------------------------------------------------------------------


async def test_a_letter_whose_topic_is_gone_is_refused_and_holds_up_no_other(shop: Shop) -> None:
    work = Work()
    async with service(shop, work).worker() as worker:
        letters = await died(shop, worker, ("e1", 0), ("e2", 0))
        shop.write(state_record("shop.letters", changed(letters[0], dlq=Place("old-prefix.shop.dlq", 0, 0)), 1))
        work.broken = False
        shop.ask("r1", *letters)
        outcomes = await answered(shop, 2, worker)

    assert sorted(outcomes) == [("r1", "e1", "refused"), ("r1", "e2", "resolved")]
    (why,) = [answer.error for answer in shop.answers() if answer.event_id == "e1"]
    assert why.startswith("its letter old-prefix.shop.dlq[0]@0 can't be read: ")


async def test_an_entry_of_the_log_is_not_paid_for_by_looking_at_the_requests_that_wait(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []

    def notes(request: Request) -> LetterKey:
        looked_at.append(request.event_id)
        return letter_of(request)

    async with service(shop, Work()).worker() as worker:
        await owns(worker, FIRST, SECOND)
        worker.replays.came([elsewhere(f"e{number}") for number in range(100)])
        monkeypatch.setattr("choreo.runtime.replays.letter_of", notes)

        worker.replays.came([ReplayOutcome(run="r1", handler="work", event_id="e0", result="resolved", at=datetime.now(UTC))])
        worker.replays.came([elsewhere("e100")])
        looked_at_so_far = list(looked_at)  # before anything else runs: to catch up with the log is to look at all that waits

    assert looked_at_so_far == ["e100"]


def elsewhere(event_id: str) -> Request:
    """A request for a letter whose partition no member here has."""
    return Request(
        run="r1",
        handler="work",
        event_id=event_id,
        origin=Place("orders", 7, 0),
        dlq=Place("shop.dlq", 0, 0),
        by="ana",
        reason="",
        forced=False,
        at=datetime.now(UTC),
    )
