"""Does the page on events that are committed with data do what it says, on a real PostgreSQL? Kafka is in memory, FastAPI as much as it uses."""

from __future__ import annotations

import asyncio
import importlib
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from choreo import PostgresStore, Service
from choreo.cli.main import app as command_line
from choreo.record import Outgoing
from choreo.testing import MemoryBroker
from tests.docs.pages import page
from tests.docs.test_examples import FakeFastApi
from tests.support.postgres import PostgresServer

PAGE = page("docs/how-to/commit-with-your-data.md")
FILES = {str(block.word("file")): block for block in PAGE.blocks("python") if block.word("file")}
DEADLINE_S = 15.0


@pytest.fixture
def database(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its name, with choreo's tables; the page's files are in the working folder."""
    for name, block in FILES.items():
        (tmp_path / name).write_text(block.code())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    fastapi = types.ModuleType("fastapi")
    fastapi.FastAPI = FakeFastApi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastapi", fastapi)
    database = postgres.new_database()
    monkeypatch.setenv("DATABASE_URL", postgres.conninfo(database))
    PostgresStore(postgres.conninfo(database)).apply_schema()
    yield database
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    broker = MemoryBroker()
    monkeypatch.setattr("choreo.service.KafkaBroker", lambda _settings: broker)
    return broker


def make_topics(broker: MemoryBroker, service: Service) -> None:
    for topic in service.topics():
        broker.create_topic(topic)


async def until(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {DEADLINE_S:g} s"
        await asyncio.sleep(0.02)


async def test_the_handler_writes_and_emits_in_one_commit(database: str, postgres: PostgresServer, broker: MemoryBroker) -> None:
    postgres.execute("create table payments (order_id text, cents int)", database=database)
    service = importlib.import_module("books").bookings()
    make_topics(broker, service)
    value = {"type": "payment.received", "timestamp": "2026-11-26T18:00:00Z", "payload": {"order_id": "o-1", "cents": 500}}
    broker.write(Outgoing("payments", b"o-1", orjson.dumps(value)))

    async with service.running():
        await until(lambda: broker.records("bookings"))

    assert postgres.execute("select * from payments", database=database) == [("o-1", 500)]
    assert orjson.loads(broker.records("bookings")[0].value or b"")["payload"] == {"order_id": "o-1"}


async def test_the_endpoint_writes_its_row_and_its_event_in_one_commit(
    database: str, postgres: PostgresServer, broker: MemoryBroker
) -> None:
    postgres.execute("create table orders (order_id text primary key)", database=database)
    orders = importlib.import_module("orders")
    make_topics(broker, orders.service)

    async with orders.app.lifespan(orders.app):
        place = orders.app.routes["/orders/{order_id}"]
        answer = await place("o-1")
        with pytest.raises(Exception, match="duplicate key"):
            await place("o-1")
        await until(lambda: broker.records("orders"))
        await asyncio.sleep(0.3)

    (record,) = broker.records("orders")
    assert answer == {"flow": dict(record.headers)["choreo-id"].decode()}  # type: ignore[union-attr]
    assert postgres.execute("select * from orders", database=database) == [("o-1",)]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("number", range(3))
def test_the_commands_are_there(number: int) -> None:
    command = [command for command in PAGE.commands() if command.text.startswith("choreo outbox")][number]

    said = CliRunner().invoke(command_line, command.words()[1:])

    assert said.exit_code == (2 if "discard" in command.text else 0), said.output
    assert "17: not set aside" in said.output if "discard" in command.text else "bookings: " in said.output
