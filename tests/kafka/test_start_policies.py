"""Where does a group begin that has never read a partition?"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from choreo import BrokerError, ConfigurationError, ServiceSettings
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, placed

pytestmark = pytest.mark.kafka


async def begun(ground: Ground, start: Any, *, live: str) -> list[str]:
    """What a service with this start policy handles of what was there, and of an event that comes when it has started."""
    book = Book()
    async with ground.service(book, start=start).worker() as worker:
        await becomes(lambda: worker.engine.partitions, "partitions are assigned", worker=worker)
        await asyncio.to_thread(ground.put, "orders", Sent(placed(live)))
        await becomes(lambda: live in book.orders, "the live event is handled", worker=worker)
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


async def test_a_time_after_everything_begins_at_the_end(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("old")))

    assert await begun(ground, datetime.now(UTC) + timedelta(hours=1), live="live") == ["live"]


async def test_refuse_stops_the_service_and_names_the_partition(ground: Ground) -> None:
    ground.make(orders=1)

    async with ground.service(Book(), start="refuse").worker() as worker:
        await becomes(worker.failure.done, "the worker stops")
        stopped = worker.failure.exception()

    assert isinstance(stopped, BrokerError)
    assert str(stopped) == f'{ground.topic("orders")}[0]: no committed offset, and start="refuse"'


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
