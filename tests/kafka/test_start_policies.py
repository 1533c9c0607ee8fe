"""Where does a group begin that has never read a partition?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from choreo import BrokerError, ConfigurationError, ServiceSettings
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, placed

pytestmark = pytest.mark.kafka

MANY = 16


async def begun(ground: Ground, start: Any, *, live: str, partitions: int = 1) -> list[str]:
    """What a service with this start policy handles of what was there, and of events that come when it is just starting."""
    book = Book()
    async with ground.service(book, start=start).worker() as worker:
        await becomes(lambda: worker.engine.partitions, "partitions are assigned", worker=worker)
        await asyncio.to_thread(ground.put, "orders", *(Sent(placed(live), partition=number) for number in range(partitions)))
        await becomes(lambda: book.orders.count(live) == partitions, "the live events are handled", worker=worker)
        await ground.caught_up(worker)
    return book.orders


async def test_earliest_handles_everything_that_is_there(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("old")))

    assert await begun(ground, "earliest", live="live") == ["old", "live"]


async def test_latest_handles_what_comes_from_now_on(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("old")))

    assert await begun(ground, "latest", live="live") == ["live"]


async def test_latest_is_the_moment_of_the_first_start_and_not_of_the_next(ground: Ground) -> None:
    ground.make(orders=2)
    ground.put("orders", Sent(placed("old")), Sent(placed("old"), partition=1))
    book = Book()
    async with ground.service(book, start="latest").worker() as worker:
        await becomes(lambda: worker.engine.partitions, "partitions are assigned", worker=worker)
        await becomes(lambda: worker.counters.commits, "the beginning is committed", worker=worker)
    ground.put("orders", Sent(placed("while down")), Sent(placed("while down"), partition=1))

    await ground.run(ground.service(book, start="latest"))

    assert book.orders == ["while down", "while down"]


async def test_a_time_handles_what_was_written_at_or_after_it(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("old")))
    old = ground.records("orders")[0]
    ground.put_at("orders", old.timestamp_ms + 10_000, Sent(placed("at the time")))
    since = datetime.fromtimestamp(old.timestamp_ms / 1000 + 10, UTC)

    assert await begun(ground, since, live="live") == ["at the time", "live"]


async def test_a_time_after_everything_misses_nothing_that_comes_while_the_service_starts(ground: Ground) -> None:
    ground.make(orders=MANY)
    ground.put_at("orders", 1_000_000, *(Sent(placed("old"), partition=number) for number in range(MANY)))

    assert await begun(ground, datetime.now(UTC), live="live", partitions=MANY) == ["live"] * MANY


async def test_refuse_stops_the_service_and_names_the_partition(ground: Ground) -> None:
    ground.make(orders=1)

    async with ground.service(Book(), start="refuse").worker() as worker:
        await becomes(worker.failure.done, "the worker stops")
        stopped = worker.failure.exception()

    assert isinstance(stopped, BrokerError)
    assert str(stopped) == (
        f'{ground.topic("orders")}[0]: group {ground.group} has no committed offset, and start="refuse"; say where to begin: '
        "--start earliest, latest or a time"
    )


async def test_refuse_goes_on_where_offsets_are_committed(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("first")))
    await ground.run(ground.service(Book()))
    ground.put("orders", Sent(placed("second")))
    book = Book()

    await ground.run(ground.service(book, start="refuse"))

    assert book.orders == ["second"]


async def test_the_policy_does_not_move_a_group_that_has_begun(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("first")))
    await ground.run(ground.service(Book()))
    ground.put("orders", Sent(placed("while down")))
    book = Book()

    await ground.run(ground.service(book, start="latest"))

    assert book.orders == ["while down"]


def test_a_policy_that_is_none_is_refused_when_it_is_set() -> None:
    with pytest.raises(ConfigurationError, match="start='newest'; use earliest, latest, refuse, or a time such as"):
        ServiceSettings(start="newest")  # type: ignore[arg-type]
