"""Does whoever publishes learn what became of the event, whatever happens meanwhile? Both publishers, on the memory broker."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from choreo.envelope import ID
from choreo.errors import BrokerError, ConfigurationError
from choreo.events import Event
from choreo.handler import Emit
from choreo.runtime import publishing
from choreo.runtime.publishing import Published
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.testing import MemoryBroker

DEADLINE_S = 10.0
Publish = Callable[..., Published]


class Placed(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    number: int = 0


class Undeclared(Event, type="order.undeclared", topic="orders", key="order_id"):
    order_id: str


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic("orders")
    return broker


def shop(broker: MemoryBroker) -> Service:
    return Service("shop", publishes=[Placed], settings=ServiceSettings(broker=broker))


@contextmanager
def plain(service: Service) -> Iterator[Publish]:
    with service.publisher() as publisher:
        yield publisher.publish


@contextmanager
def asynchronous(service: Service) -> Iterator[Publish]:
    """An async publisher that is called as a plain one."""
    with asyncio.Runner() as runner:
        entered = service.publisher()
        publisher = runner.run(entered.__aenter__())

        async def within(*events: Event, event_id: str | None) -> Published:
            return await asyncio.wait_for(publisher.publish(*events, event_id=event_id), DEADLINE_S)

        try:
            yield lambda *events, event_id=None: runner.run(within(*events, event_id=event_id))
        finally:
            runner.run(entered.__aexit__(None, None, None))


BOTH = pytest.mark.parametrize("publisher", [plain, asynchronous])
Enter = Callable[[Service], AbstractContextManager[Publish]]


def ids(broker: MemoryBroker) -> list[str]:
    return [(dict(record.headers)[ID] or b"").decode() for record in broker.records("orders")]


async def becomes(condition: Callable[[], object], what: str) -> None:
    ends_at = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < ends_at, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.001)


# ---- what both have in common -------------------------------------------------------------------------------------------


@BOTH
def test_events_of_one_call_are_one_flow_in_order(broker: MemoryBroker, publisher: Enter) -> None:
    with publisher(shop(broker)) as publish:
        published = publish(Placed(order_id="o", number=1), Placed(order_id="p", number=2), Placed(order_id="o", number=3))

    flows = {dict(record.headers)["choreo-correlation-id"] for record in broker.records("orders")}
    assert (published.flow_id, flows) == (published.event_id, {published.flow_id.encode()})
    assert [(r.value or b"")[-3:-2] for r in broker.records("orders") if r.key == b"o"] == [b"1", b"3"]


@BOTH
def test_a_topic_that_is_not_there_is_an_error(broker: MemoryBroker, publisher: Enter) -> None:
    with publisher(shop(broker)) as publish:
        with pytest.raises(BrokerError, match="missing: no such topic") as refused:
            publish(Emit(Placed(order_id="o"), topic="missing"))

    assert (refused.value.code, refused.value.retriable) == ("UNKNOWN_TOPIC_OR_PART", False)


@BOTH
def test_a_right_that_is_missing_is_an_error(broker: MemoryBroker, publisher: Enter) -> None:
    broker.fail_sends("orders", "TOPIC_AUTHORIZATION_FAILED", retriable=False)

    with publisher(shop(broker)) as publish:
        with pytest.raises(BrokerError, match=r"TOPIC_AUTHORIZATION_FAILED, as the test asked$"):
            publish(Placed(order_id="o"))

    assert broker.records("orders") == []


@BOTH
def test_an_event_that_is_too_large_is_an_error_and_the_next_one_goes_through(broker: MemoryBroker, publisher: Enter) -> None:
    with publisher(shop(broker)) as publish:
        with pytest.raises(BrokerError) as refused:
            publish(Placed(order_id="x" * 1_100_000))
        publish(Placed(order_id="o"), event_id="e-1")

    assert (refused.value.code, ids(broker)) == ("MSG_SIZE_TOO_LARGE", ["e-1"])


@BOTH
def test_a_time_out_is_an_error_that_names_the_id_to_publish_again_with(broker: MemoryBroker, publisher: Enter) -> None:
    broker.fail_sends("orders", "_MSG_TIMED_OUT")

    with publisher(shop(broker)) as publish:
        with pytest.raises(BrokerError, match=r"; unknown whether it was written: publish it again with event_id='e-1'$") as failed:
            publish(Placed(order_id="o"), event_id="e-1")
        publish(Placed(order_id="o"), event_id="e-1")

    assert (failed.value.code, failed.value.retriable, ids(broker)) == ("_MSG_TIMED_OUT", True, ["e-1"])


@BOTH
def test_publishing_again_under_the_id_of_the_first_event_makes_the_same_events(broker: MemoryBroker, publisher: Enter) -> None:
    events = [Placed(order_id="o"), Placed(order_id="p"), Placed(order_id="o")]

    with publisher(shop(broker)) as publish:
        first = publish(*events)
        publish(*events, event_id=first.event_id)

    assert [ids(broker).count(event_id) for event_id in set(ids(broker))] == [2, 2, 2]


@BOTH
def test_after_an_event_that_failed_no_later_one_of_its_key_is_written(broker: MemoryBroker, publisher: Enter) -> None:
    broker.fail_sends("orders", "_MSG_TIMED_OUT")

    with publisher(shop(broker)) as publish:
        with pytest.raises(BrokerError):
            publish(Placed(order_id="o"), Placed(order_id="o"), event_id="e-1")

    assert broker.records("orders") == []


@BOTH
def test_what_the_service_does_not_declare_is_refused(broker: MemoryBroker, publisher: Enter) -> None:
    with publisher(shop(broker)) as publish:
        with pytest.raises(ConfigurationError, match="does not declare that it publishes Undeclared"):
            publish(Undeclared(order_id="o"))


def test_publishing_after_the_block_is_an_error(broker: MemoryBroker) -> None:
    service = shop(broker)
    with service.publisher() as kept:
        pass
    errors: list[BrokerError] = []

    async def kept_async() -> None:
        async with service.publisher() as kept:
            pass
        await asyncio.wait_for(kept.publish(Placed(order_id="o")), DEADLINE_S)

    for late in (lambda: kept.publish(Placed(order_id="o")), lambda: asyncio.run(kept_async())):
        with pytest.raises(BrokerError, match=r"^writing to orders: this publisher is closed; publish within its block$") as refused:
            late()
        errors.append(refused.value)

    assert [(error.code, error.retriable) for error in errors] == [("_STATE", False)] * 2
    assert broker.records("orders") == []


# ---- the plain one ------------------------------------------------------------------------------------------------------


def test_the_plain_one_waits_while_the_queue_is_full() -> None:
    broker = MemoryBroker(queue_records=2)
    broker.create_topic("orders")
    broker.hold_sends("orders")
    release = threading.Timer(0.05, broker.release_sends, ["orders"])

    with plain(shop(broker)) as publish:
        release.start()
        publish(*(Placed(order_id=f"o-{number}") for number in range(5)))

    assert len(broker.records("orders")) == 5


# ---- the async one ------------------------------------------------------------------------------------------------------


async def test_many_at_once_go_through_a_queue_that_holds_few() -> None:
    broker = MemoryBroker(queue_records=2)
    broker.create_topic("orders")

    async with shop(broker).publisher() as publisher, asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(publisher.publish(Placed(order_id="o"), event_id=f"e-{number}") for number in range(100)))

    assert ids(broker) == [f"e-{number}" for number in range(100)]


async def test_what_is_under_way_when_the_block_ends_is_waited_for_while_the_loop_goes_on(broker: MemoryBroker) -> None:
    broker.hold_sends("orders")
    async with shop(broker).publisher() as publisher:
        under_way = asyncio.create_task(publisher.publish(Placed(order_id="o"), Placed(order_id="o"), event_id="e-1"))
        asyncio.get_running_loop().call_later(0.02, broker.release_sends, "orders")
        await asyncio.sleep(0)

    published = await under_way
    assert published.event_id == ids(broker)[0] == "e-1"
    assert len(broker.records("orders")) == 2


async def test_nothing_more_is_taken_while_the_block_ends(broker: MemoryBroker) -> None:
    broker.hold_sends("orders")
    publishing = shop(broker).publisher()
    publisher = await publishing.__aenter__()
    under_way = asyncio.create_task(publisher.publish(Placed(order_id="o"), event_id="e-1"))
    await asyncio.sleep(0)
    ending = asyncio.create_task(publishing.__aexit__(None, None, None))
    await asyncio.sleep(0)

    with pytest.raises(BrokerError, match="this publisher is closed"):
        await publisher.publish(Placed(order_id="o"), event_id="e-2")
    broker.release_sends("orders")
    await asyncio.gather(under_way, ending)

    assert ids(broker) == ["e-1"]


async def test_what_is_not_acknowledged_when_the_block_has_ended_is_an_error_that_says_so(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "FLUSH_S", 0.01)
    broker.hold_sends("orders")
    async with shop(broker).publisher() as publisher:
        under_way = asyncio.create_task(publisher.publish(Placed(order_id="o"), event_id="e-1"))
        await asyncio.sleep(0)

    with pytest.raises(BrokerError) as failed:
        await asyncio.wait_for(under_way, DEADLINE_S)

    assert str(failed.value) == (
        "writing to orders: closed before it was acknowledged; unknown whether it was written: publish it again with event_id='e-1'"
    )
    assert failed.value.retriable


async def test_a_block_whose_end_is_cancelled_still_tells_who_publishes(broker: MemoryBroker) -> None:
    broker.hold_sends("orders")
    under_way: asyncio.Task[Published] | None = None

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), shop(broker).publisher() as publisher:
            under_way = asyncio.create_task(publisher.publish(Placed(order_id="o"), event_id="e-1"))
            await asyncio.sleep(0)

    assert under_way is not None
    with pytest.raises(BrokerError, match="closed before it was acknowledged"):
        await asyncio.wait_for(under_way, DEADLINE_S)


async def test_an_event_whose_publisher_gave_up_waiting_is_still_written(broker: MemoryBroker) -> None:
    broker.hold_sends("orders")
    async with shop(broker).publisher() as publisher:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(publisher.publish(Placed(order_id="o"), event_id="e-1"), 0.01)
        asyncio.get_running_loop().call_later(0.01, broker.release_sends, "orders")

    assert ids(broker) == ["e-1"]
