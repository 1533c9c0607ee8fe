"""B15: what becomes of a group whose committed offsets are gone?"""

from __future__ import annotations

from pathlib import Path

import pytest

from choreo import BrokerError, MemoryStore
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, placed
from tests.support.process import WorkerProcess

pytestmark = pytest.mark.kafka

END_S = 30.0
FOUND_SOMETHING, DONE = 1, 0


async def had_run(ground: Ground, book: Book, store: MemoryStore) -> None:
    """The service has run: it has handled an event, and Kafka knows that it has read the partition."""
    ground.make(orders=1)
    ground.put("orders", Sent(placed("o-1"), headers=[("choreo-id", b"e-1")]))
    async with ground.service(book, store=store).worker() as worker:
        await ground.caught_up(worker)
        await becomes(lambda: worker.history.partitions_at_first, "the partition is marked as read", worker=worker)


async def test_a_service_whose_offsets_were_deleted_stops_and_says_what_to_do(ground_of_each_protocol: Ground) -> None:
    ground, book = ground_of_each_protocol, Book()
    await had_run(ground, book, MemoryStore())
    await ground.forget_group()

    async with ground.service(book).worker() as worker:
        await becomes(worker.failure.done, "the worker stops")
        stopped = worker.failure.exception()

    assert isinstance(stopped, BrokerError)
    assert (stopped.code, stopped.retriable) == ("LOST_OFFSETS", False)
    assert str(stopped) == (
        f"{ground.topic('orders')}[0]: group {ground.group} has read it before, but its committed offset is gone (expired or deleted); "
        "to start by the start policy (earliest) all the same: --accept-lost-offsets"
    )
    assert book.orders == ["o-1"]
    assert ground.committed("orders") is None


async def test_accepting_lost_offsets_goes_on_by_the_start_policy_and_claims_prevent_second_effects(
    ground_of_each_protocol: Ground,
) -> None:
    ground, book, store = ground_of_each_protocol, Book(), MemoryStore()
    await had_run(ground, book, store)
    await ground.forget_group()
    ground.put("orders", Sent(placed("o-2"), headers=[("choreo-id", b"e-2")]))

    worker = await ground.run(ground.service(book, store=MemoryStore(shared_with=store), accept_lost_offsets=True))

    assert book.orders == ["o-1", "o-2"]
    assert (worker.counters.duplicates, worker.counters.handled) == (1, 1)


async def test_what_was_accepted_once_need_not_be_accepted_again(ground: Ground) -> None:
    book, store = Book(), MemoryStore()
    await had_run(ground, book, store)
    await ground.forget_group()
    await ground.run(ground.service(book, store=MemoryStore(shared_with=store), accept_lost_offsets=True))
    ground.put("orders", Sent(placed("o-3"), headers=[("choreo-id", b"e-3")]))

    await ground.run(ground.service(book, store=MemoryStore(shared_with=store)))

    assert book.orders == ["o-1", "o-3"]


async def test_a_service_that_ran_for_a_moment_only_is_known_to_have_run(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("o-1")))
    await ground.run(ground.service(Book()))
    await ground.forget_group()

    async with ground.service(Book()).worker() as worker:
        await becomes(lambda: worker.failure.done() or worker.engine.partitions, "the worker stops or begins")
        await becomes(worker.failure.done, "the worker stops", deadline_s=2)


async def test_the_command_line_exits_with_one_line_and_goes_on_when_told(ground: Ground, tmp_path: Path) -> None:
    await had_run(ground, Book(), MemoryStore())
    await ground.forget_group()

    with ground.process("tests.kafka.shop:payments", tmp_path / "refused.log") as refused:
        code = refused.wait(END_S)
    lines = [line for line in refused.output().splitlines() if "error" in line]
    with ground.process("tests.kafka.shop:payments", tmp_path / "told.log", "--accept-lost-offsets") as told:
        ground.kafka.wait_for_no_lag(ground.group, [ground.topic("orders")], deadline_s=END_S)
        told_code = stopped(told)

    assert (code, len(lines), told_code) == (FOUND_SOMETHING, 1, DONE)
    assert lines[0].endswith("to start by the start policy (earliest) all the same: --accept-lost-offsets")


def stopped(worker: WorkerProcess) -> int:
    worker.sigterm()
    return worker.wait(END_S)
