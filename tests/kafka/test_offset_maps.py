"""What stands above a committed offset and is finished: does it run again after a restart, and when is what is written there believed?"""

from __future__ import annotations

import asyncio

import pytest

from choreo import Context, Envelope, Handler
from choreo.record import TopicPartition
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, Placed, placed
from tests.support.offset_maps import finished, maps, put_offsets

pytestmark = pytest.mark.kafka

BEHIND = 200


class Slow(Handler[Placed]):
    """Never ends for the order `held`; keeps which orders it was called for."""

    timeout_s = 600.0

    def __init__(self) -> None:
        self.orders: list[str] = []

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.orders.append(event.payload.order_id)
        if event.payload.order_id == "held":
            await asyncio.Event().wait()


def put(ground: Ground, *orders: str, partition: int = 0) -> None:
    ground.put("orders", *(Sent(placed(order), order.encode(), partition=partition) for order in orders))


async def test_a_drain_that_ran_out_of_time_leaves_nothing_to_repeat_but_what_it_cut_short(ground_of_each_protocol: Ground) -> None:
    ground, slow, book = ground_of_each_protocol, Slow(), Book()
    ground.make(orders=1)
    behind = [f"o-{number}" for number in range(BEHIND)]
    put(ground, "held", *behind)

    async with ground.service(slow, drain_s=0.2).worker() as worker:
        await becomes(lambda: worker.counters.handled == BEHIND, "all but one are handled", worker=worker)
    found = maps(ground.kafka, ground.group, ground.topic("orders"))[0]
    await ground.run(ground.service(book_named_slow(book)))

    assert (worker.clean, sorted(slow.orders)) == (False, sorted(["held", *behind]))
    assert (found.offset, found.unclean, finished(found)) == (0, 0, set(range(1, BEHIND + 1)))
    assert book.orders == ["held"]
    assert ground.committed("orders") == BEHIND + 1


def book_named_slow(book: Book) -> Book:
    """The same handler as far as anybody knows, mended."""
    book.name = "slow"
    return book


# ---- B18 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begins_at", [3, 7])
async def test_a_map_beside_an_offset_that_was_translated_is_ignored_and_said_once(
    ground_of_each_protocol: Ground, caplog: pytest.LogCaptureFixture, begins_at: int
) -> None:
    ground, book = ground_of_each_protocol, Book()
    text, offset = await left_behind(ground)

    put_offsets(ground.kafka, ground.group, {orders(ground, 0): (begins_at, text), orders(ground, 1): (begins_at, text)})
    worker = await ground.run(ground.service(book_named_slow(book)))

    assert sorted(book.orders) == sorted(of_both_partitions(begins_at))
    assert worker.counters.maps_ignored == 2
    assert said(caplog) == [
        f"{orders(ground, 0)}@{begins_at}, {orders(ground, 1)}@{begins_at}: what stands beside the committed offset is ignored: it was"
        f" written beside offset {offset}, not {begins_at}: a tool moved or translated the offset; what was finished above it runs again"
    ]


async def test_what_another_tool_wrote_beside_an_offset_is_ignored_and_said_once(
    ground_of_each_protocol: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground, book = ground_of_each_protocol, Book()
    await left_behind(ground)

    put_offsets(ground.kafka, ground.group, {orders(ground, number): (4, "checkpoint=1") for number in (0, 1)})
    worker = await ground.run(ground.service(book_named_slow(book)))

    assert sorted(book.orders) == sorted(of_both_partitions(4))
    assert worker.counters.maps_ignored == 2
    assert said(caplog) == [
        f"{orders(ground, 0)}@4, {orders(ground, 1)}@4: what stands beside the committed offset is ignored: another tool wrote it; what"
        " was finished above it runs again"
    ]


async def test_an_offset_without_anything_beside_it_is_believed_in_silence(
    ground_of_each_protocol: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground, book = ground_of_each_protocol, Book()
    await left_behind(ground)

    await ground.read_again("orders", offset=4)
    worker = await ground.run(ground.service(book_named_slow(book)))

    assert sorted(book.orders) == sorted(of_both_partitions(4))
    assert (worker.counters.maps_ignored, said(caplog)) == (0, [])


async def left_behind(ground: Ground) -> tuple[str, int]:
    """Two partitions of ten events each, handled but for the sixth of each; what then stands beside the offset of the first, and that."""
    ground.make(orders=2)
    for partition in (0, 1):
        put(ground, *(name_of(number, partition) for number in range(10)), partition=partition)
    async with ground.service(Slow(), drain_s=0.2).worker() as worker:
        await becomes(lambda: worker.counters.handled == 18, "all but one of each partition are handled", worker=worker)
    offset, text = ground.kafka.committed_with_metadata(ground.group, [ground.topic("orders")])[orders(ground, 0)]
    assert (offset, bool(text)) == (5, True)
    return text or "", offset or 0


def of_both_partitions(begins_at: int) -> list[str]:
    return [name_of(number, partition) for partition in (0, 1) for number in range(begins_at, 10)]


def name_of(number: int, partition: int) -> str:
    return "held" if number == 5 else f"o-{partition}-{number}"


def orders(ground: Ground, partition: int) -> TopicPartition:
    return TopicPartition(ground.topic("orders"), partition)


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING" and "beside" in record.getMessage()]
