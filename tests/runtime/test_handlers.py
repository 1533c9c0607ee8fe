"""What becomes of an event whose handler does what none should: cancels, hangs, or raises what can't be judged?"""

from __future__ import annotations

import asyncio
import math
import os
import threading
from collections.abc import Iterator

import pytest

from choreo.envelope import Envelope
from choreo.errors import StateError, TransientError
from choreo.handler import Context, Failure, Handler
from choreo.letter import dlq_headers
from choreo.runtime import commits as commits_module
from tests.runtime.shop import (
    DEADLINE_S,
    ONCE,
    P1,
    SHOP,
    TWICE,
    Book,
    File,
    Placed,
    becomes,
    committed,
    has_failed,
    numbered,
    place,
    shop,
    shop_broker,
)

THREADS_OF_THE_LOOP = min(32, (os.cpu_count() or 1) + 4)
"""What asyncio's own executor has, for all that is run in it."""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Held shut by the test, and open after it: threads that still wait for it end."""
    gate = threading.Event()
    yield gate
    gate.set()


# ---- cancellation ---------------------------------------------------------------------------------------------------------


async def test_a_handler_that_cancels_its_own_task_has_failed_like_any_other() -> None:
    async def cancels_itself(context: Context) -> None:
        if context.event_id == "e0":
            current_task().cancel()  # as a library does that calls cancel() and never uncancel()
            await asyncio.sleep(0)

    broker, book = shop_broker(), Book(cancels_itself, retry=TWICE)
    place(broker, "e0", "e1", key="k")
    place(broker, "e2", "e3", "e4", "e5")

    async with shop(broker, book, concurrency=2).worker() as worker:
        await becomes(lambda: committed(broker) == 6, "all are settled", worker)

    (letter,) = broker.records(f"{SHOP}.dlq")
    why = dlq_headers(letter)
    assert (why["event-id"], why["error-type"], why["attempts"]) == ("e0", "TransientError", "2")
    assert (book.calls.count("e0"), sorted(book.done)) == (2, ["e1", "e2", "e3", "e4", "e5"])


async def test_a_cancellation_that_a_handler_left_over_is_not_paid_for_by_those_that_come_after() -> None:
    left_over: list[int] = []

    async def leaves_one_over(context: Context) -> None:
        left_over.append(current_task().cancelling())
        try:
            current_task().cancel()
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            pass
        if context.event_id == "e3" and context.attempt == 1:
            cancelled = asyncio.get_running_loop().create_future()
            cancelled.cancel()
            await cancelled

    broker, book = shop_broker(), Book(leaves_one_over, retry=TWICE)
    place(broker, *numbered(6))

    async with shop(broker, book, concurrency=2).worker() as worker:
        await becomes(lambda: committed(broker) == 6, "all are settled", worker)

    assert (sorted(book.done), left_over) == (numbered(6), [0] * 7)
    assert (worker.counters.retried, worker.counters.dead_lettered) == (1, 0)


@pytest.mark.parametrize("count", [1, 3])
async def test_a_handler_that_cancels_its_task_as_its_last_act_has_succeeded_and_no_other_pays_for_it(count: int) -> None:
    async def cancels_itself_at_the_end(context: Context) -> None:
        await asyncio.sleep(0)
        if context.event_id == "e0":
            current_task().cancel()

    broker, book = shop_broker(), Book(cancels_itself_at_the_end)
    place(broker, *numbered(count))

    async with shop(broker, book, concurrency=1).worker() as worker:
        await becomes(lambda: committed(broker) == count, "all are settled", worker)
        place(broker, "later")
        await becomes(lambda: committed(broker) == count + 1, "what comes later is settled", worker)

    assert book.done == [*numbered(count), "later"]
    assert (worker.counters.handled, worker.counters.retried, worker.counters.dead_lettered) == (count + 1, 0, 0)


class CancelsItsRecovery(Book):
    """Fails, and so does its `recover`, by its own cancellation."""

    def __init__(self) -> None:
        super().__init__(self._fail)

    async def _fail(self, context: Context) -> None:
        raise RuntimeError("no card")

    async def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> None:
        current_task().cancel()
        await asyncio.sleep(0)


async def test_a_recover_that_cancels_its_own_task_has_failed_and_is_a_letter() -> None:
    broker, book = shop_broker(), CancelsItsRecovery()
    place(broker, "e0")

    async with shop(broker, book, drain_s=0.05).worker() as worker:
        await becomes(lambda: worker.counters.dead_lettered or len(book.calls) > 1, "it is a letter", worker)

    assert (book.calls, worker.counters.dead_lettered) == (["e0"], 1)


async def test_a_task_of_the_worker_that_somebody_else_cancels_fails_the_worker() -> None:
    broker = shop_broker()

    async with shop(broker, Book(), concurrency=1).worker() as worker:
        (turn,) = [task for task in asyncio.all_tasks() if "Worker.turn" in repr(task.get_coro())]
        turn.cancel()
        failure = await has_failed(worker)

    assert isinstance(failure, StateError)


def current_task() -> asyncio.Task[object]:
    task = asyncio.current_task()
    assert task is not None
    return task


# ---- the cancellation of its timeout is swallowed -------------------------------------------------------------------------


async def test_a_handler_that_goes_on_after_its_timeout_is_cancelled_again_counted_and_told(caplog: pytest.LogCaptureFixture) -> None:
    cancelled: list[int] = []

    async def swallows_three(context: Context) -> None:
        while len(cancelled) < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:  # "except BaseException: log it, try again"
                cancelled.append(context.attempt)

    broker, book = shop_broker(), Book(swallows_three, timeout_s=0.02)
    place(broker, "e0")

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it is settled", worker)

    told = [record.getMessage() for record in caplog.records if "goes on though" in record.getMessage()]
    assert told == ["book: orders[0]@0 goes on though it was cancelled; its key waits; cancelled again"] * 2
    assert (cancelled, book.done, worker.counters.stuck) == ([1, 1, 1], ["e0"], 2)


async def test_a_handler_that_swallowed_its_timeout_is_cut_short_when_its_partition_is_lost() -> None:
    cancelled: list[str] = []

    async def swallows_its_timeout(context: Context) -> None:
        if len(book.calls) > 1:
            return
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("timeout")
        (consumer,) = broker.consumers(SHOP)
        broker.lose(consumer)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append("lost")

    broker, book = shop_broker(), Book(swallows_its_timeout, timeout_s=0.4)  # far longer than it takes to hear of the loss
    place(broker, "e0")

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it was handled anew", worker)

    assert (cancelled, book.calls, book.done) == (["timeout", "lost"], ["e0", "e0"], ["e0"])
    assert (worker.counters.stuck, worker.counters.late, worker.counters.dead_lettered) == (0, 0, 0)


# ---- a plain `def recover` that hangs -------------------------------------------------------------------------------------


class AsksAGateway(Handler[Placed]):
    """Fails; its plain `recover` waits for the gate. `asking` counts those that have begun."""

    retry = ONCE

    def __init__(self, gate: threading.Event, *, timeout_s: float) -> None:
        self.asking = 0
        self.timeout_s = timeout_s
        self._gate = gate

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        raise RuntimeError("no card")

    def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> None:
        self.asking += 1
        self._gate.wait(2 * DEADLINE_S)


async def test_a_plain_recover_that_hangs_is_a_letter_after_timeout_s(gate: threading.Event) -> None:
    broker, handler = shop_broker(), AsksAGateway(gate, timeout_s=0.05)
    place(broker, "e0")

    async with shop(broker, handler).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it is settled", worker)

    (letter,) = broker.records(f"{SHOP}.dlq")
    assert dlq_headers(letter)["error-type"] == "HandlerTimeoutError"
    assert (handler.asking, worker.counters.recovered, worker.counters.dead_lettered) == (1, 0, 1)


async def test_plain_recovers_that_hang_do_not_hold_a_stop_longer_than_it_may_drain(gate: threading.Event) -> None:
    broker, handler = shop_broker(), AsksAGateway(gate, timeout_s=60.0)
    place(broker, *numbered(THREADS_OF_THE_LOOP))

    try:
        async with asyncio.timeout(DEADLINE_S):
            async with shop(broker, handler, drain_s=0.05, revoke_s=0.05).worker() as worker:
                await becomes(lambda: handler.asking == THREADS_OF_THE_LOOP, "all of them hang", worker)
    finally:
        gate.set()

    assert (worker.clean, committed(broker), broker.consumers(SHOP)) == (False, 0, [])


async def test_handlers_that_hold_all_threads_of_the_loop_do_not_hold_a_stop_either(gate: threading.Event) -> None:
    async def asks_on_a_thread(context: Context) -> None:
        await asyncio.get_running_loop().run_in_executor(None, gate.wait, 2 * DEADLINE_S)

    broker, book = shop_broker(), Book(asks_on_a_thread)
    place(broker, *numbered(THREADS_OF_THE_LOOP))

    try:
        async with asyncio.timeout(DEADLINE_S):
            async with shop(broker, book, drain_s=0.05, revoke_s=0.05).worker() as worker:
                await becomes(lambda: len(book.calls) == THREADS_OF_THE_LOOP, "all of them hang", worker)
    finally:
        gate.set()

    assert (worker.clean, committed(broker), broker.consumers(SHOP)) == (False, 0, [])


async def test_handlers_that_hold_all_threads_of_the_loop_do_not_hold_a_rebalance_either(gate: threading.Event) -> None:
    async def asks_on_a_thread(context: Context) -> None:
        if context.event_id != "first":
            await asyncio.get_running_loop().run_in_executor(None, gate.wait, 2 * DEADLINE_S)

    broker, book = shop_broker(), Book(asks_on_a_thread)
    place(broker, "first")

    try:
        # Whoever accepts lost offsets looks at an assignment where the logs begin and end.
        async with shop(broker, book, drain_s=0.05, revoke_s=0.05, accept_lost_offsets=True).worker() as worker:
            await becomes(lambda: committed(broker) == 1, "it has a committed offset", worker)
            place(broker, *numbered(THREADS_OF_THE_LOOP))
            await becomes(lambda: len(book.calls) == 1 + THREADS_OF_THE_LOOP, "all of them hang", worker)
            (consumer,) = broker.consumers(SHOP)
            broker.lose(consumer)
            await becomes(lambda: worker.counters.rebalances == 3 and worker.engine.partitions, "it was assigned again", worker)
            gate.set()
            await becomes(lambda: committed(broker) == 1 + THREADS_OF_THE_LOOP, "all are settled", worker)
    finally:
        gate.set()

    assert sorted(set(book.done)) == sorted(["first", *numbered(THREADS_OF_THE_LOOP)])


# ---- on threads -----------------------------------------------------------------------------------------------------------


class Busy(TransientError):
    """What a library makes of a Retry-After header: its seconds are text."""

    def __init__(self) -> None:
        Exception.__init__(self, "busy")
        vars(self)["retry_after_s"] = "30"


async def test_an_outcome_of_a_thread_that_can_not_be_judged_fails_the_worker() -> None:
    def is_busy(context: Context) -> None:
        raise Busy

    broker = shop_broker()
    place(broker, "e0", "e1", key="k")

    async with shop(broker, File(is_busy, retry=TWICE), drain_s=0.05, revoke_s=0.05).worker() as worker:
        failure = await has_failed(worker)

    assert isinstance(failure, TypeError)
    assert committed(broker) in (None, 0)


async def test_nothing_is_committed_any_more_after_an_error_that_must_not_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    def is_busy(context: Context) -> None:
        if context.event_id == "busy":
            raise Busy

    monkeypatch.setattr(commits_module, "EVERY_S", math.inf)  # only what leaves the group would commit
    broker = shop_broker(partitions=2)

    async with shop(broker, File(is_busy, retry=TWICE), drain_s=0.05, revoke_s=0.05).worker() as worker:
        place(broker, "e0", partition=1)
        await becomes(lambda: worker.counters.handled == 1, "it is handled", worker)
        place(broker, "busy", partition=0)
        failure = await has_failed(worker)

    assert isinstance(failure, TypeError)
    assert committed(broker, P1) == 0


async def test_a_plain_handler_past_its_timeout_is_told_and_counted_once(gate: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    def hangs(context: Context) -> None:
        if context.event_id == "slow":
            gate.wait(2 * DEADLINE_S)

    broker, file = shop_broker(partitions=2), File(hangs, timeout_s=0.02)
    place(broker, "slow", partition=0)

    async with shop(broker, file).worker() as worker:
        await becomes(lambda: worker.counters.stuck, "it is told", worker)
        for number in range(3):  # each is committed by a later tick, which looks for what is stuck as well
            place(broker, f"quick-{number}", partition=1)
            await becomes(lambda number=number: committed(broker, P1) == number + 1, "it is settled", worker)  # type: ignore[misc]
        gate.set()
        await becomes(lambda: committed(broker) == 1, "the slow one is settled as well", worker)

    told = [record.getMessage() for record in caplog.records if "runs longer than timeout_s" in record.getMessage()]
    assert told == [
        "file: orders[0]@0 runs longer than timeout_s=0.02; a plain def can't be cut short, so its key and a thread wait for it"
    ]
    assert (worker.counters.stuck, worker.counters.handled, worker.counters.dead_lettered) == (1, 4, 0)
