"""B13: where does a group begin with the partitions that a topic gets later?"""

from __future__ import annotations

import asyncio

import pytest

from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, placed

pytestmark = pytest.mark.kafka

# librdkafka looks for new partitions every five minutes by itself, under the classic protocol.
OFTEN = {"topic.metadata.refresh.interval.ms": 300}


@pytest.mark.parametrize("start", ["earliest", "latest"])
async def test_a_topic_that_grew_while_the_service_was_down_is_read_from_the_beginning_of_its_new_partitions(
    ground_of_each_protocol: Ground, start: str
) -> None:
    ground, book = ground_of_each_protocol, Book()
    ground.make(orders=2)
    async with ground.service(book, start="earliest").worker() as worker:
        ground.put("orders", Sent(placed("first")), Sent(placed("first"), partition=1))
        await ground.caught_up(worker)
        await becomes(lambda: len(worker.history.partitions_at_first) == 2, "both partitions are marked as read", worker=worker)
    ground.grow("orders", 4)
    ground.put("orders", *(Sent(placed(f"new {number}"), partition=number) for number in range(4)))

    await ground.run(ground.service(book, start=start))

    assert sorted(book.orders) == ["first", "first", "new 0", "new 1", "new 2", "new 3"]


async def test_a_topic_that_grows_while_the_service_runs_is_read_from_the_beginning_of_its_new_partitions(
    ground_of_each_protocol: Ground,
) -> None:
    ground, book = ground_of_each_protocol, Book()
    ground.make(orders=2)
    async with ground.service(book, start="latest", properties=OFTEN).worker() as worker:
        await becomes(lambda: len(worker.engine.partitions) == 2, "both partitions are assigned", worker=worker)
        await becomes(lambda: len(worker.history.partitions_at_first) == 2, "both partitions are marked as read", worker=worker)
        await asyncio.to_thread(ground.grow, "orders", 4)
        await asyncio.to_thread(ground.put, "orders", *(Sent(placed(f"new {number}"), partition=number) for number in range(4)))
        await becomes(lambda: len(worker.engine.partitions) == 4, "all partitions are assigned", worker=worker, deadline_s=30)
        await ground.caught_up(worker)

    assert sorted(book.orders) == ["new 0", "new 1", "new 2", "new 3"]
