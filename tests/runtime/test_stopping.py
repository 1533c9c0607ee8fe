"""Does a stop come to its end, lose nothing that was done, and begin nothing new, whatever happens during it?"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

import pytest

from choreo.envelope import Envelope
from choreo.errors import StoreError
from choreo.handler import Context, Handler
from choreo.runtime import claims, intake
from choreo.runtime.worker import Worker
from choreo.storage.memory import MemoryStore
from choreo.store import Claim
from choreo.testing import MemoryBroker
from tests.runtime.shop import (
    DEADLINE_S,
    P1,
    SHOP,
    Book,
    Paid,
    Placed,
    answers,
    becomes,
    committed,
    has_failed,
    numbered,
    place,
    shop,
    shop_broker,
)

# ---- the loop ends before the worker has --------------------------------------------------------------------------------


async def waits_for_ever(context: Context) -> None:
    await asyncio.Event().wait()


async def is_cancelled_twice(broker: MemoryBroker, book: Book) -> None:
    """As by a second Ctrl-C, which comes while the first one's stop drains."""
    me = asyncio.current_task()
    assert me is not None

    async def is_impatient(worker: Worker) -> None:
        me.cancel()
        await becomes(lambda: worker.stop_by < inf, "it stops")
        me.cancel()

    async with shop(broker, book, drain_s=60.0).worker() as worker:
        await becomes(lambda: book.calls == ["e0"], "the handler has begun", worker)
        impatient = asyncio.create_task(is_impatient(worker))
        await asyncio.Event().wait()
    assert impatient.done()


async def leaves_without_a_stop(broker: MemoryBroker, book: Book) -> None:
    service = shop(broker, book)
    worker = Worker(service.plan(service.settings), broker)
    await worker.start()
    await becomes(lambda: book.calls == ["e0"], "the handler has begun", worker)


@pytest.mark.parametrize("main", [is_cancelled_twice, leaves_without_a_stop])
def test_a_loop_that_is_ended_before_the_worker_has_stopped_comes_to_its_end(
    main: Callable[[MemoryBroker, Book], Coroutine[Any, Any, None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "STUCK_S", 0.05)
    broker, book = shop_broker(), Book(waits_for_ever)
    place(broker, "e0")

    def run() -> None:
        try:
            asyncio.run(main(broker, book))
        except asyncio.CancelledError:
            pass

    running = threading.Thread(target=run, name="a-loop-that-ends", daemon=True)
    running.start()
    running.join(DEADLINE_S)

    assert not running.is_alive()
    assert (book.calls, book.done, committed(broker) or 0) == (["e0"], [], 0)


async def test_a_worker_whose_tasks_end_leaves_its_group_without_waiting_for_what_can_not_end_any_more() -> None:
    broker, book = shop_broker(), Book(waits_for_ever)
    place(broker, "e0")

    async with shop(broker, book, concurrency=2, revoke_s=60.0).worker() as worker:
        await becomes(lambda: book.calls == ["e0"], "the handler has begun", worker)
        (tick,) = tasks_in("Worker._tick")
        tick.cancel()
        await has_failed(worker)
        await becomes(lambda: not worker.engine.partitions, "the worker has let go of its partition")

    assert (book.done, committed(broker) or 0) == ([], 0)


# ---- what happens during a stop -----------------------------------------------------------------------------------------


async def test_a_partition_that_comes_during_a_stop_begins_nothing() -> None:
    gate = asyncio.Event()

    async def waits(context: Context) -> None:
        await gate.wait()

    async def a_partition_comes() -> None:
        await becomes(lambda: worker.stop_by < inf, "it stops", worker)
        broker.cluster().add_partitions("orders", 2)
        place(broker, "new", partition=1)
        await becomes(lambda: worker.counters.received == 2, "its event has come", worker)
        gate.set()

    broker, book = shop_broker(), Book(waits)
    place(broker, "old")

    async with shop(broker, book, drain_s=DEADLINE_S).worker() as worker:
        await becomes(lambda: book.calls == ["old"], "it runs", worker)
        coming = asyncio.create_task(a_partition_comes())
    await coming

    assert (book.calls, book.done, worker.clean) == (["old"], ["old"], True)
    assert (committed(broker), committed(broker, P1) or 0) == (1, 0)


async def test_a_stop_does_not_wait_for_what_is_lost_during_it() -> None:
    broker, book = shop_broker(), Book(waits_for_ever)
    place(broker, *numbered(3))

    async def all_is_lost() -> None:
        await becomes(lambda: worker.stop_by < inf, "it stops", worker)
        (consumer,) = broker.consumers(SHOP)
        broker.lose(consumer)

    async with shop(broker, book, drain_s=3.0).worker() as worker:
        await becomes(lambda: len(book.calls) == 3, "they run", worker)
        losing = asyncio.create_task(all_is_lost())
    await losing
    left_s = worker.stop_by - asyncio.get_running_loop().time()

    assert left_s > 0
    assert (book.done, committed(broker) or 0, worker.clean) == ([], 0, True)


class Pays(Handler[Placed]):
    name = "pays"

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid:
        return Paid(order_id="o-1")


async def test_what_is_acknowledged_at_the_end_of_a_stop_is_claimed_also_by_a_store_that_is_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RETRY_S", 0.05)
    broker, kept = shop_broker(), MemoryStore()
    kept.open(SHOP)
    store = MemoryStore(shared_with=kept)
    broker.hold_sends("answers")
    place(broker, "e0")

    async def is_acknowledged_late() -> None:
        await becomes(lambda: not tasks_in("Worker.turn"), "nothing is left but the sends", worker)
        store.fail(StoreError("locked, as the test asked", retriable=True), times=1)
        broker.release_sends("answers")

    async with shop(broker, Pays(), store=store, drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(lambda: worker.counters.emitted == 1, "its emit is under way", worker)
        acknowledging = asyncio.create_task(is_acknowledged_late())
    await acknowledging

    claim = Claim("pays", "e0")
    assert (answers(broker), kept.lookup([claim]), worker.counters.store_errors) == (["order.paid"], {claim}, 1)


def tasks_in(coroutine: str) -> list[asyncio.Task[Any]]:
    return [task for task in asyncio.all_tasks() if coroutine in repr(task.get_coro())]
