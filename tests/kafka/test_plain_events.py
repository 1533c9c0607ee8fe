"""What is an event that came without choreo's headers, as kcat and other languages write it?"""

from __future__ import annotations

import pytest

from choreo import MemoryStore
from choreo.envelope import plain_id
from tests.kafka.ground import BOTH_EFFECTS, Ground, Sent
from tests.kafka.shop import Book, Paid, Pay, fails, placed

pytestmark = [pytest.mark.kafka, BOTH_EFFECTS]


async def test_an_event_without_headers_has_an_id_and_a_flow_of_its_own(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", *(Sent(placed(), key) for key in (b"o-1", b"o-1", None)))
    book = Book()

    await ground.run(ground.service(book))

    log = {record.offset: record for record in ground.records("orders")}
    seen = {s.context.origin.offset: s.context for s in book.seen}
    assert {offset: context.event_id for offset, context in seen.items()} == {offset: plain_id(record) for offset, record in log.items()}
    assert [(c.flow_id == c.event_id, c.cause_id, c.source, dict(c.baggage)) for c in seen.values()] == [(True, None, None, {})] * 3
    assert len({context.event_id for context in seen.values()}) == 3


async def test_the_id_of_an_event_without_headers_is_the_same_after_a_restart(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed()), Sent(placed("o-2")))
    pay = Pay(lambda placed, context: Paid(order_id=placed.order_id))

    await ground.run(ground.service(pay))
    await ground.read_again("orders")
    await ground.run(ground.service(pay))

    before, after = pay.seen[:2], pay.seen[2:]
    assert [seen.context.event_id for seen in before] == [seen.context.event_id for seen in after]
    children = [dict(record.headers)["choreo-id"] for record in ground.records("paid")]
    assert children[:2] == children[2:]


async def test_claims_know_an_event_without_headers_again(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()), Sent(placed()))
    book, store = Book(), MemoryStore()

    await ground.run(ground.service(book, store=store))
    await ground.read_again("orders")
    worker = await ground.run(ground.service(book, store=MemoryStore(shared_with=store)))

    assert (len(book.seen), worker.counters.duplicates) == (2, 2)


async def test_a_letter_of_an_event_without_headers_names_its_derived_id(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()))

    await ground.run(ground.service(Book(fails)))

    (record,), (letter,) = ground.records("orders"), ground.dead()
    assert (letter.why["event-id"], letter.headers) == (plain_id(record), [])
