"""What does `Service(...)` refuse, in what order does it open and close things, and how does a failure come out of it?"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from choreo import (
    ConfigurationError,
    Context,
    DataclassEvent,
    Envelope,
    Event,
    Handler,
    KafkaSettings,
    MemoryStore,
    Service,
    ServiceSettings,
    SqliteStore,
    StoreError,
    derived_id,
)
from choreo.cli import demo_shop, start_screen
from choreo.cli.loading import Target
from choreo.flows.tree import FlowEvent
from choreo.kafka.embedded import HOST
from choreo.process import SWITCH_S
from choreo.runtime.lifeline import Ready
from choreo.service import Resource, Started
from choreo.store import Claim, Store
from choreo.testing import MemoryBroker
from services_example.orders import events as demo_events
from tests.runtime.ledger import Ledger, LedgerStore, PlainLedger
from tests.support.process import WorkerProcess

DEADLINE_S = 20.0
LONG_S = 3_600.0


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class ParcelSent(Event, type="parcel.sent", topic="parcels", key="order_id"):
    order_id: str


class Mixin(Event):
    order_id: str


class Book(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None: ...


class Note(Handler[OrderPlaced]):
    aliases = ("book",)

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None: ...


class Join(Handler[OrderPlaced | ParcelSent]):
    async def handle(self, event: Envelope[OrderPlaced | ParcelSent], context: Context) -> None: ...


class InTransaction(Handler[OrderPlaced, Ledger]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context[Ledger]) -> None: ...


class PlainlyInTransaction(Handler[OrderPlaced, PlainLedger]):
    def handle(self, event: Envelope[OrderPlaced], context: Context[PlainLedger]) -> None: ...


class AsyncOnPlain(Handler[OrderPlaced, PlainLedger]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context[PlainLedger]) -> None: ...


class PlainOnAsync(Handler[OrderPlaced, Ledger]):
    def handle(self, event: Envelope[OrderPlaced], context: Context[Ledger]) -> None: ...


class Collect(Handler[OrderPlaced]):
    """Notes down the orders it saw; `saw_last` is set by the order ``last``."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.saw_last = asyncio.Event()

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
        self.seen.append(event.payload.order_id)
        if event.payload.order_id == "last":
            self.saw_last.set()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHOREO_")]:
        monkeypatch.delenv(name)


def service(
    handlers: Sequence[Handler[Any, Any]] = (),
    *,
    resources: Sequence[Resource] = (),
    store: Any = None,
    topics: bool = True,
    prefix: str = "",
) -> Service:
    """On a broker of its own, with all of its topics or none."""
    broker = MemoryBroker()
    settings = ServiceSettings(broker=broker, drain_s=2.0, topic_prefix=prefix)
    made = Service(
        "books", handlers=handlers, publishes=[OrderPlaced], resources=resources, store=store or MemoryStore(), settings=settings
    )
    for topic in made.topics() if topics else ():
        broker.create_topic(prefix + topic)
    return made


# ---- what it refuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Books", "-books", "bo oks", "books.eu", "b" * 101, "bücher"])
def test_a_name_that_cannot_name_a_group_and_topics_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="use lower-case letters, digits"):
        Service(name)


def test_two_handlers_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="service books: two handlers are called 'book'"):
        Service("books", handlers=[Book(), Book()])


def test_a_former_name_that_another_handler_has_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="service books: two handlers are called 'book'"):
        Service("books", handlers=[Book(), Note()])


@pytest.mark.parametrize(
    ("store", "said"),
    [(None, "no store was given"), (MemoryStore(), "MemoryStore has none of that class")],
)
def test_a_handler_that_asks_for_a_transaction_needs_a_store_that_has_some(store: Store | None, said: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"handler in-transaction: Handler\[\.\.\., Ledger\] .*{said}: SqliteStore has sqlite3.Connection"
    ):
        Service("books", handlers=[InTransaction()], store=store)


@pytest.mark.parametrize(
    ("handler", "said"),
    [(AsyncOnPlain(), "its connections block; write 'def handle'"), (PlainOnAsync(), "are async; write 'async def handle'")],
)
def test_a_handler_is_the_kind_of_function_that_its_connections_need(handler: Handler[OrderPlaced, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        Service("books", handlers=[handler], store=LedgerStore())


def test_offsets_leave_a_handlers_transaction_no_claims_and_are_refused() -> None:
    with pytest.raises(ConfigurationError, match='is handled in a transaction of its database; leave out effects="offsets"'):
        Service("books", handlers=[InTransaction()], settings=ServiceSettings(effects="offsets"))


@pytest.mark.parametrize("effects", ["offsets", "kafka"])
def test_effects_that_keep_no_claims_are_refused_beside_a_store_also_where_a_flag_says_so(effects: str) -> None:
    service = Service("books", store=MemoryStore())

    with pytest.raises(ConfigurationError, match=f'effects="{effects}" keeps no claims; leave out store='):
        service.plan(service.resolve({"effects": effects}).settings)


def test_async_and_plain_transactions_stand_in_one_service() -> None:
    actual = Service("books", handlers=[InTransaction(), PlainlyInTransaction()], store=LedgerStore())

    assert [spec.transaction for spec in actual.specs] == [Ledger, PlainLedger]


def test_offsets_beside_a_store_are_refused() -> None:
    with pytest.raises(ConfigurationError, match='effects="offsets" keeps no claims; leave out store='):
        Service("books", store=MemoryStore(), settings=ServiceSettings(effects="offsets"))


def test_publishing_what_is_no_event_type_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="service books: Mixin is no event type; it needs type=, topic=, key="):
        Service("books", publishes=[Mixin])


def test_a_dataclass_whose_key_is_no_field_is_refused() -> None:
    @dataclass(frozen=True)
    class Misspelt(DataclassEvent, type="misspelt", topic="orders", key="ordr_id"):
        order_id: str

    with pytest.raises(ConfigurationError, match="ordr_id"):
        Service("books", publishes=[Misspelt])


def test_one_type_on_two_topics_is_refused() -> None:
    class OtherOrderPlaced(Event, type="order.placed", topic="orders-eu", key="order_id"):
        order_id: str

    with pytest.raises(ConfigurationError, match=r"order\.placed is on topic orders in OrderPlaced and on orders-eu in OtherOrderPlaced"):
        Service("books", publishes=[OrderPlaced, OtherOrderPlaced])


def test_a_handler_that_joins_topics_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Service("books", handlers=[Join()])

    assert "handler join joins topics orders, parcels" in caplog.text


def test_making_a_service_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    broker_that_is_away = KafkaSettings(bootstrap="127.0.0.1:1", properties={"linger.mss": 1})

    made = Service("books", handlers=[Book()], settings=ServiceSettings(kafka=broker_that_is_away))

    assert made.topics() == ["orders", "books.dlq", "books.letters", "books.replay"]
    assert list(tmp_path.iterdir()) == []


# ---- resources ------------------------------------------------------------------------------------------------------


class Steps:
    """Notes when its resources are entered (+) and left (-)."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    @contextmanager
    def plain(self, name: str) -> Iterator[None]:
        self.taken.append(f"+{name}")
        try:
            yield
        finally:
            self.taken.append(f"-{name}")

    @asynccontextmanager
    async def awaited(self, name: str) -> AsyncIterator[None]:
        with self.plain(name):
            yield

    @asynccontextmanager
    async def broken(self) -> AsyncIterator[None]:
        self.taken.append("broken")
        if self.taken:
            raise OSError("no gateway")
        yield


async def test_resources_are_entered_in_order_and_left_in_reverse() -> None:
    steps = Steps()
    made = service([Book()], resources=[steps.plain("1"), steps.awaited("2"), steps.plain("3")])

    async with made.running():
        steps.taken.append("running")

    assert steps.taken == ["+1", "+2", "+3", "running", "-3", "-2", "-1"]


async def test_resources_are_left_when_the_start_fails() -> None:
    steps = Steps()
    made = service([Book()], resources=[steps.plain("1"), steps.awaited("2")], topics=False)

    with pytest.raises(ConfigurationError, match="topics missing"):
        async with made.running():
            steps.taken.append("running")

    assert steps.taken == ["+1", "+2", "-2", "-1"]


async def test_a_resource_that_fails_to_open_is_raised_and_those_before_it_are_left() -> None:
    steps = Steps()
    made = service([Book()], resources=[steps.plain("1"), steps.broken(), steps.plain("3")])

    with pytest.raises(OSError, match="no gateway"):
        async with made.running():
            steps.taken.append("running")

    assert steps.taken == ["+1", "broken", "-1"]


async def test_resources_are_left_after_the_drain() -> None:
    steps = Steps()
    under_way, may_end = asyncio.Event(), asyncio.Event()

    class Slow(Handler[OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
            under_way.set()
            await may_end.wait()
            steps.taken.append("handled")

    made = service([Slow()], resources=[steps.plain("1")])

    async with asyncio.timeout(DEADLINE_S), made.running(), made.publisher() as publisher:
        await publisher.publish(OrderPlaced(order_id="o-1"))
        await under_way.wait()
        asyncio.get_running_loop().call_later(0.05, may_end.set)

    assert steps.taken == ["+1", "handled", "-1"]


# ---- running it -----------------------------------------------------------------------------------------------------


async def test_running_without_consuming_publishes_and_joins_no_group() -> None:
    collect = Collect()
    made = service([collect])
    broker = made.settings.broker
    assert isinstance(broker, MemoryBroker)

    async with made.running(consume=False), made.publisher() as publisher:
        published = await publisher.publish(OrderPlaced(order_id="o-1"))
        members = broker.consumers("books")

    assert (members, collect.seen) == ([], [])
    assert [dict(record.headers)["choreo-id"] for record in broker.records("orders")] == [published.event_id.encode()]


async def test_running_without_consuming_needs_no_topics_but_those_it_writes_to() -> None:
    made = service([Book()], topics=False)
    broker = made.settings.broker
    assert isinstance(broker, MemoryBroker)
    broker.create_topic("orders")

    async with made.running(consume=False), made.publisher() as publisher:
        await publisher.publish(OrderPlaced(order_id="o-1"))

    assert len(broker.records("orders")) == 1


async def test_what_stops_the_worker_later_is_logged_and_raised_at_the_end() -> None:
    class Gone(MemoryStore):
        def claim(self, claims: Sequence[Claim], payloads: Sequence[bytes] = ()) -> set[Claim]:
            raise StoreError("the disk is gone", retriable=False)

    steps = Steps()
    made = service([Collect()], store=Gone(), resources=[steps.plain("1")])

    with pytest.raises(StoreError, match="the disk is gone"), logged("choreo.service") as log:
        async with asyncio.timeout(DEADLINE_S), made.running(), made.publisher() as publisher:
            await publisher.publish(OrderPlaced(order_id="o-1"))
            await log.line.wait()
            steps.taken.append("my own code went on")

    assert log.said == ["the worker stopped: the disk is gone"]
    assert steps.taken == ["+1", "my own code went on", "-1"]


class Log(logging.Handler):
    """What a logger says, and `line`, set when it says something."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self.line = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())
        self.line.set()


@contextmanager
def logged(name: str) -> Iterator[Log]:
    log, logger = Log(), logging.getLogger(name)
    logger.addHandler(log)
    try:
        yield log
    finally:
        logger.removeHandler(log)


# ---- what it finds --------------------------------------------------------------------------------------------------


async def test_the_screen_says_which_group_and_protocol(capsys: pytest.CaptureFixture[str]) -> None:
    prefix = f"{uuid4().hex}."
    kafka = KafkaSettings(bootstrap=HOST.cluster().address, group_protocol="consumer")
    made = Service("books", handlers=[Book()], store=MemoryStore(), settings=ServiceSettings(kafka=kafka, topic_prefix=prefix, drain_s=2.0))
    HOST.cluster().make([prefix + topic for topic in made.topics()])
    shown: list[Started] = []

    async with asyncio.timeout(DEADLINE_S), made.worker(started=shown.append):
        start_screen.show_start(Target(made, made.resolve(), "shop:books"), shown[0])

    assert f"kafka      {kafka.bootstrap}, 1 broker; group {prefix}books, protocol consumer\n" in capsys.readouterr().out
    assert start_screen.as_json(Target(made, made.resolve(), "shop:books"), shown[0], Ready(0.1, 0, 4))["protocol"] == "consumer"


async def test_properties_that_librdkafka_refuses_stop_the_start_before_kafka_is_waited_for() -> None:
    kafka = KafkaSettings(bootstrap="127.0.0.1:1", properties={"fetch.max.bytes": 1_000})
    made = Service("books", handlers=[Book()], store=MemoryStore(), settings=ServiceSettings(kafka=kafka, start_deadline_s=LONG_S))

    with pytest.raises(ConfigurationError, match=r"Kafka property fetch\.max\.bytes"):
        async with asyncio.timeout(DEADLINE_S), made.running():
            raise AssertionError("it ran")
    with pytest.raises(ConfigurationError, match=r"Kafka property fetch\.max\.bytes"):
        async with made.publisher():
            raise AssertionError("it publishes")


# ---- claims and prefixes --------------------------------------------------------------------------------------------


async def handled_with(prefix: str, store: SqliteStore) -> list[str]:
    """What a member of this environment handles of one request that came twice."""
    collect = Collect()
    made = service([collect], store=store, prefix=prefix)
    async with asyncio.timeout(DEADLINE_S), made.running(), made.publisher() as publisher:
        for _ in range(2):
            await publisher.publish(OrderPlaced(order_id="o-1"), event_id=derived_id("checkout", "cart-17"))
        await publisher.publish(OrderPlaced(order_id="last"))
        await collect.saw_last.wait()
    return sorted(collect.seen)


async def test_environments_that_share_a_store_each_handle_an_event_once(tmp_path: Path) -> None:
    shared = tmp_path / "claims.db"

    actual = {prefix: await handled_with(prefix, SqliteStore(shared)) for prefix in ("staging.", "test.", "")}

    assert actual == {prefix: ["last", "o-1"] for prefix in ("staging.", "test.", "")}


def test_the_default_store_is_one_file_for_all_environments() -> None:
    made = Service("books", handlers=[Book()])

    actual = {made.plan(ServiceSettings(topic_prefix=prefix)).store.describe() for prefix in ("", "staging.")}  # type: ignore[union-attr]

    assert actual == {"SQLite .choreo/books.db"}


async def test_the_demo_finds_what_its_services_claimed_under_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHOREO_BOOTSTRAP", "embedded://")
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", f"{uuid4().hex}.")
    placed = demo_events.OrderPlaced(order_id="o-1", sku="tea", quantity=1, total_cents=500, card_token="tok")

    async with asyncio.timeout(DEADLINE_S), demo_shop.opened(tmp_path) as shop, shop.orders.publisher() as publisher:
        published = await publisher.publish(placed)
        asked = {
            published.event_id: FlowEvent(
                event_id=published.event_id,
                flow_id=published.flow_id,
                cause_id=None,
                source=None,
                type="order.placed",
                key="o-1",
                at=None,
                places=(),
                differing=False,
            )
        }
        while not (handled := await asyncio.to_thread(shop.handled, asked)):
            await asyncio.sleep(0.05)

    assert {one.event_id for one in handled} == {published.event_id}


# ---- the process ----------------------------------------------------------------------------------------------------

TELLS = """
import gc, sys
from choreo import Context, Envelope, Event, Handler, MemoryStore, Service, ServiceSettings
from choreo.testing import MemoryBroker

class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str

class Tell(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
        print(f"told: {sys.getswitchinterval():g} {gc.get_threshold()[0]} {gc.get_freeze_count() > 0}", flush=True)

def telling() -> Service:
    broker = MemoryBroker()
    made = Service("telling", handlers=[Tell()], publishes=[OrderPlaced], store=MemoryStore(), settings=ServiceSettings(broker=broker))
    for topic in made.topics():
        broker.create_topic(topic)
    with made.publisher() as publisher:
        publisher.publish(OrderPlaced(order_id="o-1"))
    return made
"""


@pytest.mark.parametrize("workers", ["1", "2"])
def test_choreo_run_tunes_the_process_of_a_worker(tmp_path: Path, workers: str) -> None:
    (tmp_path / "telling.py").write_text(TELLS)
    run = WorkerProcess(
        ("-m", "choreo", "run"),
        "telling:telling",
        "--workers",
        workers,
        log=tmp_path / "run.log",
        environment={"PYTHONPATH": str(tmp_path)},
    )

    with run as running:
        running.wait_output(f"told: {SWITCH_S:g} 20000 True", deadline_s=60)
        running.sigterm()
        assert running.wait(30) == 0


async def test_a_service_inside_somebody_elses_process_leaves_it_as_it_is() -> None:
    before = (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count())

    async with service([Book()]).running():
        actual = (sys.getswitchinterval(), gc.get_threshold(), gc.get_freeze_count())

    assert actual == before
