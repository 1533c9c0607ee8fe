"""``choreo store plan|apply`` on a real PostgreSQL, and what it says of stores that need no such thing."""

from __future__ import annotations

import json

import psycopg
import pytest

from choreo.storage.postgres import SCHEMA_VERSION, PostgresStore
from tests.support.postgres import PostgresServer
from tests.unit.cli_desk import Said
from tests.unit.cli_desk import choreo as run

HERE = "tests.unit.store_desk"
DESK = f"{HERE}:desk"

TABLES = ["choreo_claims", "choreo_outbox", "choreo_outbox_leases", "choreo_outbox_relays", "choreo_schema"]


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    return postgres.conninfo(postgres.new_database())


def choreo(database: str, *words: str) -> Said:
    return run(*words, environment={"DESK_DATABASE": database})


def tables(database: str) -> list[str]:
    with psycopg.connect(database) as connection:
        return [name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'choreo' ORDER BY 1")]


def test_a_plan_prints_a_script_and_writes_nothing(database: str) -> None:
    said = choreo(database, "store", "plan", DESK)

    assert said.code == 1
    assert f"schema choreo: no tables, this choreo needs version {SCHEMA_VERSION}" in said.out
    assert "CREATE TABLE choreo_claims (" in said.out
    assert f"-- go: choreo store apply {DESK} --yes" in said.out
    assert tables(database) == []


def test_the_printed_script_runs_as_it_is(database: str) -> None:
    script = choreo(database, "store", "plan", DESK).out

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(script.encode())
    said = choreo(database, "store", "plan", DESK)

    assert said.code == 0
    assert f"version {SCHEMA_VERSION}, nothing to do" in said.out
    assert tables(database) == TABLES


def test_applying_without_yes_is_not_confirmed_where_there_is_no_terminal(database: str) -> None:
    said = choreo(database, "store", "apply", DESK)

    assert said.code == 3
    assert "CREATE TABLE choreo_claims (" in said.out
    assert "not confirmed, nothing written: 2 migrations of PostgreSQL" in said.err
    assert tables(database) == []


def test_a_dry_run_never_writes(database: str) -> None:
    said = choreo(database, "store", "apply", DESK, "--yes", "--dry-run")

    assert said.code == 1
    assert "CREATE TABLE choreo_claims (" in said.out
    assert "plan only, nothing written" in said.err
    assert tables(database) == []


def test_applying_with_yes_makes_the_tables_and_a_second_time_there_is_nothing_to_do(database: str) -> None:
    first, second = choreo(database, "store", "apply", DESK, "--yes"), choreo(database, "store", "apply", DESK, "--yes")
    dry = choreo(database, "store", "apply", DESK, "--dry-run")

    assert (first.code, second.code, dry.code) == (0, 0, 0)
    assert first.out == "done  0001_claims\ndone  0002_outbox\n"
    assert f"version {SCHEMA_VERSION}, nothing to do" in second.out
    assert tables(database) == TABLES


def test_json_is_one_document_and_nothing_else(database: str) -> None:
    planned = choreo(database, "store", "plan", DESK, "--json")
    refused = choreo(database, "store", "apply", DESK, "--json")
    applied = choreo(database, "store", "apply", DESK, "--yes", "--json")
    again = choreo(database, "store", "apply", DESK, "--json")

    plan = json.loads(planned.out)
    assert (planned.code, refused.code, applied.code, again.code) == (1, 3, 0, 0)
    assert (plan["service"], plan["version"], plan["needed"]) == ("desk", 0, SCHEMA_VERSION)
    assert plan["migrations"] == [{"version": 1, "name": "0001_claims"}, {"version": 2, "name": "0002_outbox"}]
    assert plan["script"].startswith("BEGIN;\n")
    assert refused.out == ""
    assert json.loads(applied.out)["applied"] == ["0001_claims", "0002_outbox"]
    assert json.loads(again.out)["applied"] == []


def test_tables_of_a_newer_choreo_are_told_and_left_alone(database: str) -> None:
    PostgresStore(database).apply_schema()
    with psycopg.connect(database) as connection:
        connection.execute("INSERT INTO choreo.choreo_schema (version) VALUES (99)")

    planned, applied = choreo(database, "store", "plan", DESK), choreo(database, "store", "apply", DESK, "--yes")

    assert (planned.code, applied.code) == (1, 1)
    assert "version 99, made by a newer choreo than this one" in planned.out
    assert "version 99, made by a newer choreo than this one" in applied.out


def test_a_database_that_is_away_is_one_line_and_exit_code_4() -> None:
    said = choreo("postgresql://desk:s3cret@127.0.0.1:1/shop", "store", "plan", DESK)

    assert said.code == 4
    assert said.err.startswith("error  PostgreSQL 127.0.0.1:1/shop, schema choreo: looking at the schema: ")
    assert said.err.count("\n") == 1
    assert "s3cret" not in said.out + said.err


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("by_default", "desk: SQLite .choreo/desk.db: it makes what it needs by itself; nothing to do"),
        ("in_memory", "desk: in memory, gone with the process: it makes what it needs by itself; nothing to do"),
        ("without_claims", "desk: it keeps no claims; nothing to do"),
    ],
)
@pytest.mark.parametrize("words", [("plan",), ("apply",), ("apply", "--yes")])
def test_stores_without_such_tables_say_so(name: str, told: str, words: tuple[str, ...]) -> None:
    said = choreo("", "store", words[0], f"{HERE}:{name}", *words[1:])
    as_json = choreo("", "store", words[0], f"{HERE}:{name}", *words[1:], "--json")

    assert (said.code, said.out) == (0, f"{told}\n")
    assert json.loads(as_json.out)["migrations"] == []
