"""B19: how do offsets get on where there is much to be written beside them, or where the broker takes little of it?"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from choreo import BrokerError, Context, Envelope, Handler, RetryPolicy, TransientError
from choreo.core.offset_map import MAX_CHARS, Begun, OffsetMap, handler_number, write_map
from choreo.record import TopicPartition
from tests.kafka.conftest import NOT_SETTINGS
from tests.kafka.ground import Ground, Sent, becomes
from tests.kafka.shop import Placed, placed
from tests.support.kafka_access import REQUEST_S
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names
from tests.support.offset_maps import maps, put_offsets, topic_id

pytestmark = pytest.mark.kafka

PARTITIONS = 400
FAILING = 110
LEFT_BY_ANOTHER = 900
FULL_CHARS = 3_500
"""Of a map, at least."""
A_REQUEST_CHARS = 1024 * 1024
"""The broker refuses one that has more beside its offsets, as a whole."""


class Hold(Handler[Placed]):
    """Holds the orders `held` and `later` until the gate opens; all but `held` fail, and are tried again next day."""

    retry = RetryPolicy(max_attempts=20)
    timeout_s = 600.0

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        if event.payload.order_id in ("held", "later"):
            await self.gate.wait()
        if event.payload.order_id != "held":
            raise TransientError("not today", retry_after_s=3600)


@pytest.mark.chaos
@pytest.mark.long
async def test_maps_that_are_too_large_for_one_request_go_in_several_and_every_offset_advances(
    ground_of_each_protocol: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, logger="choreo.worker")
    ground = ground_of_each_protocol
    ground.make(orders=PARTITIONS)
    topic = ground.topic("orders")
    for partition in range(PARTITIONS):
        events = [Sent(placed("held"), b"held", partition=partition)]
        events += [Sent(placed(f"o-{number}"), b"o-%d" % number, partition=partition) for number in range(FAILING)]
        ground.put("orders", *events)
    fill(ground, LEFT_BY_ANOTHER - FAILING)
    # As an earlier run would have left it that had received so many.
    left = full_map(topic_id(ground.kafka, topic))
    assert FULL_CHARS < len(left) <= MAX_CHARS
    assert PARTITIONS * len(left) > A_REQUEST_CHARS
    put_offsets(ground.kafka, ground.group, {TopicPartition(topic, number): (0, left) for number in range(PARTITIONS)})
    hold = Hold()

    async with ground.service(hold, concurrency=1000, drain_s=0.2).worker() as worker:
        await becomes(lambda: worker.counters.retried == PARTITIONS * FAILING, "all fail once", worker=worker, deadline_s=60)
        await becomes(lambda: all_of(ground, offset=0, attempts=2, unclean=1), "that is recorded", worker=worker, deadline_s=30)
        before, enough = worker.counters.commits, PARTITIONS * len(left) / A_REQUEST_CHARS
        hold.gate.set()
        await becomes(lambda: all_of(ground, offset=1, attempts=2, unclean=1), "every offset advances", worker=worker, deadline_s=30)
        await becomes(lambda: worker.counters.commits - before >= enough, "so many requests were needed", worker=worker)

    # The drain ran out of time; what the partitions were let go with is written in several requests, too.
    assert all_of(ground, offset=1, attempts=2, unclean=0)
    assert (worker.counters.commit_errors, worker.counters.maps_left_out, worker.counters.maps_ignored) == (0, 0, 0)


def fill(ground: Ground, count: int) -> None:
    """Takes so many offsets more of each partition. Nobody sees these records: their transaction is aborted."""
    many_at_once = {"linger.ms": 1000, "queue.buffering.max.messages": 1_000_000}
    producer = Producer(ground.kafka.config({"transactional.id": ground.group, **many_at_once}))
    producer.init_transactions(REQUEST_S)
    producer.begin_transaction()
    for partition in range(PARTITIONS):
        for _ in range(count):
            producer.produce(ground.topic("orders"), None, None, partition)
    assert producer.flush(REQUEST_S * 2) == 0
    producer.abort_transaction(REQUEST_S * 2)


def full_map(topic: bytes) -> str:
    number = handler_number("hold")
    unfinished = {offset: {number: Begun(1)} for offset in range(LEFT_BY_ANOTHER)}
    return write_map(OffsetMap(topic, 0, 0, 0, LEFT_BY_ANOTHER, (number,), unfinished))


def all_of(ground: Ground, *, offset: int, attempts: int, unclean: int) -> bool:
    """Whether that is what is committed of each partition, with all that is known of the events above; each tenth is read."""
    number, topic = handler_number("hold"), ground.topic("orders")
    committed = ground.kafka.committed_with_metadata(ground.group, [topic])
    if any(at != offset or len(text or "") < FULL_CHARS for at, text in committed.values()):
        return False
    found = maps(ground.kafka, ground.group, topic, partitions=range(0, PARTITIONS, 10))
    return len(found) == PARTITIONS / 10 and all(
        (read.offset, read.unclean) == (offset, unclean)
        and len(read.unfinished) == LEFT_BY_ANOTHER - offset
        and read.unfinished[FAILING] == {number: Begun(attempts)}
        and read.unfinished[LEFT_BY_ANOTHER - 1] == {number: Begun(1)}
        for read in found.values()
    )


# ---- a broker that takes little ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[100, 16], ids=["bare", "nothing"])
def close_broker(request: pytest.FixtureRequest) -> Iterator[KafkaCluster]:
    """One that takes no more than so many characters beside an offset: enough for the count of crashes, or not even for that."""
    with KafkaCluster(1, properties={"offset.metadata.max.bytes": str(request.param)}) as cluster:
        yield cluster


@pytest.fixture
def close_ground(close_broker: KafkaCluster, names: Names, group_protocol: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    for variable in NOT_SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    made = Ground(close_broker.access(), names, group_protocol)
    yield made
    made.delete()


async def test_a_broker_that_takes_little_beside_an_offset_gets_the_offset_all_the_same_and_that_is_said_once(
    close_ground: Ground, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    ground, hold = close_ground, Hold()
    ground.make(orders=1)
    ground.put("orders", Sent(placed("held"), b"held"), *(Sent(placed(f"o-{number}"), b"o-%d" % number) for number in range(FAILING)))

    async with ground.service(hold, concurrency=1000, drain_s=0.2).worker() as worker:
        await becomes(lambda: worker.counters.retried == FAILING, "what is not held has failed once", worker=worker)
        await becomes(lambda: worker.counters.maps_left_out, "the broker has refused a map", worker=worker)
        hold.gate.set()
        await becomes(lambda: ground.committed("orders") == 1, "the offset advances", worker=worker)

    assert [text.partition(":")[0] for text in said(caplog)] == [f"{ground.topic('orders')}[0]"]
    assert there(ground) == ({0: (1, 0, None)} if "bare" in request.node.name else {})


async def test_transactions_that_need_more_room_beside_an_offset_end_the_service_with_what_to_do(close_ground: Ground) -> None:
    ground, hold = close_ground, Hold()
    ground.make(orders=1)
    ground.put("orders", Sent(placed("held"), b"held"), *(Sent(placed(f"o-{number}"), b"o-%d" % number) for number in range(FAILING)))

    with pytest.raises(BrokerError, match=r"OFFSET_METADATA_TOO_LARGE.*raise the broker's offset.metadata.max.bytes to 4096"):
        async with ground.service(hold, concurrency=1000, drain_s=0.2, effects="kafka").worker() as worker:
            await becomes(lambda: worker.failure.done() and worker.failure.result(), "it ends", worker=worker)

    assert (ground.committed("orders") or 0) == 0


@pytest.mark.parametrize("close_broker", [100], ids=["bare"], indirect=True)
async def test_what_is_short_enough_stays_beside_an_offset_whose_neighbours_text_is_refused(close_ground: Ground) -> None:
    # librdkafka reports the refusal of one text for all of its request; the broker has taken the others.
    ground, hold, few = close_ground, Hold(), 25
    ground.make(orders=2)
    for partition, name, count in ((0, "at once", FAILING), (1, "later", few)):
        others = [Sent(placed(name), b"o-%d" % number, partition=partition) for number in range(count)]
        ground.put("orders", Sent(placed("held"), b"held", partition=partition), *others)

    async with ground.service(hold, concurrency=1000, drain_s=0.2).worker() as worker:
        await becomes(lambda: there(ground).get(0) == (0, 1, None), "the map of the first is refused", worker=worker)
        ground.put("orders", Sent(placed("later"), b"one more", partition=1))
        await becomes(lambda: there(ground) == {0: (0, 1, None), 1: (0, 1, 2 + few)}, "the second has its own", worker=worker)
        hold.gate.set()
        await becomes(lambda: there(ground) == {0: (1, 1, None), 1: (1, 1, None)}, "both count crashes", worker=worker)

    assert there(ground) == {0: (1, 0, None), 1: (1, 0, None)}


def there(ground: Ground) -> dict[int, tuple[int, int, int | None]]:
    """Offset, unclean ends and reach, by partition, where something is written beside the offset."""
    found = maps(ground.kafka, ground.group, ground.topic("orders"))
    return {partition: (read.offset, read.unclean, read.reach) for partition, read in found.items()}


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "offset.metadata.max.bytes" in record.getMessage()]
