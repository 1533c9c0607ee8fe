"""Do handlers' transactions take effect once when the database is locked, deadlocked, restarted, cut off, or misused? Real databases,
Kafka in memory."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from choreo.core.retry import RetryPolicy
from choreo.envelope import Envelope
from choreo.errors import StoreError
from choreo.handler import Context, Handler
from choreo.runtime import bursts
from choreo.storage.postgres import PostgresStore
from choreo.storage.sqlite import SqliteStore
from tests.runtime.outbox_shop import Desk, PostgresDesk, SqliteDesk, header, published
from tests.runtime.shop import SHOP, TWICE, Paid, Placed, becomes, committed, numbered, place, shop, shop_broker
from tests.support.postgres import PostgresServer

PLENTY = RetryPolicy(max_attempts=5, base_delay_s=0.0)


@pytest.fixture(autouse=True)
def database_is_asked_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "DOWN_S", 0.1)


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that this test alone may stop."""
    with PostgresServer() as server:
        yield server


class Book(Handler[Placed, psycopg.AsyncConnection[Any]]):
    """Writes the order's id, after what it was told."""

    emits = (Paid,)

    def __init__(self, act: Callable[[Any, str], Any], *, retry: RetryPolicy = TWICE, timeout_s: float = 60.0) -> None:
        self.retry, self.timeout_s = retry, timeout_s
        self._act = act
        self.calls: list[tuple[str, int]] = []

    async def handle(self, event: Envelope[Placed], context: Context[psycopg.AsyncConnection[Any]]) -> Paid:
        self.calls.append((context.event_id, context.attempt))
        await context.transaction.execute("INSERT INTO books VALUES (%s)", [event.payload.order_id])
        await self._act(context.transaction, event.payload.order_id)
        return Paid(order_id=event.payload.order_id)


class BookPlainly(Handler[Placed, sqlite3.Connection]):
    """`Book`, on a SQLite file."""

    emits = (Paid,)

    def __init__(self, act: Callable[[Any, str], Any], *, retry: RetryPolicy = TWICE) -> None:
        self.retry = retry
        self._act = act
        self.calls: list[tuple[str, int]] = []

    def handle(self, event: Envelope[Placed], context: Context[sqlite3.Connection]) -> Paid:
        self.calls.append((context.event_id, context.attempt))
        context.transaction.execute("INSERT INTO books VALUES (?)", [event.payload.order_id])
        self._act(context.transaction, event.payload.order_id)
        return Paid(order_id=event.payload.order_id)


async def nothing(connection: Any, order_id: str) -> None:
    """Does nothing."""


def plainly_nothing(connection: Any, order_id: str) -> None:
    """Does nothing."""


def once(desk: Desk, broker: Any, count: int) -> None:
    """Each event has one row and one child."""
    assert desk.books() == sorted(numbered(count))
    assert len(set(published(broker))) == count


async def test_bursts_that_touch_two_rows_in_opposite_order_deadlock_and_each_takes_effect_once(postgres: PostgresServer) -> None:
    desk, broker = PostgresDesk(postgres), shop_broker()
    postgres.execute("CREATE TABLE counts (id text, n int); INSERT INTO counts VALUES ('a', 0), ('b', 0)", database=desk._database)

    async def cross(connection: Any, order_id: str) -> None:
        for name in ("ab", "ba")[int(order_id[1:]) % 2]:
            await connection.execute("UPDATE counts SET n = n + 1 WHERE id = %s", [name])
            await asyncio.sleep(0.03)

    handler = Book(cross)
    place(broker, *numbered(24))
    async with shop(broker, handler, store=desk.store()).worker() as worker:
        await within(60, lambda: committed(broker) == 24, worker)
        await within(10, lambda: len(broker.records("answers")) >= 24, worker)
        assert worker.counters.retried == worker.counters.dead_lettered == 0, "a deadlock is no attempt"
        assert len(handler.calls) > 24, "there was none, and this test shows nothing"
    once(desk, broker, 24)
    assert postgres.execute("SELECT sum(n) FROM counts", database=desk._database) == [(48,)]
    assert {attempt for _, attempt in handler.calls} == {1}


async def within(seconds: float, condition: Callable[[], object], worker: Any) -> None:
    ends_s = time.monotonic() + seconds
    while not condition():
        if worker.failure.done():
            worker.failure.result()
        assert time.monotonic() < ends_s, f"not within {seconds:g} s"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGINT])
async def test_while_the_server_is_gone_events_wait_and_no_attempt_is_counted(own_postgres: PostgresServer, how: signal.Signals) -> None:
    desk, broker = PostgresDesk(own_postgres), shop_broker()

    async def slowly(connection: Any, order_id: str) -> None:
        await asyncio.sleep(0.005)

    handler = Book(slowly)
    place(broker, *numbered(300))
    async with shop(broker, handler, store=desk.store()).worker() as worker:
        await within(20, lambda: worker.counters.handled > 40, worker)
        await asyncio.to_thread(own_postgres.stop, how)
        await asyncio.sleep(1.0)
        assert worker.bursts[next(iter(worker.bursts))].troubled is not None
        await asyncio.to_thread(own_postgres.start)
        await within(30, lambda: committed(broker) == 300, worker)
        await within(20, lambda: len(set(published(broker))) == 300, worker)
        assert worker.counters.retried == worker.counters.dead_lettered == 0
    once(desk, broker, 300)


async def test_a_session_that_is_ended_in_the_middle_of_a_burst_costs_no_attempt(postgres: PostgresServer) -> None:
    desk, broker = PostgresDesk(postgres), shop_broker()
    ended: list[str] = []

    async def cut(connection: Any, order_id: str) -> None:
        if order_id == "e5" and not ended:
            ended.append(order_id)
            pid = connection.info.backend_pid
            await asyncio.to_thread(postgres.execute, "SELECT pg_terminate_backend(%s)", pid)
            await connection.execute("SELECT 1")

    place(broker, *numbered(20))
    async with shop(broker, Book(cut), store=desk.store()).worker() as worker:
        await within(20, lambda: committed(broker) == 20, worker)
        await within(10, lambda: len(set(published(broker))) == 20, worker)
        assert worker.counters.retried == worker.counters.dead_lettered == 0
    assert ended
    once(desk, broker, 20)


async def test_sessions_that_were_ended_while_nobody_used_them_are_not_even_noticed(postgres: PostgresServer) -> None:
    desk, broker = PostgresDesk(postgres), shop_broker()
    async with shop(broker, Book(nothing), store=desk.store()).worker() as worker:
        place(broker, "e0")
        await within(10, lambda: committed(broker) == 1, worker)
        for pid, name, _ in postgres.sessions(desk._database):
            if name.endswith("handlers"):
                postgres.execute("SELECT pg_terminate_backend(%s)", pid)
        await asyncio.sleep(0.1)
        place(broker, "e1")
        await within(10, lambda: committed(broker) == 2, worker)
        assert worker.counters.store_errors == worker.counters.retried == 0
    assert desk.books() == ["e0", "e1"]


async def test_a_row_that_another_session_holds_is_waited_for_and_costs_no_attempt(postgres: PostgresServer) -> None:
    desk, broker = PostgresDesk(postgres), shop_broker()
    postgres.execute("CREATE TABLE counts (id text, n int); INSERT INTO counts VALUES ('a', 0)", database=desk._database)

    async def count(connection: Any, order_id: str) -> None:
        await connection.execute("UPDATE counts SET n = n + 1")

    store = PostgresStore(desk.conninfo, lock_timeout_s=0.3)
    place(broker, *numbered(10))
    with psycopg.connect(desk.conninfo) as holder:
        holder.execute("UPDATE counts SET n = 0")
        async with shop(broker, Book(count), store=store).worker() as worker:
            await asyncio.sleep(1.5)
            assert worker.counters.handled == 0
            holder.rollback()
            await within(20, lambda: committed(broker) == 10, worker)
            assert worker.counters.retried == worker.counters.dead_lettered == 0
            await within(10, lambda: len(set(published(broker))) == 10, worker)
    once(desk, broker, 10)


async def test_a_handler_that_times_out_in_the_middle_of_a_statement_fails_alone(postgres: PostgresServer) -> None:
    desk, broker = PostgresDesk(postgres), shop_broker()

    async def hang(connection: Any, order_id: str) -> None:
        if order_id == "e3":
            await connection.execute("SELECT pg_sleep(60)")

    handler = Book(hang, timeout_s=0.3)
    place(broker, *numbered(8))
    async with shop(broker, handler, store=desk.store()).worker() as worker:
        await within(20, lambda: committed(broker) == 8, worker)
        assert worker.counters.dead_lettered == 1
        await within(10, lambda: len(set(published(broker))) == 7, worker)
    assert desk.books() == [name for name in numbered(8) if name != "e3"]
    assert not postgres.sessions(desk._database), "all connections are closed"


async def test_no_connection_is_leaked_by_failures_of_all_kinds(postgres: PostgresServer) -> None:
    desk, broker = PostgresDesk(postgres), shop_broker()

    async def badly(connection: Any, order_id: str) -> None:
        match int(order_id[1:]) % 6:
            case 0:
                raise ValueError("no")
            case 1:
                await connection.execute("SELECT 1 / 0")
            case 2:
                await connection.commit()
            case 3:
                try:
                    await connection.execute("SELECT nonsense")
                except psycopg.Error:
                    pass
            case 4:
                async for _ in connection.cursor().stream("SELECT generate_series(1, 1000)"):
                    break

    place(broker, *numbered(60))
    async with shop(broker, Book(badly), store=desk.store()).worker() as worker:
        await within(30, lambda: committed(broker) == 60, worker)
        found = [name for _, name, _ in postgres.sessions(desk._database) if name.endswith("handlers")]
        assert len(found) <= 4
        states = {state for _, name, state in postgres.sessions(desk._database) if name.endswith("handlers")}
        assert states <= {"idle"}, states
        good = [name for name in numbered(60) if int(name[1:]) % 6 in (4, 5)]
        await within(10, lambda: len(set(published(broker))) == len(good), worker)
    assert desk.books() == sorted(good)


async def test_a_handler_that_commits_by_itself_is_a_letter_and_its_neighbours_are_handled(tmp_path: Path) -> None:
    desk, broker = SqliteDesk(tmp_path), shop_broker()

    def commits(connection: Any, order_id: str) -> None:
        if order_id == "e2":
            with connection:
                pass

    place(broker, *numbered(6))
    async with shop(broker, BookPlainly(commits), store=desk.store()).worker() as worker:
        await within(10, lambda: committed(broker) == 6, worker)
        assert worker.counters.retried == 0, "permanent"
        await within(10, lambda: len(set(published(broker))) == 5, worker)
    assert desk.books() == ["e0", "e1", "e3", "e4", "e5"]
    (letter,) = broker.records(f"{SHOP}.dlq")
    assert "which commits" in str(letter.headers)
    assert header(letter, "choreo-dlq-handler") == "book-plainly"


async def test_a_file_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    desk, broker = SqliteDesk(tmp_path), shop_broker()
    with closing(sqlite3.connect(desk.path, isolation_level=None)) as holder:
        async with shop(broker, BookPlainly(plainly_nothing), store=SqliteStore(desk.path, busy_timeout_s=0.2)).worker() as worker:
            holder.execute("BEGIN IMMEDIATE")
            place(broker, *numbered(10))
            await asyncio.sleep(1.0)
            assert worker.counters.handled == 0
            holder.execute("ROLLBACK")
            await within(20, lambda: committed(broker) == 10, worker)
            assert worker.counters.retried == worker.counters.dead_lettered == 0
            await within(10, lambda: len(set(published(broker))) == 10, worker)
    once(desk, broker, 10)


async def test_a_handler_that_locks_itself_out_fails_alone_and_at_once(tmp_path: Path) -> None:
    desk, broker = SqliteDesk(tmp_path), shop_broker()
    ran_into: list[str] = []

    def write_beside(connection: Any, order_id: str) -> None:
        if order_id == "e2" and not ran_into:
            ran_into.append(order_id)
            with closing(sqlite3.connect(desk.path, timeout=0.0)) as another:
                another.execute("INSERT INTO books VALUES ('beside')")

    place(broker, *numbered(5))
    async with shop(broker, BookPlainly(write_beside), store=desk.store()).worker() as worker:
        await within(20, lambda: committed(broker) == 5, worker)
        assert (worker.counters.retried, worker.counters.dead_lettered, worker.counters.bursts_lost) == (1, 0, 0)
        await within(10, lambda: len(set(published(broker))) == 5, worker)
    assert ran_into
    once(desk, broker, 5)


async def test_a_statement_that_rolls_the_burst_back_fails_alone(tmp_path: Path) -> None:
    desk, broker = SqliteDesk(tmp_path), shop_broker()
    with closing(desk.connect()) as connection:
        connection.execute("CREATE TABLE strict (id text UNIQUE ON CONFLICT ROLLBACK)")
        connection.execute("INSERT INTO strict VALUES ('e3')")
        connection.commit()

    def insert(connection: Any, order_id: str) -> None:
        connection.execute("INSERT INTO strict VALUES (?)", [order_id])

    place(broker, *numbered(8))
    async with shop(broker, BookPlainly(insert), store=desk.store()).worker() as worker:
        await within(20, lambda: committed(broker) == 8, worker)
        assert worker.counters.dead_lettered == 1
        await within(10, lambda: len(set(published(broker))) == 7, worker)
    assert desk.books() == [name for name in numbered(8) if name != "e3"]


async def test_a_cursor_that_is_left_open_holds_nothing_up(tmp_path: Path) -> None:
    desk, broker = SqliteDesk(tmp_path), shop_broker()
    kept: list[Any] = []

    def keep(connection: Any, order_id: str) -> None:
        kept.append(connection.execute("INSERT INTO books VALUES (?) RETURNING id", [f"{order_id}-again"]))
        kept.append(connection.execute("SELECT id FROM books"))

    place(broker, *numbered(10))
    async with shop(broker, BookPlainly(keep), store=desk.store()).worker() as worker:
        await within(10, lambda: committed(broker) == 10, worker)
        await within(10, lambda: len(set(published(broker))) == 10, worker)
    assert len(desk.books()) == 20


async def test_claims_and_transactions_of_one_service_share_a_file(tmp_path: Path) -> None:
    from tests.runtime.shop import Book as WithClaims

    desk, broker = SqliteDesk(tmp_path), shop_broker()
    plain = WithClaims()
    place(broker, *numbered(200))
    async with shop(broker, BookPlainly(plainly_nothing), plain, store=SqliteStore(desk.path, busy_timeout_s=1.0)).worker() as worker:
        await within(20, lambda: committed(broker) == 200, worker)
        await within(10, lambda: len(set(published(broker))) == 200, worker)
        assert worker.counters.store_errors == 0
    once(desk, broker, 200)
    assert sorted(plain.done) == sorted(numbered(200))


@pytest.mark.parametrize("broken", ["moved", "damaged"])
async def test_a_file_that_is_gone_or_damaged_stops_the_worker_with_a_clear_line(tmp_path: Path, broken: str) -> None:
    desk, broker = SqliteDesk(tmp_path), shop_broker()
    async with shop(broker, BookPlainly(plainly_nothing), store=desk.store()).worker() as worker:
        place(broker, "e0")
        await within(10, lambda: committed(broker) == 1, worker)
        if broken == "moved":
            desk.path.rename(tmp_path / "elsewhere.db")
        else:
            desk.path.write_bytes(b"x" * 8192)
            for extra in ("-wal", "-shm"):
                Path(f"{desk.path}{extra}").unlink(missing_ok=True)
        place(broker, "e1")
        with pytest.raises(StoreError, match=r"shop\.db"):
            await asyncio.wait_for(asyncio.shield(worker.failure), 10)
    assert committed(broker) == 1


async def test_threads_that_add_to_the_outbox_at_once_lose_nothing(tmp_path: Path) -> None:
    desk, broker = SqliteDesk(tmp_path), shop_broker()
    service = shop(broker, BookPlainly(plainly_nothing), store=desk.store())
    added: list[str] = []

    def adds(number: int) -> None:
        with closing(desk.connect()) as connection:
            for each in range(10):
                added.append(service.outbox.add(connection, Paid(order_id=f"{number}-{each}")).event_id)
                connection.commit()

    async with service.worker() as worker:
        threads = [threading.Thread(target=adds, args=[number]) for number in range(4)]
        for thread in threads:
            thread.start()
        await within(20, lambda: len(set(published(broker))) == 40, worker)
        for thread in threads:
            thread.join()
    assert sorted(added) == sorted(published(broker))
    await becomes(lambda: True, "done")
