"""An event that ends its process each time is found and dead-lettered, and its innocent neighbours are not."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable

import pytest

from choreo.core.offset_map import OffsetMap, write_map
from choreo.core.retry import RetryPolicy
from choreo.errors import BrokerError, TransientError
from choreo.handler import Context, Handler
from choreo.letter import dlq_headers
from choreo.record import TopicPartition
from choreo.runtime import commits
from choreo.runtime.worker import Worker
from choreo.testing import MemoryBroker
from tests.runtime.shop import P0, P1, SHOP, Book, File, Placed, becomes, committed, numbered, place, shop, shop_broker

THREE = RetryPolicy(max_attempts=3, base_delay_s=0.0)
MOST_STARTS = 12


@pytest.fixture(autouse=True)
def maps_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "MAPS_EVERY", 1)


class Killer:
    """Ends its "process" for one event: its call never returns, and `died` has ended everything else of it."""

    def __init__(self, broker: MemoryBroker, event_id: str) -> None:
        self.broker = broker
        self.event_id = event_id
        self.killed = threading.Event()
        self._end = threading.Event()

    async def handle(self, context: Context) -> None:
        if context.event_id == self.event_id:
            self.killed.set()
            await asyncio.Event().wait()

    def handle_on_thread(self, context: Context) -> None:
        if context.event_id == self.event_id:
            self.killed.set()
            self._end.wait()

    async def died(self, worker: Worker, settled: Callable[[], bool]) -> bool:
        """Waits until it has died, or all is settled; whether it died."""
        await becomes(lambda: self.killed.is_set() or settled(), "it died, or all is settled", worker)
        if not self.killed.is_set():
            return False
        for consumer in self.broker.consumers(SHOP):
            self.broker.kill(consumer)
        worker.failed(BrokerError("the process is gone", retriable=False))
        return True

    def over(self) -> None:
        self._end.set()


async def starts_until_settled(
    broker: MemoryBroker, make: Callable[[Killer], Handler[Placed]], event_id: str, settled: Callable[[], bool]
) -> int:
    """Starts the service again each time it died; how many starts ended that way."""
    killers: list[Killer] = []
    try:
        for start in range(MOST_STARTS):
            killers.append(Killer(broker, event_id))
            async with shop(broker, make(killers[-1]), drain_s=0.0, revoke_s=0.0).worker() as worker:
                if not await killers[-1].died(worker, settled):
                    return start
        return MOST_STARTS
    finally:
        for killer in killers:
            killer.over()


async def dies_twice(broker: MemoryBroker, event_id: str) -> None:
    for _ in range(2):
        killer = Killer(broker, event_id)
        async with shop(broker, Book(killer.handle), drain_s=0.0, revoke_s=0.0).worker() as worker:
            assert await killer.died(worker, lambda: False)


@pytest.mark.parametrize("on_thread", [False, True], ids=["async", "on threads"])
async def test_an_event_that_ends_the_process_is_dead_lettered_after_max_attempts_and_two_starts(on_thread: bool) -> None:
    broker = shop_broker()
    place(broker, *numbered(30))

    starts = await starts_until_settled(
        broker,
        lambda k: File(k.handle_on_thread, retry=THREE) if on_thread else Book(k.handle, retry=THREE),
        "e7",
        lambda: committed(broker) == 30,
    )

    (letter,) = broker.records(f"{SHOP}.dlq")
    assert starts <= 3 + 2
    assert (dlq_headers(letter)["kind"], letter.key) == ("crash-loop", b"e7")


async def test_its_neighbours_are_all_handled_and_none_of_them_is_a_letter() -> None:
    broker, books = shop_broker(partitions=3), list[Book]()
    place(broker, *numbered(60))
    written = Counter(TopicPartition(record.topic, record.partition) for record in broker.records("orders"))

    def slow_ones(killer: Killer) -> Book:
        async def slow(context: Context) -> None:
            await killer.handle(context)
            await asyncio.sleep(0.002)

        books.append(Book(slow, retry=THREE))
        return books[-1]

    await starts_until_settled(broker, slow_ones, "e7", lambda: dict(broker.committed(SHOP)) == dict(written))

    handled = {event_id for book in books for event_id in book.done}
    assert [letter.key for letter in broker.records(f"{SHOP}.dlq")] == [b"e7"]
    assert handled == set(numbered(60)) - {"e7"}


async def test_the_first_bad_end_changes_nothing_but_the_count() -> None:
    broker = shop_broker()
    place(broker, *numbered(30))
    killer = Killer(broker, "e7")
    together: list[int] = []
    running = 0

    async def counts(context: Context) -> None:
        nonlocal running
        running += 1
        together.append(running)
        await asyncio.sleep(0.001)
        running -= 1

    async with shop(broker, Book(killer.handle), drain_s=0.0, revoke_s=0.0).worker() as worker:
        assert await killer.died(worker, lambda: False)
    async with shop(broker, Book(counts)).worker() as worker:
        await becomes(lambda: committed(broker) == 30, "all are settled", worker)

    assert max(together) > 1


async def test_after_the_second_one_event_runs_at_a_time_in_the_whole_process_and_then_as_ever() -> None:
    broker = shop_broker(partitions=2)
    place(broker, *numbered(40))
    await dies_twice(broker, "e7")
    running, together = 0, dict[str, int]()

    async def counts(context: Context) -> None:
        nonlocal running
        running += 1
        together[context.event_id] = running
        await asyncio.sleep(0.001)
        running -= 1

    async with shop(broker, Book(counts)).worker() as worker:
        await becomes(lambda: sum(broker.committed(SHOP).values()) == 40, "all are settled", worker)
        alone = dict(together)
        place(broker, *[f"later{number}" for number in range(40)])
        await becomes(lambda: sum(broker.committed(SHOP).values()) == 80, "all are settled", worker)

    assert alone
    assert alone["e7"] == 1
    assert max(count for event_id, count in together.items() if event_id.startswith("later")) > 1


# ---- what must not stand still or be taken for a killer -----------------------------------------------------------------------


def suspected(broker: MemoryBroker, partition: TopicPartition, until: int) -> None:
    """As after two bad ends while the events up to `until` were under way."""
    topic_id = broker.cluster().topic_ids(["orders"])["orders"]
    found = OffsetMap(topic_id, 0, 2, until, until, (), dict.fromkeys(range(until)))
    broker.set_committed(SHOP, partition, 0, write_map(found))


async def test_one_that_went_well_just_before_the_killer_is_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "EVERY_S", 0.2)  # as in a service: the timer is not what tells that it went well
    broker = shop_broker(partitions=2)
    place(broker, "innocent", "another", partition=1)
    place(broker, "killer", partition=0)
    books: list[Book] = []

    def make(killer: Killer) -> Book:
        books.append(Book(killer.handle, retry=THREE))
        return books[-1]

    await starts_until_settled(broker, make, "killer", lambda: dict(broker.committed(SHOP)) == {P0: 1, P1: 2})

    assert [letter.key for letter in broker.records(f"{SHOP}.dlq")] == [b"killer"]


async def test_owners_that_end_well_while_a_slow_one_runs_alone_do_not_make_it_a_killer() -> None:
    broker, release = shop_broker(), threading.Event()
    place(broker, "slow")
    suspected(broker, P0, 1)

    def waits(context: Context) -> None:
        release.wait()

    for _ in range(5):
        file = File(waits, retry=THREE)
        async with shop(broker, file, drain_s=0.05, revoke_s=0.05).worker() as worker:
            await becomes(lambda: file.calls, "it runs", worker)  # noqa: B023
    release.set()

    assert broker.records(f"{SHOP}.dlq") == []


async def test_suspects_run_also_where_the_broker_takes_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    broker, book = shop_broker(partitions=2), Book()
    place(broker, *numbered(5), partition=0)
    place(broker, "x", "y", partition=1)
    suspected(broker, P0, 5)
    monkeypatch.setattr("choreo.testing.memory_consumer.MAX_METADATA_CHARS", 50)

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: len(book.done) == 7, "all are handled", worker)


async def test_suspects_that_compaction_took_are_not_waited_for() -> None:
    broker, book = shop_broker(partitions=2), Book()
    place(broker, *numbered(3), partition=0)
    broker.skip_offsets("orders", 0, 3)
    place(broker, "after", partition=0)
    place(broker, "x", partition=1)
    suspected(broker, P0, 6)

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: len(book.done) == 5, "all are handled", worker)


async def test_a_suspect_that_waits_for_its_retry_holds_nobody_up() -> None:
    broker = shop_broker(partitions=2)
    place(broker, "fails", partition=0)
    place(broker, *numbered(20), partition=1)
    suspected(broker, P0, 1)

    async def act(context: Context) -> None:
        if context.event_id == "fails":
            raise TransientError("rate limit", retry_after_s=600.0)

    async with shop(broker, book := Book(act, retry=THREE), drain_s=0.05, revoke_s=0.05).worker() as worker:
        await becomes(lambda: len(book.done) == 20, "the others are handled", worker)


async def test_a_run_whose_record_was_refused_is_recorded_once_more() -> None:
    broker, book = shop_broker(), Book()
    place(broker, *numbered(5))
    broker.fail_commits(SHOP, "SOMETHING", 1, retriable=False)

    async with shop(broker, book).worker() as worker:
        await becomes(lambda: len(book.done) == 5, "all are handled", worker)
