"""Where does a plain `def` handler run, and what is the same as for an `async def`?"""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from choreo import Context, Envelope, Handler, MemoryStore, RetryPolicy
from tests.kafka.ground import BOTH_EFFECTS, Ground, Sent, becomes
from tests.kafka.shop import QUICK, Paid, Placed, placed

pytestmark = [pytest.mark.kafka, BOTH_EFFECTS]

THREADS = 4


class Sync(Handler[Placed]):
    retry = QUICK

    def __init__(self) -> None:
        self.threads: set[str] = set()
        self.orders: list[str] = []
        self.most = 0
        self._running = 0
        self._together = threading.Barrier(THREADS)

    def handle(self, event: Envelope[Placed], context: Context) -> Paid:
        self.threads.add(threading.current_thread().name)
        self.orders.append(event.payload.order_id)
        self._together.wait(10)
        return Paid(order_id=event.payload.order_id)


class Fails(Handler[Placed]):
    retry = RetryPolicy(max_attempts=2, base_delay_s=0.01)

    def __init__(self) -> None:
        self.attempts: list[int] = []

    def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.attempts.append(context.attempt)
        logging.getLogger("shop").warning("refusing %s", event.payload.order_id)
        raise ValueError("not on this thread")


class Blocks(Handler[Placed]):
    timeout_s = 0.2

    def __init__(self) -> None:
        self.calls = 0
        self.gate = threading.Event()

    def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.calls += 1
        self.gate.wait(20)


async def test_plain_handlers_run_side_by_side_on_threads_of_their_own_and_emit(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", *(Sent(placed(f"o-{number}"), b"k-%d" % number) for number in range(THREADS)))
    sync = Sync()

    await ground.run(ground.service(sync, threads=THREADS))

    assert len(sync.threads) == THREADS
    assert threading.current_thread().name not in sync.threads
    assert len(ground.records("paid")) == THREADS


async def test_a_plain_handler_that_fails_is_tried_again_and_its_letter_has_its_stack_and_its_log_lines_their_event(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("o-1"), b"o-1", [("choreo-id", b"e-1")]))
    fails = Fails()

    await ground.run(ground.service(fails))

    (letter,) = ground.dead()
    assert fails.attempts == [1, 2]
    assert 'raise ValueError("not on this thread")' in letter.why["error-stack"]
    own = [record for record in caplog.records if record.name == "shop"]
    assert [(r.choreo_event, r.choreo_handler, r.choreo_attempt) for r in own] == [("e-1", "fails", 1), ("e-1", "fails", 2)]  # type: ignore[attr-defined]


async def test_a_plain_handlers_success_is_claimed(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", *(Sent(placed(f"o-{number}"), b"k-%d" % number) for number in range(THREADS)))
    sync, store = Sync(), MemoryStore()

    await ground.run(ground.service(sync, store=store, threads=THREADS))
    await ground.read_again("orders")
    worker = await ground.run(ground.service(sync, store=MemoryStore(shared_with=store), threads=THREADS))

    assert (len(sync.orders), worker.counters.duplicates, len(ground.records("paid"))) == (THREADS, THREADS, THREADS)


async def test_a_plain_handler_past_its_timeout_is_named_and_not_called_twice(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()), Sent(placed("o-2"), b"other"))
    blocks = Blocks()

    async with ground.service(blocks, threads=1).worker() as worker:
        (stuck,) = await becomes(worker.on_threads.stuck, "the worker names what is stuck", worker=worker)
        calls_while_stuck = blocks.calls
        await asyncio.to_thread(blocks.gate.set)
        await ground.caught_up(worker)

    assert stuck == f"blocks has run 0 s for {ground.topic('orders')}[0]@0 (timeout_s=0.2)"
    assert (calls_while_stuck, blocks.calls, worker.counters.retried, worker.counters.handled) == (1, 2, 0, 2)
