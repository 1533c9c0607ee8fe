"""P12: the same event id with another payload. It is no duplicate, and whoever emitted it is named."""

from __future__ import annotations

import logging

import pytest

from choreo.record import Outgoing
from choreo.storage.memory import MemoryStore
from choreo.storage.sqlite import SqliteStore
from choreo.store import Claim, Store
from tests.runtime.shop import SHOP, Book, becomes, place, placed, shop, shop_broker

SAME = placed("o-1")
RESPELT = SAME.replace(b'"type":"order.placed",', b'"extra": 1, "type" : "order.placed" ,')
OTHER = placed("o-2")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path_factory.mktemp("claims") / "claims.db")


async def test_another_payload_under_a_claimed_id_is_not_applied_but_counted_and_its_source_named(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    broker, book = shop_broker(), Book()
    place(broker, "e-1", value=SAME)
    async with shop(broker, book, store=store).worker() as worker:
        await becomes(lambda: worker.counters.handled == 1, "the first is handled", worker)

    headers: list[tuple[str, bytes | None]] = [("choreo-id", b"e-1"), ("choreo-source", b"orders/http")]
    broker.write(Outgoing("orders", b"k", OTHER, headers))
    with caplog.at_level(logging.ERROR, "choreo.claims"):
        async with shop(broker, book, store=store).worker() as worker:
            await becomes(lambda: worker.counters.duplicates == 1, "the second is dropped", worker)

    assert (book.calls, worker.counters.id_collisions, worker.counters.dead_lettered) == (["e-1"], 1, 0)
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("book: orders[0]@1: event e-1 came with another payload than the one that was handled, and is not applied")
    assert "orders/http emits differently" in said


async def test_it_is_seen_within_one_process_too(store: Store) -> None:
    broker, book = shop_broker(), Book()
    async with shop(broker, book, store=store).worker() as worker:
        place(broker, "e-1", value=SAME)
        await becomes(lambda: worker.counters.handled == 1, "the first is handled", worker)
        place(broker, "e-1", value=OTHER)
        await becomes(lambda: worker.counters.duplicates == 1, "the second is dropped", worker)

    assert (book.calls, worker.counters.id_collisions) == (["e-1"], 1)


async def test_a_duplicate_is_no_collision_whatever_stands_around_its_payload(store: Store) -> None:
    broker, book = shop_broker(), Book()
    place(broker, "e-1", value=SAME)
    place(broker, "e-1", value=SAME, key="another-key")
    place(broker, "e-1", value=RESPELT)

    async with shop(broker, book, store=store).worker() as worker:
        await becomes(lambda: worker.counters.duplicates == 2, "the others are dropped", worker)

    assert (book.calls, worker.counters.id_collisions) == (["e-1"], 0)


async def test_a_claim_that_was_made_without_a_hash_says_nothing(store: Store) -> None:
    broker, book = shop_broker(), Book()
    store.open(SHOP)
    store.claim([Claim("book", "e-1")])
    place(broker, "e-1", value=SAME)

    async with shop(broker, book, store=store).worker() as worker:
        await becomes(lambda: worker.counters.duplicates == 1, "it is dropped", worker)

    assert (book.calls, worker.counters.id_collisions) == ([], 0)
