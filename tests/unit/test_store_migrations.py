"""Do migrations run once, in order, all or nothing, and does an older store get what it lacks?"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from choreo.errors import StateError, StoreError
from choreo.storage import postgres as module
from choreo.storage import schema
from choreo.storage.postgres import SCHEMA_VERSION, PostgresStore
from choreo.storage.sqlite import SqliteStore
from choreo.store import Claim, Migrating, Migration
from tests.support.postgres import PostgresServer

CLAIM = Claim("charge-card", "e-1")
DEADLINE_S = 20.0


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    return postgres.new_database()


@pytest.fixture
def store(postgres: PostgresServer, database: str) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres.conninfo(database))
    yield store
    store.close()


def versions(postgres: PostgresServer, database: str) -> list[int]:
    return [version for (version,) in postgres.execute("SELECT version FROM choreo.choreo_schema ORDER BY 1", database=database)]


# ---- PostgreSQL ---------------------------------------------------------------------------------------------------------


def test_a_plan_shows_the_sql_and_writes_nothing(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    plan = store.plan_schema()

    assert isinstance(store, Migrating)
    assert (plan.found, plan.needed) == (0, SCHEMA_VERSION)
    assert [step.name for step in plan.steps] == [step.name for step in schema.migrations("postgres")]
    assert 'CREATE SCHEMA "choreo";' in plan.script
    assert all(step.sql in plan.script for step in plan.steps)
    assert postgres.execute("SELECT to_regnamespace('choreo')", database=database) == [(None,)]
    assert postgres.sessions(database) == []


def test_a_second_time_there_is_nothing_to_run(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    first, second = store.apply_schema(), store.apply_schema()

    assert [step.version for step in first.steps] == versions(postgres, database) == list(range(1, SCHEMA_VERSION + 1))
    assert (second.found, second.steps, second.script) == (SCHEMA_VERSION, (), "")


def test_of_many_at_once_one_runs_them(postgres: PostgresServer, database: str) -> None:
    stores = [PostgresStore(postgres.conninfo(database), lock_timeout_s=DEADLINE_S) for _ in range(6)]
    together = threading.Barrier(len(stores))

    def apply(store: PostgresStore) -> int:
        together.wait(DEADLINE_S)
        return len(store.apply_schema().steps)

    with ThreadPoolExecutor(len(stores)) as threads:
        ran = sorted(threads.map(apply, stores))

    assert ran == [0] * 5 + [len(schema.migrations("postgres"))]
    assert versions(postgres, database) == list(range(1, SCHEMA_VERSION + 1))


def test_the_script_of_a_plan_does_the_same_in_other_hands(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    script = store.plan_schema().script

    with psycopg.connect(postgres.conninfo(database), autocommit=True) as connection:
        connection.execute(script.encode())
    store.open("payments")

    assert store.claim([CLAIM]) == set()
    assert store.apply_schema().steps == ()


def test_a_schema_that_is_there_already_is_used_and_so_is_public(postgres: PostgresServer, database: str) -> None:
    postgres.execute(
        "CREATE SCHEMA claims; CREATE ROLE builder LOGIN PASSWORD 'b'; GRANT ALL ON SCHEMA claims TO builder", database=database
    )
    builder = PostgresStore(postgres.conninfo(database, user="builder", password="b"), schema="claims")

    script = builder.plan_schema().script
    builder.apply_schema()
    public = PostgresStore(postgres.conninfo(database), schema="public")
    public.apply_schema()
    public.open("payments")
    public.claim([CLAIM])
    public.close()

    assert "CREATE SCHEMA" not in script
    assert postgres.execute("SELECT count(*) FROM public.choreo_claims", database=database) == [(1,)]
    assert postgres.execute("SELECT count(*) FROM claims.choreo_claims", database=database) == [(0,)]
    postgres.execute("DROP OWNED BY builder", database=database)
    postgres.execute("DROP ROLE builder")


def test_who_may_not_make_tables_is_told_who_can(postgres: PostgresServer, database: str) -> None:
    postgres.execute("CREATE ROLE reader LOGIN PASSWORD 'r'")
    store = PostgresStore(postgres.conninfo(database, user="reader", password="r"))

    with pytest.raises(StoreError) as refused:
        store.apply_schema()
    postgres.execute("DROP ROLE reader")

    assert not refused.value.retriable
    assert "changing the schema: permission denied for database" in str(refused.value)
    assert "with the SQL that choreo store plan MODULE:NAME prints" in str(refused.value)


def test_a_migration_that_fails_leaves_nothing(
    postgres: PostgresServer, database: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Migration(SCHEMA_VERSION + 1, "9999_broken", "CREATE TABLE half (id int);\nSELECT 1 / 0;\n")
    monkeypatch.setattr(module, "_MIGRATIONS", (*schema.migrations("postgres"), broken))

    with pytest.raises(StoreError, match="changing the schema: division by zero"):
        store.apply_schema()

    assert postgres.execute("SELECT to_regnamespace('choreo')", database=database) == [(None,)]


def test_only_what_is_missing_runs_and_claims_stay(
    postgres: PostgresServer, database: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.apply_schema()
    store.open("payments")
    store.claim([CLAIM])
    store.close()
    later = Migration(SCHEMA_VERSION + 1, "9999_later", "CREATE TABLE choreo_later (id int);\n")
    monkeypatch.setattr(module, "_MIGRATIONS", (*schema.migrations("postgres"), later))
    monkeypatch.setattr(module, "SCHEMA_VERSION", later.version)

    applied = store.apply_schema()
    store.open("payments")

    assert applied.steps == (later,)
    assert store.lookup([CLAIM]) == {CLAIM}
    assert versions(postgres, database)[-1] == later.version


def test_a_schema_that_is_too_new_is_left_alone(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    store.apply_schema()
    postgres.execute("INSERT INTO choreo.choreo_schema (version) VALUES (%s)", SCHEMA_VERSION + 1, database=database)

    plan, applied = store.plan_schema(), store.apply_schema()

    assert plan == applied
    assert (plan.found, plan.needed, plan.steps, plan.script) == (SCHEMA_VERSION + 1, SCHEMA_VERSION, (), "")


def test_an_open_store_stays_open(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    store.apply_schema()
    store.open("payments")
    before = postgres.sessions(database)

    store.plan_schema()
    store.apply_schema()

    assert store.claim([CLAIM]) == set()
    assert [pid for pid, *_ in postgres.sessions(database)] == [pid for pid, *_ in before]


# ---- SQLite -------------------------------------------------------------------------------------------------------------


def test_a_sqlite_file_of_an_older_release_gets_what_it_lacks_and_keeps_its_claims(tmp_path: Path) -> None:
    path = tmp_path / "payments.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(schema.migrations("sqlite")[0].sql)
        connection.execute("INSERT INTO choreo_schema VALUES (1)")
        connection.execute("INSERT INTO choreo_claims VALUES ('payments', 'charge-card', 'e-1', '', 0, x'01')")

    store = SqliteStore(path)
    store.open("payments")
    found, deleted = store.payloads([CLAIM]), store.delete_older(60.0, 10)
    store.close()

    assert (found, deleted) == ({CLAIM: b"\x01"}, 1)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT version FROM choreo_schema").fetchall() == [(1,), (2,), (3,)]
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT 1 FROM choreo_claims WHERE consumer_group = '' AND claimed_at_ms < 1"
        ).fetchall()
    assert "choreo_claims_by_age" in plan[0][3]


def test_a_sqlite_file_is_made_anew_in_all_steps_or_in_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Migration(3, "0003_broken", "CREATE TABLE half (id INTEGER);\nCREATE TABLE half (id INTEGER);\n")
    monkeypatch.setattr("choreo.storage.sqlite._MIGRATIONS", (*schema.migrations("sqlite"), broken))
    path = tmp_path / "payments.db"

    with pytest.raises(StoreError, match="table half already exists"):
        SqliteStore(path).open("payments")

    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


# ---- the files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[], ["0002_b.sql"], ["0001_a.sql", "0003_c.sql"], ["0001_a.sql", "0001_b.sql"]])
def test_numbers_without_order_are_a_mistake_of_ours(tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "migrations" / "postgres"
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_text("SELECT 1;\n")
    monkeypatch.setattr(schema, "files", lambda _package: tmp_path)

    with pytest.raises(StateError, match="are not numbered from 1 without gaps"):
        schema.migrations.__wrapped__("postgres")
