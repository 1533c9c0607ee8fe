"""Effects `kafka`: do emits, letters, offsets and what is finished above them commit as one, on real Kafka?

What they have in common with `offsets` is tested in the modules with BOTH_EFFECTS; what happens in crashes in tests/chaos.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from choreo import ConfigurationError, Context, Emit, Emits, Envelope, Handler, KafkaSettings
from choreo.core.offset_map import OffsetMap
from choreo.record import TopicPartition
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Book, Paid, Pay, Placed, fails, placed
from tests.support.offset_maps import maps

pytestmark = [pytest.mark.kafka, pytest.mark.parametrize("effects", ["kafka"])]

LARGE = 2 * 1_048_576


def pays(event: Placed, context: Context) -> Paid:
    return Paid(order_id=event.order_id)


class Elsewhere(Handler[Placed]):
    """Emits to the topic `gone` what waits."""

    async def handle(self, event: Envelope[Placed], context: Context) -> Emits:
        order_id = event.payload.order_id
        return [Emit(Paid(order_id=order_id), topic="gone" if order_id == "waits" else "paid")]


async def test_each_event_has_its_child_once_and_many_go_together(ground_of_each_protocol: Ground) -> None:
    ground = ground_of_each_protocol
    ground.make(orders=3, paid=2)
    ground.put("orders", *(Sent(placed(f"o-{n}"), f"o-{n % 60}".encode(), partition=n % 3) for n in range(600)))

    worker = await ground.run(ground.service(Pay(pays)))

    assert sorted(record.key or b"" for record in ground.records("paid")) == sorted(f"o-{n}".encode() for n in range(600))
    counters = worker.counters
    assert (counters.handled, counters.aborted, counters.rewinds, counters.duplicates) == (600, 0, 0, 0)
    assert counters.transactions < 100
    assert counters.commits == counters.transactions


async def test_a_letter_its_state_and_its_offset_are_there_together(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("o-1")), Sent(b"?"))

    await ground.run(ground.service(Book(fails)))

    places = [(record.partition, record.offset) for record in ground.kafka.read_all(ground.dlq)]
    assert [(state.state, state.dlq.partition, state.dlq.offset) for state in ground.states()] == [("open", *place) for place in places]
    assert sorted(letter.why["kind"] for letter in ground.dead()) == ["failed", "undecodable"]
    assert ground.committed("orders") == 2


async def test_what_is_finished_above_the_offset_is_committed_with_its_child(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed("held"), b"held"), *(Sent(placed(f"o-{n}"), b"o-%d" % n) for n in range(20)))
    gate = asyncio.Event()

    class Held(Pay):
        async def handle(self, event: Envelope[Placed], context: Context) -> Paid | None:
            if event.payload.order_id == "held":
                await gate.wait()
            return await super().handle(event, context)

    def beside() -> OffsetMap | None:
        return maps(ground.kafka, ground.group, ground.topic("orders")).get(0)

    async with ground.service(Held(pays), drain_s=0.1).worker() as worker:
        await becomes(lambda: worker.counters.handled == 20, "all but one are through", worker=worker)
        found = await asyncio.to_thread(beside)
        children = await asyncio.to_thread(ground.records, "paid")

    assert found is not None
    assert (found.offset, found.reach, list(found.unfinished), len(children)) == (0, 21, [0], 20)
    gate.set()
    pay = Pay(pays)
    worker = await ground.run(ground.service(pay))
    assert [seen.event.payload.order_id for seen in pay.seen] == ["held"]
    assert worker.counters.restored == 20


async def test_small_emits_in_one_transaction_with_a_too_large_one_arrive_and_no_handler_runs_twice(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    orders = [f"o-{number}" for number in range(100)]
    ground.put("orders", *(Sent(placed(order_id), order_id.encode()) for order_id in [*orders[:50], "large", *orders[50:]]))
    pay = Pay(lambda placed, context: Paid(order_id=placed.order_id, note="x" * (LARGE if placed.order_id == "large" else 200)))

    worker = await ground.run(ground.service(pay))

    assert sorted(record.key or b"" for record in ground.records("paid")) == sorted(order_id.encode() for order_id in orders)
    assert [letter.key for letter in ground.dead()] == [b"large"]
    assert len(pay.seen) == 101
    assert worker.counters.aborted >= 1


async def test_an_emit_whose_topic_is_gone_waits_with_its_key_and_goes_through_when_it_is_back(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground.make(orders=1, paid=1, gone=1)

    async with ground.service(Elsewhere()).worker() as worker:
        await asyncio.to_thread(ground.kafka.delete_topics, [ground.topic("gone")])
        ground.put("orders", Sent(placed("waits"), b"waits"))
        await becomes(lambda: "trying again every" in caplog.text, "it says so", worker=worker, deadline_s=60)
        ground.put("orders", *(Sent(placed(f"o-{n}"), b"o-%d" % n) for n in range(10)))
        await becomes(lambda: worker.counters.handled == 10, "the others go on", worker=worker, deadline_s=60)
        await asyncio.to_thread(ground.kafka.create_topic, ground.topic("gone"))
        await ground.caught_up(worker, deadline_s=90)

    assert len(ground.records("paid")) == 10
    assert [record.key for record in ground.records("gone")] == [b"waits"]


async def test_who_begins_with_the_latest_has_said_so_in_a_transaction_before_anything_came(ground: Ground) -> None:
    ground.make(orders=2)
    ground.put("orders", Sent(placed("before")))
    book = Book()

    async with ground.service(book, start="latest").worker() as worker:
        await becomes(lambda: worker.counters.transactions > 0, "it is committed", worker=worker)
    pinned = ground.kafka.committed(ground.group, [ground.topic("orders")])
    ground.put("orders", Sent(placed("after")))
    await ground.run(ground.service(book))

    assert pinned == {TopicPartition(ground.topic("orders"), 0): 1, TopicPartition(ground.topic("orders"), 1): 0}
    assert book.orders == ["after"]


async def test_two_without_an_id_of_their_own_have_one_each_and_a_third_one_has_that_of_the_first(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ground.make(orders=2, paid=1)
    ground.put("orders", *(Sent(placed(f"o-{n}"), b"o-%d" % n, partition=n % 2) for n in range(50)))
    ids = []

    async with ground.service(Pay(pays), transactional_id=None).worker() as first:
        ids.append(first.plan.transactional_id)
        async with ground.service(Pay(pays), transactional_id=None).worker() as second:
            ids.append(second.plan.transactional_id)
            await ground.caught_up(second)
    async with ground.service(Pay(pays), transactional_id=None).worker() as third:
        ids.append(third.plan.transactional_id)

    assert len(ground.records("paid")) == 50
    assert (ids[0] == ids[2], ids[0] == ids[1]) == (True, False)


async def test_the_in_process_broker_is_refused(ground: Ground) -> None:
    with pytest.raises(ConfigurationError, match="keeps no offsets of transactions; run a Kafka"):
        ground.service(Book(), kafka=KafkaSettings(bootstrap="embedded://"))
