"""Does the page on PostgreSQL do what it says, command by command, on a real one? The service runs on the broker in memory."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from typer.testing import CliRunner

from choreo import Service, StoreError
from choreo.cli.loading import load_service
from choreo.cli.main import app
from choreo.testing import MemoryBroker
from tests.docs.pages import Command, page
from tests.support.postgres import PostgresServer

PAGE = page("docs/how-to/keep-claims-in-postgres.md")
FILES = {block.word("file"): block for block in PAGE.blocks("python") if block.word("file")}
GRANTS, LOOK = (block.text for block in PAGE.blocks("sql"))
PLAN, APPLY, PLAN_AGAIN = (command for command in PAGE.commands() if command.text.startswith("choreo store") and "|" not in command.text)
DEADLINE_S = 15.0


@pytest.fixture
def database(postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its name. The page's files are in the working folder, and DATABASE_URL is set as the page sets it."""
    for name, block in FILES.items():
        (tmp_path / str(name)).write_text(block.code())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    database = postgres.new_database()
    monkeypatch.setenv("DATABASE_URL", postgres.conninfo(database))
    yield database
    for name in FILES:
        sys.modules.pop(str(name).removesuffix(".py"), None)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> MemoryBroker:
    broker = MemoryBroker()
    monkeypatch.setattr("choreo.service.KafkaBroker", lambda _settings: broker)
    return broker


def follow(command: Command) -> list[str]:
    """Runs it; the lines of the page that it did not print, in their order."""
    lines = iter(plain(line) for line in CliRunner().invoke(app, command.words()[1:]).output.splitlines())
    return [line for line in command.printed if line and line != "..." and plain(line) not in lines]


def plain(line: str) -> str:
    """Without PostgreSQL's version and address."""
    return re.sub(r"PostgreSQL \d+ \S+, schema", "PostgreSQL, schema", line)


async def until(condition: Callable[[], object]) -> None:
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {DEADLINE_S:g} s"
        await asyncio.sleep(0.02)


def make_topics(broker: MemoryBroker, service: Service) -> None:
    for topic in service.topics():
        broker.create_topic(topic)


def test_the_commands_print_what_the_page_says(database: str) -> None:
    assert [follow(command) for command in (PLAN, APPLY, PLAN_AGAIN)] == [[], [], []]


async def test_a_service_without_its_tables_does_not_start_and_says_what_to_run(database: str, broker: MemoryBroker) -> None:
    service = load_service("shop:billing")
    make_topics(broker, service)

    with pytest.raises(StoreError, match=r"it has no tables of choreo, this choreo needs version 2; run: choreo store apply MODULE:NAME"):
        async with service.running():
            raise AssertionError("it runs")


@pytest.mark.parametrize("target", ["shop:billing", "pooled:billing"])
async def test_an_order_is_invoiced_once_and_its_claim_can_be_seen(
    postgres: PostgresServer, database: str, broker: MemoryBroker, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    CliRunner().invoke(app, APPLY.words()[1:])
    service = load_service(target)
    make_topics(broker, service)
    placed = importlib.import_module("shop").OrderPlaced(order_id="o-1")

    async with service.running():
        async with service.publisher() as publisher:
            await publisher.publish(placed, event_id="o-1-placed")
            await until(lambda: postgres.execute(LOOK, database=database))
            await publisher.publish(placed, event_id="o-1-placed")
        await until(lambda: sum(broker.committed("billing").values()) == 2)
        applications = {application for _, application, _ in postgres.sessions(database)}

    assert [row[:2] for row in postgres.execute(LOOK, database=database)] == [("billing", "send-invoice")]
    assert capsys.readouterr().out.count("invoice for o-1") == 1
    assert ("choreo billing" in applications) == (target == "shop:billing")
    await until(lambda: postgres.sessions(database) == [])


def test_a_role_with_the_rights_of_the_page_can_do_all_that_a_service_does(
    postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = CliRunner().invoke(app, PLAN.words()[1:]).output
    postgres.execute("CREATE ROLE billing LOGIN PASSWORD 'secret'")
    with psycopg.connect(postgres.conninfo(database), autocommit=True) as owner:
        owner.execute(script.encode())
        owner.execute(GRANTS.encode())
    monkeypatch.setenv("DATABASE_URL", postgres.conninfo(database, user="billing", password="secret"))
    store = load_service("shop:billing").store
    assert store is not None

    store.open("billing")
    told = (store.claim([]), store.delete_older(0.0, 10), follow(PLAN_AGAIN))
    store.close()
    postgres.execute("DROP OWNED BY billing", database=database)
    postgres.execute("DROP ROLE billing")

    assert told == (set(), 0, [])
