"""What becomes of the same event once more?"""

from __future__ import annotations

import asyncio

import pytest

from choreo import Context, Envelope, Handler, MemoryStore, SqliteStore
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import QUICK, Book, Paid, Pay, Placed, placed

pytestmark = pytest.mark.kafka


def same(event_id: str, count: int, partitions: int = 1) -> list[Sent]:
    """One event so many times, over all partitions and several keys."""
    headers = [("choreo-id", event_id.encode())]
    return [Sent(placed(event_id), b"k-%d" % (number % 7), headers, partition=number % partitions) for number in range(count)]


async def test_a_thousand_duplicates_over_partitions_and_keys_have_one_effect(
    ground: Ground, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ground.make(orders=4, paid=1)
    ground.put("orders", *same("e-1", 1000, 4), *same("e-2", 10))
    pay = Pay(lambda placed, context: Paid(order_id=placed.order_id))
    store = SqliteStore(tmp_path_factory.mktemp("claims") / "claims.db")

    worker = await ground.run(ground.service(pay, store=store))

    assert sorted(seen.context.event_id for seen in pay.seen) == ["e-1", "e-2"]
    assert (worker.counters.handled, worker.counters.duplicates) == (2, 1008)
    assert len(ground.records("paid")) == 2


async def test_a_duplicate_waits_for_the_one_that_runs_and_runs_if_that_one_dies(ground: Ground) -> None:
    class First(Handler[Placed]):
        retry = QUICK

        def __init__(self) -> None:
            self.running = self.most = 0
            self.places: list[tuple[int, int]] = []

        async def handle(self, event: Envelope[Placed], context: Context) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            self.places.append((context.origin.partition, context.attempt))
            await asyncio.sleep(0.05)
            self.running -= 1
            if len(self.places) <= 3:
                raise ValueError("the first three calls fail")

    ground.make(orders=2)
    ground.put("orders", *same("e-1", 2, 2))
    first = First()

    worker = await ground.run(ground.service(first, store=MemoryStore()))

    assert first.most == 1
    assert worker.counters.handled + worker.counters.dead_lettered + worker.counters.duplicates == 2
    assert (worker.counters.handled, len(first.places)) == (1, 4)


async def test_two_handlers_claim_one_event_apart(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *same("e-1", 3))
    one, other = Book(), Book()
    one.name, other.name = "one", "other"

    worker = await ground.run(ground.service(one, other, store=MemoryStore()))

    assert (len(one.seen), len(other.seen), worker.counters.duplicates) == (1, 1, 4)


async def test_claims_last_longer_than_the_process(ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> None:
    ground.make(orders=1)
    path = tmp_path_factory.mktemp("claims") / "claims.db"
    ground.put("orders", *same("e-1", 1), *same("e-2", 1))
    book = Book()

    await ground.run(ground.service(book, store=SqliteStore(path)))
    ground.put("orders", *same("e-1", 1), *same("e-3", 1))
    worker = await ground.run(ground.service(book, store=SqliteStore(path)))

    assert [seen.context.event_id for seen in book.seen] == ["e-1", "e-2", "e-3"]
    assert (worker.counters.handled, worker.counters.duplicates) == (1, 1)


async def test_without_claims_a_duplicate_runs_again(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *same("e-1", 3))
    book = Book()

    worker = await ground.run(ground.service(book))

    assert (len(book.seen), worker.counters.handled) == (3, 3)


async def test_an_event_that_failed_is_not_claimed(ground: Ground) -> None:
    def act(placed: Placed, context: Context) -> None:
        if context.origin.offset == 0:
            raise ValueError("only the first copy")

    ground.make(orders=1)
    ground.put("orders", *same("e-1", 1), *same("e-1", 1))
    book, store = Book(act), MemoryStore()

    async with ground.service(book, store=store).worker() as worker:
        await becomes(lambda: worker.counters.handled == 1, "the second copy is handled", worker=worker)
        await ground.caught_up(worker)

    assert [seen.context.origin.offset for seen in book.seen] == [0, 0, 0, 1]
    assert len(ground.dead()) == 1
