"""How do events get on that run one at a time because their process has ended twice, where less than usual is known of them?"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from choreo import Context, Envelope, Handler, RetryPolicy, TransientError
from choreo.core.offset_map import OffsetMap, write_map
from choreo.record import TopicPartition
from tests.kafka.conftest import NOT_SETTINGS
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Book, Placed, placed
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names
from tests.support.offset_maps import put_offsets, topic_id
from tests.support.waiting import wait_for

pytestmark = pytest.mark.kafka

BROKER = {"offset.metadata.max.bytes": "100", "log.cleaner.backoff.ms": "300"}
COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "300",
    "min.cleanable.dirty.ratio": "0.001",
    "delete.retention.ms": "0",
    "min.compaction.lag.ms": "0",
}
WATCHED = 60


class Fails(Handler[Placed]):
    """Fails at each event, and is tried again soon."""

    retry = RetryPolicy(max_attempts=2)

    def __init__(self) -> None:
        self.orders: list[str] = []

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.orders.append(event.payload.order_id)
        raise TransientError("no", retry_after_s=0.05)


@pytest.fixture(scope="module")
def close_broker() -> Iterator[KafkaCluster]:
    """One that takes a hundred characters beside an offset, no map of many events, and that compacts soon."""
    with KafkaCluster(1, properties=BROKER) as cluster:
        yield cluster


@pytest.fixture
def close_ground(close_broker: KafkaCluster, names: Names, group_protocol: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    for variable in NOT_SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    made = Ground(close_broker.access(), names, group_protocol)
    yield made
    made.delete()


async def test_those_that_fail_are_tried_again_where_no_map_tells_of_it(close_ground: Ground) -> None:
    # What is written when an attempt begins is then what was written before: nothing is left to be waited for.
    ground, fails = close_ground, Fails()
    ground.make(orders=1)
    ground.put("orders", *(Sent(placed(f"o-{number}"), b"k-%d" % number) for number in range(WATCHED)))
    ended_twice(ground, WATCHED)

    async with ground.service(fails, drain_s=0.2).worker() as worker:
        await ground.caught_up(worker)

    assert (len(fails.orders), worker.counters.dead_lettered) == (2 * WATCHED, WATCHED)


async def test_those_that_compaction_has_taken_are_not_waited_for(close_ground: Ground) -> None:
    ground, book = close_ground, Book()
    ground.make(other=1)
    topic = ground.kafka.create_topic(ground.topic("orders"), config=COMPACTED)
    ground.put("orders", Sent(placed("first"), b"first"), *(Sent(placed(f"o-{number}"), b"k") for number in range(1, WATCHED)))
    ended_twice(ground, WATCHED)

    def compacted() -> bool:
        ground.put("orders", Sent(placed("again"), b"k"))
        return [record.offset for record in ground.kafka.read_all(topic) if record.offset < WATCHED] == [0]

    await asyncio.to_thread(wait_for, compacted, "what was watched is compacted away", deadline_s=25, every_s=0.4)
    async with ground.service(book, drain_s=0.2).worker() as worker:
        await ground.caught_up(worker)

    assert (book.orders[0], set(book.orders[1:])) == ("first", {"again"})


def ended_twice(ground: Ground, watched: int) -> None:
    """As two runs in a row left it whose process ended while they were handed these events."""
    place = TopicPartition(ground.topic("orders"), 0)
    text = write_map(OffsetMap(topic_id(ground.kafka, place.topic), 0, 2, watched, None))
    put_offsets(ground.kafka, ground.group, {place: (0, text)})
