"""B17: what becomes of a group whose topic was deleted, made again under its name, and filled past the committed offset?"""

from __future__ import annotations

import asyncio

import pytest

from choreo import BrokerError, Context, Envelope, Handler
from choreo.record import TopicPartition
from choreo.runtime import membership
from choreo.runtime.worker import Worker
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import QUICK, Book, Paid, envelope, placed
from tests.support.offset_maps import maps, put_offsets, topic_id

pytestmark = pytest.mark.kafka

OLD, NEW = 5, 20
LOOK_AGAIN_S = 0.1


class Note(Handler[Paid]):
    """Another topic's handler, in the same worker."""

    retry = QUICK

    async def handle(self, event: Envelope[Paid], context: Context) -> None:
        return


async def test_a_live_member_stops_with_it_says_so_and_commits_nothing_of_it(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # By the classic protocol nobody but choreo looks: librdkafka reads on in the new topic from the offset of the old one.
    ground.protocol = "classic"
    monkeypatch.setattr(membership, "TOPIC_IDS_EVERY_S", LOOK_AGAIN_S)
    ground.make(orders=1, paid=1)
    put(ground, "old", OLD)
    book = Book()

    async with ground.service(book, Note()).worker() as worker:
        await ground.caught_up(worker)
        await asyncio.to_thread(recreate, ground)
        await becomes(lambda: said(caplog, "ERROR"), "it is noticed", worker=worker)
        await others_go_on(ground, worker, 1)  # whatever was under way has ended
        handled, committed = list(book.orders), ground.committed("orders")
        put(ground, "late", 5)
        await others_go_on(ground, worker, 2)

    where = f"{ground.topic('orders')}[0]"
    assert said(caplog, "ERROR") == [
        f"{where}: the topic was deleted and made again under its name: offsets mean other events now; nothing of it is handled or"
        " committed any more. Restart with --accept-lost-offsets to begin with what it holds"
    ]
    assert (worker.failure.done(), worker.counters.broker_errors) == (False, 1)
    assert book.orders == handled
    assert ground.committed("orders") == committed
    await refused_then_accepted(ground, [f"new-{number}" for number in range(NEW)] + [f"late-{number}" for number in range(5)])


async def test_a_live_member_that_gets_it_assigned_anew_stops(ground: Ground) -> None:
    # By the consumer protocol the broker takes the old topic's partition away and assigns the new one.
    ground.protocol = "consumer"
    ground.make(orders=1)
    put(ground, "old", OLD)
    book = Book()

    async with ground.service(book).worker() as worker:
        await ground.caught_up(worker)
        await asyncio.to_thread(recreate, ground)
        await becomes(worker.failure.done, "the worker stops")
        stopped = worker.failure.exception()

    assert isinstance(stopped, BrokerError)
    assert (stopped.code, stopped.retriable) == ("LOST_OFFSETS", False)
    assert len(book.orders) == OLD
    assert ground.committed("orders") in (None, OLD)
    await refused_then_accepted(ground, [f"new-{number}" for number in range(NEW)])


async def test_a_start_at_an_offset_of_the_topic_before_it_is_refused_until_that_is_accepted(ground_of_each_protocol: Ground) -> None:
    # The broker deletes a group's offsets with their topic; who restores the group brings them back.
    ground = ground_of_each_protocol
    ground.make(orders=1)
    put(ground, "old", OLD)
    await ground.run(ground.service(Book()))
    place = TopicPartition(ground.topic("orders"), 0)
    offset, text = ground.kafka.committed_with_metadata(ground.group, [place.topic])[place]

    recreate(ground)
    put_offsets(ground.kafka, ground.group, {place: (offset or 0, text or "")})
    refused = await refused_then_accepted(ground, [f"new-{number}" for number in range(NEW)])

    assert offset == OLD
    assert refused == (
        f"{place}: group {ground.group} committed offset {OLD} of a topic of this name that was deleted; this is another; to begin with"
        " what it holds: --accept-lost-offsets"
    )


async def refused_then_accepted(ground: Ground, expected: list[str]) -> str:
    """A start ends with LOST_OFFSETS and changes nothing; what it said. One that accepts reads the new topic from its beginning."""
    book, before = Book(), ground.committed("orders")
    async with ground.service(book).worker() as worker:
        await becomes(worker.failure.done, "the worker stops")
        stopped = worker.failure.exception()
    assert isinstance(stopped, BrokerError)
    assert (stopped.code, stopped.retriable) == ("LOST_OFFSETS", False)
    assert (book.orders, ground.committed("orders")) == ([], before)

    await ground.run(ground.service(book, accept_lost_offsets=True))
    assert book.orders == expected
    found = maps(ground.kafka, ground.group, ground.topic("orders"))[0]
    assert (found.offset, found.topic_id) == (len(expected), topic_id(ground.kafka, ground.topic("orders")))
    return str(stopped)


def put(ground: Ground, name: str, count: int) -> None:
    ground.put("orders", *(Sent(placed(f"{name}-{number}")) for number in range(count)))


def recreate(ground: Ground) -> None:
    topic = ground.topic("orders")
    ground.kafka.delete_topics([topic])
    ground.kafka.create_topic(topic)
    put(ground, "new", NEW)


async def others_go_on(ground: Ground, worker: Worker, number: int) -> None:
    """The other topic's next event, the `number`-th, is handled and committed."""
    ground.put("paid", Sent(envelope({"order_id": f"o-{number}"}, event_type="order.paid")))
    await becomes(lambda: ground.committed("paid") == number, "the other topic goes on", worker=worker)


def said(caplog: pytest.LogCaptureFixture, level: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == level and record.name.startswith("choreo")]
