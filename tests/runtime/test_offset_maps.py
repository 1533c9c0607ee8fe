"""What is finished above the committed offset stays finished, whoever goes on; and what stands beside an offset is believed or not."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from choreo.core.offset_map import OffsetMap, read_map
from choreo.errors import BrokerError, TransientError
from choreo.handler import Context
from choreo.record import Outgoing
from choreo.runtime import commits, membership
from choreo.runtime.worker import Worker
from choreo.testing import MemoryBroker
from tests.runtime.shop import P0, P1, SHOP, TWICE, Book, File, becomes, committed, has_failed, numbered, place, placed, shop, shop_broker


@pytest.fixture(autouse=True)
def maps_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAPS_EVERY", 1)


def map_of(broker: MemoryBroker) -> OffsetMap | None:
    topic_id = broker.cluster().topic_ids(["orders"])["orders"]
    found = read_map(broker.committed_texts(SHOP).get(P0), topic_id=topic_id, offset=committed(broker) or 0)
    return found if isinstance(found, OffsetMap) else None


def unfinished(broker: MemoryBroker) -> list[int]:
    found = map_of(broker)
    return [] if found is None else list(found.unfinished)


def dies(broker: MemoryBroker, worker: Worker) -> None:
    """As kill -9 does: nothing is committed any more, and the group puts it out."""
    for consumer in broker.consumers(SHOP):
        broker.kill(consumer)
    worker.failed(BrokerError("the process is gone", retriable=False))


class Held:
    """Holds one event until it is told to let go."""

    def __init__(self, event_id: str) -> None:
        self.event_id = event_id
        self.free = asyncio.Event()

    async def __call__(self, context: Context) -> None:
        if context.event_id == self.event_id:
            await self.free.wait()


async def test_what_was_finished_behind_a_slow_event_is_not_handled_again_after_a_crash() -> None:
    broker, held = shop_broker(), Held("e0")
    before, after = Book(held), Book()
    place(broker, *numbered(50))

    async with shop(broker, before, drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(lambda: unfinished(broker) == [0] and len(before.done) == 49, "the map says that one is left", worker)
        dies(broker, worker)
    async with shop(broker, after).worker() as worker:
        await becomes(lambda: committed(broker) == 50, "all are settled", worker)

    assert (after.calls, worker.counters.restored) == (["e0"], 49)


async def test_attempts_that_were_begun_count_after_a_crash() -> None:
    attempts: list[int] = []

    async def fails(context: Context) -> None:
        attempts.append(context.attempt)
        raise TransientError("not now", retry_after_s=0.0 if len(attempts) > 1 else 60.0)

    broker = shop_broker()
    place(broker, "e0")

    async with shop(broker, Book(fails, retry=TWICE), drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(lambda: (found := map_of(broker)) and any(found.unfinished.values()), "the map has its attempt", worker)
        dies(broker, worker)
    async with shop(broker, Book(fails, retry=TWICE)).worker() as worker:
        await becomes(lambda: worker.counters.dead_lettered, "it is a letter", worker)

    assert attempts == [1, 2]


async def test_of_two_handlers_only_the_one_that_was_not_through_has_the_event_again() -> None:
    broker, held = shop_broker(), Held("e0")
    slow, quick = Book(held), File()
    slow_after, quick_after = Book(), File()
    place(broker, "e0")

    async with shop(broker, slow, quick, drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(
            lambda: (found := map_of(broker)) and [len(e or ()) for e in found.unfinished.values()] == [1], "one is through", worker
        )
        dies(broker, worker)
    async with shop(broker, slow_after, quick_after).worker() as worker:
        await becomes(lambda: committed(broker) == 1, "it is settled", worker)

    assert (quick.calls, slow_after.calls, quick_after.calls) == (["e0"], ["e0"], [])


async def test_a_letter_behind_a_slow_event_is_not_written_twice() -> None:
    broker, held = shop_broker(), Held("e0")

    async def act(context: Context) -> None:
        await held(context)
        if context.event_id == "e1":
            raise ValueError("broken")

    place(broker, "e0", "e1")

    async with shop(broker, Book(act), drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(lambda: unfinished(broker) == [0] and worker.counters.dead_lettered, "the second is dead and settled", worker)
        dies(broker, worker)
    held.free.set()
    async with shop(broker, Book(act)).worker() as worker:
        await becomes(lambda: committed(broker) == 2, "all are settled", worker)

    assert len(broker.records(f"{SHOP}.dlq")) == 1


async def test_a_clean_end_leaves_nothing_to_count() -> None:
    broker, book = shop_broker(), Book()
    place(broker, *numbered(3))

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: committed(broker) == 3, "all are settled", worker)
        during = map_of(broker)
    after = map_of(broker)

    assert during is not None
    assert after is not None
    assert (during.unclean, after.unclean, after.unfinished) == (1, 0, {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("checkpoint=17", "another tool wrote it"),
        ("choreo2:AAAA", "a later choreo wrote it"),
        ("choreo1:AAAAAAAA", "it is damaged"),
    ],
    ids=["foreign", "a later version", "damaged"],
)
async def test_a_text_that_does_not_count_is_said_counted_and_otherwise_ignored(
    text: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker, book = shop_broker(), Book()
    place(broker, *numbered(3))
    broker.set_committed(SHOP, P0, 1, text)

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: committed(broker) == 3, "all are settled", worker)

    assert (book.calls, worker.counters.maps_ignored) == (["e1", "e2"], 1)
    assert [record.getMessage() for record in caplog.records if "is ignored" in record.getMessage()] == [
        f"orders[0]@1: what stands beside the committed offset is ignored: {why}; what was finished above it runs again"
    ]


async def test_a_map_beside_an_offset_that_a_tool_moved_is_ignored() -> None:
    broker, held = shop_broker(), Held("e0")
    before, after = Book(held), Book()
    place(broker, *numbered(5))
    async with shop(broker, before, drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(lambda: unfinished(broker) == [0] and len(before.done) == 4, "the map says that one is left", worker)
        dies(broker, worker)

    broker.set_committed(SHOP, P0, 2, broker.committed_texts(SHOP)[P0])
    async with shop(broker, after).worker() as worker:
        await becomes(lambda: committed(broker) == 5, "all are settled", worker)

    # Claims know them all the same.
    assert (worker.counters.maps_ignored, worker.counters.duplicates + len(after.done)) == (1, 3)


async def test_a_broker_that_takes_no_long_text_gets_the_offset_and_the_crash_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("choreo.testing.memory_consumer.MAX_METADATA_CHARS", 90)
    broker, free = shop_broker(), asyncio.Event()
    place(broker, *numbered(200))

    async def waits(context: Context) -> None:
        await free.wait()

    async with shop(broker, Book(waits)).worker() as worker:
        await becomes(lambda: worker.counters.maps_left_out and (found := map_of(broker)) and found.reach is None, "it is short", worker)
        free.set()
        await becomes(lambda: committed(broker) == 200, "offsets go on", worker)

    told = [record.getMessage() for record in caplog.records if "offset.metadata.max.bytes" in record.getMessage()]
    assert len(told) == 1


# ---- topics that are made anew --------------------------------------------------------------------------------------------


async def test_a_topic_that_is_made_anew_under_its_reader_is_not_handled_or_committed_any_more(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(membership, "TOPIC_IDS_EVERY_S", 0.02)
    broker, book = shop_broker(partitions=2), Book()
    place(broker, *numbered(3), partition=0)

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: committed(broker) == 3, "all are settled", worker)
        broker.recreate_topic("orders", *[Outgoing("orders", b"k", placed("old"), (), 0)] * 3)
        await becomes(lambda: not worker.engine.partitions, "it is noticed", worker)
        place(broker, "new", partition=0)
        place(broker, "new too", partition=1)
        since = time.monotonic()
        await becomes(lambda: worker.intake.polled_at > since + 0.01, "it has polled since", worker)

    assert (book.done, committed(broker)) == (numbered(3), 3)
    assert "orders[0]: the topic was deleted and made again under its name" in caplog.text


async def test_a_committed_offset_of_a_topic_that_is_gone_stops_the_next_start() -> None:
    broker = shop_broker()
    place(broker, *numbered(3))
    async with shop(broker, Book()).worker() as worker:
        await becomes(lambda: committed(broker) == 3, "all are settled", worker)

    broker.recreate_topic("orders")
    place(broker, *[f"new{number}" for number in range(9)])
    async with shop(broker, Book()).worker() as worker:
        failure = await has_failed(worker)

    assert isinstance(failure, BrokerError)
    assert str(failure).startswith("orders[0]: group shop committed offset 3 of a topic of this name that was deleted; this is another")
    assert committed(broker) == 3


async def test_who_accepts_the_loss_begins_with_what_the_new_topic_holds() -> None:
    broker, book = shop_broker(), Book()
    place(broker, *numbered(3))
    async with shop(broker, Book()).worker() as worker:
        await becomes(lambda: committed(broker) == 3, "all are settled", worker)
    broker.recreate_topic("orders")
    place(broker, *[f"new{number}" for number in range(9)])

    async with shop(broker, book, accept_lost_offsets=True).worker() as worker:
        await becomes(lambda: len(book.done) == 9, "all are handled", worker)

    assert book.done == [f"new{number}" for number in range(9)]


async def test_a_rebalance_takes_the_map_along() -> None:
    broker, held = shop_broker(partitions=2), Held("e0")
    first, second = Book(held), Book()
    for partition in (0, 1):
        place(broker, *(numbered(20) if partition == 0 else [f"p{n}" for n in range(20)]), partition=partition)

    async with shop(broker, first, drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(lambda: unfinished(broker) == [0] and committed(broker, P1) == 20, "one is left", worker)
        async with shop(broker, second).worker() as other:
            await becomes(lambda: len(broker.consumers(SHOP)) == 2 and other.engine.partitions, "the other has a partition", worker, other)
            held.free.set()
            await becomes(lambda: committed(broker) == 20, "all are settled", worker, other)

    assert sorted(set(first.calls + second.calls)) == sorted(numbered(20) + [f"p{n}" for n in range(20)])
    assert set(second.calls) <= {"e0"}
    logging.getLogger(__name__).debug("second had %s", second.calls)
