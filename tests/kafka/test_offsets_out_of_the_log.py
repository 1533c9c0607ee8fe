"""B12, B14: what becomes of a group whose committed offset its log does not have any more, or not yet?"""

from __future__ import annotations

import pytest

from choreo import BrokerError, MemoryStore
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, placed

pytestmark = pytest.mark.kafka


def put(ground: Ground, *numbers: int) -> None:
    ground.put("orders", *(Sent(placed(f"o-{number}"), headers=[("choreo-id", b"e-%d" % number)]) for number in numbers))


async def test_events_that_retention_took_unread_stop_the_service_until_the_loss_is_accepted(ground_of_each_protocol: Ground) -> None:
    ground, book, store = ground_of_each_protocol, Book(), MemoryStore()
    ground.make(orders=1)
    put(ground, 0, 1)
    await ground.run(ground.service(book, store=MemoryStore(shared_with=store)))
    put(ground, 2, 3, 4, 5)
    ground.delete_before("orders", 4)

    async with ground.service(book, store=MemoryStore(shared_with=store)).worker() as worker:
        await becomes(worker.failure.done, "the worker stops")
        stopped = worker.failure.exception()
    before = ground.committed("orders")
    await ground.run(ground.service(book, store=MemoryStore(shared_with=store), accept_lost_offsets=True))

    assert isinstance(stopped, BrokerError)
    assert stopped.code == "_AUTO_OFFSET_RESET"
    assert "to go on without them: --accept-lost-offsets" in str(stopped)
    assert book.orders == ["o-0", "o-1", "o-4", "o-5"]
    assert (before, ground.committed("orders")) == (2, 6)


async def test_an_offset_beyond_the_end_is_never_waited_for_in_silence(ground_of_each_protocol: Ground) -> None:
    ground, book, store = ground_of_each_protocol, Book(), MemoryStore()
    ground.make(orders=1)
    put(ground, 0, 1, 2)
    await ground.read_again("orders", offset=100)

    async with ground.service(book, store=MemoryStore(shared_with=store)).worker() as worker:
        await becomes(worker.failure.done, "the worker stops")
    await ground.run(ground.service(book, store=MemoryStore(shared_with=store), accept_lost_offsets=True))
    put(ground, 3)
    await ground.run(ground.service(book, store=MemoryStore(shared_with=store)))

    assert book.orders == ["o-0", "o-1", "o-2", "o-3"]
    assert ground.committed("orders") == 4
