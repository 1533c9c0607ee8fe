"""Is what was committed published, once and in order, and what was not committed never? Services on the memory broker, real databases."""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import time
from collections.abc import Collection, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from choreo import derived_id
from choreo.envelope import CAUSATION_ID, CORRELATION_ID, ID
from choreo.errors import ConfigurationError, StoreError
from choreo.handler import Emit
from choreo.record import Outgoing
from choreo.runtime import outbox_relay
from choreo.runtime.outbox_relay import OutboxRelay
from choreo.runtime.sends import Sends
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.storage.memory import MemoryStore
from choreo.store import OutboxRow, OutboxState, StoredRow
from choreo.telemetry.counters import Counters
from choreo.testing import MemoryBroker
from tests.runtime.outbox_shop import Desk, PostgresDesk, SqliteDesk, add, header, published
from tests.runtime.shop import SHOP, Paid, Placed, Refused, becomes, committed, numbered, place, shop, shop_broker
from tests.support.postgres import PostgresServer

ANYTHING: Any = object()


@pytest.fixture(params=["sqlite3", "psycopg", "psycopg async"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Desk:
    if request.param == "sqlite3":
        return SqliteDesk(tmp_path)
    postgres: PostgresServer = request.getfixturevalue("postgres")
    return PostgresDesk(postgres, plain=request.param == "psycopg")


@pytest.fixture
def file(tmp_path: Path) -> SqliteDesk:
    return SqliteDesk(tmp_path)


def row(number: int, key: bytes | None = b"o-1", *, value: bytes = b"{}", topic: str = "answers") -> OutboxRow:
    return OutboxRow(Outgoing(topic, key, value, [(ID, f"r{number}".encode())]), "order.paid", f"r{number}")


def publishing(broker: MemoryBroker, desk: Desk) -> Service:
    """A service without handlers that publishes."""
    return Service(SHOP, publishes=[Paid, Refused], store=desk.store(), settings=ServiceSettings(broker=broker))


# ---- handlers -------------------------------------------------------------------------------------------------------


async def test_what_handlers_emit_is_published_after_their_commit(desk: Desk) -> None:
    broker = shop_broker()
    place(broker, *numbered(100))
    async with shop(broker, desk.handler(), store=desk.store()).worker() as worker:
        await becomes(lambda: committed(broker) == 100, "all is committed", worker)
        await becomes(lambda: len(broker.records("answers")) == 100, "all is published", worker)
        await becomes(lambda: worker.counters.relayed == 100, "counted", worker)
        outbox = desk.store().outbox(SHOP)
        await becomes(lambda: outbox.state() == OutboxState(0, 0.0, 0, 0), "the outbox is empty", worker)
        outbox.close()

    assert desk.books() == sorted(numbered(100))
    causes = [header(record, CAUSATION_ID) for record in broker.records("answers")]
    assert sorted(causes) == sorted(numbered(100))  # type: ignore[type-var]
    assert len(set(published(broker))) == 100


async def test_an_event_has_the_same_id_and_headers_as_one_that_goes_straight_to_kafka(file: SqliteDesk) -> None:
    from tests.runtime.shop import Book

    class Straight(Book):
        name = "book"
        emits = (Paid,)

        async def handle(self, event: Any, context: Any) -> Any:
            return Paid(order_id=event.payload.order_id)

    found = []
    for handler, store in ((Straight(), MemoryStore()), (file.handler(), file.store())):
        broker = shop_broker()
        place(broker, "e1")
        async with shop(broker, handler, store=store).worker() as worker:
            await becomes(lambda broker=broker: broker.records("answers"), "published", worker)  # type: ignore[misc]
        (record,) = broker.records("answers")
        found.append((record.key, sorted(record.headers)))

    assert found[0] == found[1]


async def test_what_a_handler_that_failed_emitted_is_never_published(desk: Desk) -> None:
    def answer(order: Placed) -> Any:
        if order.order_id == "e3":
            raise ValueError("no")
        return Paid(order_id=order.order_id)

    broker = shop_broker()
    place(broker, *numbered(6))
    async with shop(broker, desk.handler(answer), store=desk.store()).worker() as worker:
        await becomes(lambda: committed(broker) == 6, "all is committed", worker)
        await becomes(lambda: len(broker.records("answers")) == 5, "published", worker)

    assert desk.books() == ["e0", "e1", "e2", "e4", "e5"]
    assert "e3" not in [header(record, CAUSATION_ID) for record in broker.records("answers")]


async def test_a_commit_of_this_process_is_published_at_once(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_relay, "POLL_S", 60.0)
    broker = shop_broker()
    async with shop(broker, desk.handler(), store=desk.store()).worker() as worker:
        place(broker, "warm")
        await becomes(lambda: broker.records("answers"), "published", worker)
        began_s = time.monotonic()
        place(broker, "e1")
        await becomes(lambda: len(broker.records("answers")) == 2, "published", worker)

    assert time.monotonic() - began_s < 2.0


async def test_a_timer_is_published_when_it_falls_due(desk: Desk) -> None:
    broker = shop_broker()
    handler = desk.handler(
        lambda order: [
            Emit(Paid(order_id=order.order_id), after=timedelta(seconds=0.5), id_key="later"),
            Emit(Paid(order_id=order.order_id), at=datetime(2199, 1, 1, tzinfo=UTC), id_key="never"),
            Emit(Paid(order_id=order.order_id), id_key="now"),
        ]
    )
    place(broker, "e1")
    async with shop(broker, handler, store=desk.store()).worker() as worker:
        await becomes(lambda: len(broker.records("answers")) == 1, "one is published", worker)
        assert worker.relay is not None
        await becomes(lambda: len(broker.records("answers")) == 2, "the timer fell due", worker)
        await asyncio.sleep(0.3)
        assert len(broker.records("answers")) == 2

    (now, later) = broker.records("answers")
    assert later.timestamp_ms - now.timestamp_ms > 250


async def test_a_timer_of_a_handler_without_a_transaction_is_a_failure_that_says_so() -> None:
    from tests.runtime.shop import Book

    class Timer(Book):
        emits = (Paid,)

        async def handle(self, event: Any, context: Any) -> Any:
            return Emit(Paid(order_id="o"), after=timedelta(seconds=1))

    broker = shop_broker()
    place(broker, "e1")
    async with shop(broker, Timer()).worker() as worker:
        await becomes(lambda: broker.records(f"{SHOP}.dlq"), "a letter", worker)

    (letter,) = broker.records(f"{SHOP}.dlq")
    assert "use Handler[..., Connection]" in str(letter.headers)


# ---- service.outbox -------------------------------------------------------------------------------------------------


async def test_an_event_added_in_a_transaction_is_published_after_its_commit_and_never_before(desk: Desk) -> None:
    broker = shop_broker()
    service = publishing(broker, desk)
    async with service.worker() as worker:
        with closing(desk.connect()) as connection:
            first = service.outbox.add(connection, Paid(order_id="o-1"))
            connection.execute("INSERT INTO books VALUES ('o-1')")
            await asyncio.sleep(0.5)
            assert broker.records("answers") == []
            connection.commit()
            await becomes(lambda: broker.records("answers"), "published", worker)

            service.outbox.add(connection, Paid(order_id="o-2"))
            connection.rollback()
            service.outbox.add(connection, Emit(Refused(order_id="o-3"), key="other"), event_id=derived_id("request", 3))
            connection.commit()
        await becomes(lambda: len(broker.records("answers")) == 2, "published", worker)
        await asyncio.sleep(0.3)

    (one, other) = broker.records("answers")
    assert (header(one, ID), header(one, CORRELATION_ID)) == (first.event_id, first.flow_id)
    assert (other.key, header(other, ID), header(other, "choreo-source")) == (b"other", derived_id("request", 3), "shop/outbox")
    assert desk.books() == ["o-1"]


async def test_on_an_async_connection_it_is_awaited(postgres: PostgresServer) -> None:
    desk, broker = PostgresDesk(postgres), shop_broker()
    service = publishing(broker, desk)
    async with service.worker() as worker:
        async with await psycopg.AsyncConnection.connect(desk.conninfo) as connection:
            published_ = await service.outbox.add(connection, Paid(order_id="o-1"))
        await becomes(lambda: published(broker) == [published_.event_id], "published", worker)


def test_an_event_that_is_not_declared_is_refused(file: SqliteDesk) -> None:
    service = publishing(shop_broker(), file)
    with closing(file.connect()) as connection, pytest.raises(ConfigurationError, match="does not declare that it publishes Placed"):
        service.outbox.add(connection, Placed(order_id="o-1"))


@pytest.mark.parametrize("store", [None, MemoryStore()])
def test_without_a_store_that_has_an_outbox_it_is_refused(store: Any) -> None:
    service = Service(SHOP, publishes=[Paid], store=store, settings=ServiceSettings(broker=shop_broker()))
    with pytest.raises(ConfigurationError, match=r"outbox\.add needs a store whose database the event is written to"):
        service.outbox.add(ANYTHING, Paid(order_id="o-1"))


def test_a_connection_in_autocommit_is_refused(desk: Desk) -> None:
    service = publishing(shop_broker(), desk)
    if isinstance(desk, SqliteDesk):
        connection: Any = sqlite3.connect(desk.path, isolation_level=None)
    else:
        assert isinstance(desk, PostgresDesk)
        connection = psycopg.connect(desk.conninfo, autocommit=True)
    with closing(connection), pytest.raises(ConfigurationError, match="this connection is in autocommit"):
        service.outbox.add(connection, Paid(order_id="o-1"))


def test_a_connection_of_another_kind_is_refused(desk: Desk) -> None:
    with pytest.raises(ConfigurationError, match=r"outbox\.add takes a"):
        publishing(shop_broker(), desk).outbox.add(ANYTHING, Paid(order_id="o-1"))


@pytest.mark.parametrize("path", ["other.db", ":memory:"])
def test_a_connection_to_another_file_is_refused(file: SqliteDesk, tmp_path: Path, path: str) -> None:
    with closing(sqlite3.connect(path if path == ":memory:" else tmp_path / path)) as connection:
        with pytest.raises(ConfigurationError, match=r"this connection is to .*shop\.db"):
            publishing(shop_broker(), file).outbox.add(connection, Paid(order_id="o-1"))


# ---- the relay ------------------------------------------------------------------------------------------------------


async def test_events_of_a_key_stay_in_order_and_none_is_lost_whatever_kafka_does(file: SqliteDesk) -> None:
    seed = random.randrange(10**6)
    chance, broker = random.Random(seed), shop_broker()
    numbers = iter(range(10_000))
    expected: dict[bytes, list[str]] = {}
    async with publishing(broker, file).worker() as worker:
        for _ in range(40):
            rows = [row(next(numbers), f"k{chance.randrange(5)}".encode()) for _ in range(chance.randrange(1, 9))]
            for one in rows:
                expected.setdefault(one.record.key or b"", []).append(one.event_id)
            if chance.random() < 0.4:
                broker.fail_sends("answers", "_MSG_TIMED_OUT", times=chance.randrange(1, 4))
            add(file, rows)
            await asyncio.sleep(chance.random() * 0.02)
        total = sum(map(len, expected.values()))
        await becomes_soon(lambda: worker.counters.relayed >= total, "all is published")

    for key, ids in expected.items():
        assert [header(record, ID) for record in broker.records("answers") if record.key == key] == ids, f"seed {seed}"


async def becomes_soon(condition: Any, what: str, within_s: float = 30.0) -> None:
    ends_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends_s, f"not within {within_s:g} s: {what}"
        await asyncio.sleep(0.005)


async def test_a_row_that_kafka_never_takes_goes_aside_and_only_its_key_waits(file: SqliteDesk, caplog: pytest.LogCaptureFixture) -> None:
    broker = shop_broker()
    broker.cluster().configure("answers", {"max.message.bytes": "1000"})
    add(file, [row(1, b"a", value=b"x" * 2000), row(2, b"a"), row(3, b"b"), row(4, None, value=b"x" * 2000), row(5, None)])
    async with publishing(broker, file).worker() as worker:
        await becomes(lambda: worker.counters.set_aside == 2, "two are set aside", worker)
        await becomes(lambda: sorted(published(broker)) == ["r3", "r5"], "the others are published", worker)
        await asyncio.sleep(0.5)
        assert sorted(published(broker)) == ["r3", "r5"]
        desk = file.store().outbox(SHOP)
        waiting = desk.waiting(10)
        assert [(stored.event_id, stored.reason is not None) for stored in waiting] == [("r1", True), ("r4", True), ("r2", False)]
        assert "order.paid r1 for answers can't be published" in caplog.text
        assert "choreo outbox retry" in caplog.text

        broker.cluster().configure("answers", {"max.message.bytes": "100000"})
        assert desk.retry([waiting[0].seq]) == 1
        assert desk.discard([waiting[1].seq]) == 1
        desk.close()
        await becomes(lambda: len(published(broker)) == 4, "what waited is published", worker)

    assert [header(record, ID) for record in broker.records("answers") if record.key == b"a"] == ["r1", "r2"]


async def test_rows_for_a_topic_that_is_missing_wait_a_while_then_go_aside(file: SqliteDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_relay, "ASIDE_AFTER_S", 1.0)
    broker = shop_broker()
    add(file, [row(1, topic="nowhere"), row(2), row(3, topic="soon")])
    async with publishing(broker, file).worker() as worker:
        await becomes(lambda: published(broker) == ["r2"], "the other one is published", worker)
        assert worker.counters.set_aside == 0
        broker.create_topic("soon")
        await becomes(lambda: published(broker, "soon") == ["r3"], "its topic came in time", worker)
        await becomes(lambda: worker.counters.set_aside == 1, "no topic came", worker)

    outbox = file.store().outbox(SHOP)
    (stored,) = outbox.waiting(10)
    outbox.close()
    assert (stored.event_id, "nowhere" in (stored.reason or "")) == ("r1", True)


async def test_a_key_with_many_rows_that_wait_hides_no_others(file: SqliteDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_relay, "PAGE", 60)
    broker = shop_broker()
    add(file, [row(number, b"blocked", topic="nowhere") for number in range(1000)])
    add(file, [row(2000 + number, f"k{number}".encode()) for number in range(100)])
    async with publishing(broker, file).worker() as worker:
        await becomes(lambda: len(published(broker)) == 100, "all others are published", worker)


async def test_when_the_process_ends_between_acknowledgement_and_deletion_the_same_ids_come_again(
    file: SqliteDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = shop_broker()
    add(file, [row(number, b"k") for number in range(3)])
    with monkeypatch.context() as broken:
        broken.setattr("choreo.storage.sqlite_outbox.SqliteOutbox.published", _breaks)
        async with publishing(broker, file).worker() as worker:
            await _failed(worker)
    before = published(broker)
    async with publishing(broker, file).worker() as worker:
        await becomes(lambda: worker.counters.relayed == 3, "published", worker)

    assert before
    assert published(broker)[len(before) :] == ["r0", "r1", "r2"], "from the first that was not deleted, in order"


async def _failed(worker: Any) -> None:
    with pytest.raises(StoreError):
        await asyncio.wait_for(asyncio.shield(worker.failure), 5)


def _breaks(outbox: Any, seqs: Collection[int]) -> None:
    raise StoreError("the process ends here, as the test asked", retriable=False)


class _Nagging:
    """An outbox that can be made to fail, and that keeps who leased."""

    def __init__(self, outbox: Any) -> None:
        self._outbox = outbox
        self.down = 0
        self.leases: list[Collection[int]] = []
        self.refuse_leases = False
        self.began_after: list[float] = []

    def lease(self, relay: str, lasts_s: float) -> Collection[int]:
        if self.refuse_leases and lasts_s:
            raise StoreError("away, as the test asked")
        found: Collection[int] = self._outbox.lease(relay, lasts_s)
        self.leases.append(found)
        return found

    def due(self, shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        if self.down:
            self.down -= 1
            raise StoreError("the database is away, as the test asked")
        rows: Sequence[StoredRow] = self._outbox.due(shards, limit, beside=beside)
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._outbox, name)


class Relaying:
    """One relay by itself, on a producer of its own."""

    def __init__(self, broker: MemoryBroker, desk: Desk, lease_s: float = 10.0) -> None:
        self.outbox = _Nagging(desk.store().outbox(SHOP))
        self.counters = Counters()
        self.sends = Sends(broker.producer(), self.counters)
        self.relay = OutboxRelay(self.outbox, self.sends, self.counters, lease_s=lease_s)

    async def __aenter__(self) -> Relaying:
        self.relay.started = asyncio.create_task(self.relay.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.relay.close()
        self.sends.close(0.5)


async def test_while_the_database_is_away_rows_wait_and_it_is_said_once(
    file: SqliteDesk, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_relay, "RETRY_S", 0.01)
    caplog.set_level(logging.WARNING)
    broker = shop_broker()
    add(file, [row(1)])
    relaying = Relaying(broker, file)
    relaying.outbox.down = 5
    async with relaying:
        await becomes(lambda: published(broker) == ["r1"], "published")
        await becomes(lambda: relaying.relay.troubled is None, "all is well")

    assert caplog.text.count("the database is away") == 1
    assert caplog.text.count("the outbox answers again") == 1


async def test_two_relays_share_the_shards_and_send_nothing_twice(file: SqliteDesk) -> None:
    broker = shop_broker()
    first, second = Relaying(broker, file, lease_s=0.6), Relaying(broker, file, lease_s=0.6)
    async with first:
        await becomes(lambda: first.outbox.leases and len(first.outbox.leases[-1]) == 16, "the first has all")
        async with second:
            await becomes(lambda: second.outbox.leases and len(second.outbox.leases[-1]) == 8, "the second has half")
            add(file, [row(number, f"k{number % 50}".encode()) for number in range(400)])
            await becomes(lambda: first.counters.relayed + second.counters.relayed == 400, "all is published")
            assert min(first.counters.relayed, second.counters.relayed) > 50
        add(file, [row(1000 + number, f"k{number % 50}".encode()) for number in range(100)])
        await becomes(lambda: len(published(broker)) == 500, "the first has all again")

    assert len(published(broker)) == len(set(published(broker))) == 500
    for key in {record.key for record in broker.records("answers")}:
        numbers = [int((header(record, ID) or "")[1:]) for record in broker.records("answers") if record.key == key]
        assert numbers == sorted(numbers)


async def test_a_relay_that_cannot_renew_its_lease_begins_nothing_and_another_takes_over(file: SqliteDesk) -> None:
    broker = shop_broker()
    first, second = Relaying(broker, file, lease_s=0.6), Relaying(broker, file, lease_s=0.6)
    async with first, second:
        await becomes(lambda: first.outbox.leases and second.outbox.leases, "both are there")
        first.outbox.refuse_leases = True
        await becomes(lambda: second.outbox.leases and len(second.outbox.leases[-1]) == 16, "the second has all")
        before = first.counters.relayed
        add(file, [row(number, f"k{number}".encode()) for number in range(100)])
        await becomes(lambda: second.counters.relayed == 100, "the second publishes all")
        assert first.counters.relayed == before

    assert len(published(broker)) == 100


async def test_a_relay_that_was_stopped_and_wakes_up_late_sends_nothing(file: SqliteDesk) -> None:
    """SIGSTOP between reading and sending: what it read is another's by now."""
    broker = shop_broker()
    relaying = Relaying(broker, file, lease_s=0.4)

    def stopped(shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        rows: Sequence[StoredRow] = relaying.outbox._outbox.due(shards, limit, beside=beside)
        if rows:
            relaying.outbox.refuse_leases = True
            time.sleep(0.6)
        return rows

    relaying.outbox.due = stopped  # type: ignore[method-assign]
    add(file, [row(number, f"k{number}".encode()) for number in range(20)])
    async with relaying:
        await becomes(lambda: relaying.outbox.refuse_leases, "it has read")
        await asyncio.sleep(1.0)

    assert published(broker) == []


async def test_a_stop_publishes_what_is_there_first(file: SqliteDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_relay, "POLL_S", 60.0)
    broker = shop_broker()
    async with publishing(broker, file).worker() as worker:
        assert worker.relay is not None
        await becomes(lambda: worker.relay is not None and worker.relay._looked_s > 0, "it has looked", worker)
        add(file, [row(number, b"k") for number in range(30)])

    assert published(broker) == [f"r{number}" for number in range(30)]
    leases = sqlite3.connect(file.path)
    assert leases.execute("SELECT count(*) FROM choreo_outbox_leases").fetchone() == (0,)
    leases.close()


async def test_at_its_start_a_relay_says_how_many_events_are_set_aside(file: SqliteDesk, caplog: pytest.LogCaptureFixture) -> None:
    add(file, [row(1), row(2)])
    with closing(file.store().outbox(SHOP)) as outbox:
        outbox.set_aside(outbox.due(range(16), 1)[0].seq, "too large")
    caplog.set_level(logging.WARNING)
    async with Relaying(shop_broker(), file) as relaying:
        await becomes(lambda: relaying.relay.state.aside == 1, "it is known")

    assert caplog.text.count("outbox: set aside are 1 events") == 1


async def test_how_the_outbox_is_doing_is_known(file: SqliteDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_relay, "STATE_S", 0.05)
    broker = shop_broker()
    broker.hold_sends("answers")
    add(file, [row(1)])
    async with Relaying(broker, file) as relaying:
        await becomes(lambda: relaying.relay.state.due == 1 and relaying.relay.state.oldest_s > 0, "it is told")
        broker.release_sends("answers")
        await becomes(lambda: relaying.relay.state == OutboxState(0, 0.0, 0, 0), "and again")


@pytest.fixture(autouse=True)
def short_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.runtime.sends.RETRY_FIRST_S", 0.02)
    monkeypatch.setattr("choreo.runtime.sends.RETRY_MOST_S", 0.1)
