"""What may one give a PostgresStore, what does it say to the rest, and does choreo work where psycopg isn't?"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool

from choreo import ConfigurationError, PostgresStore
from choreo.storage.postgres_connections import OwnConnection
from tests.support.kafka_jars import ROOT

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("conninfo", "told"),
    [
        (f"postgresql+psycopg://payments:{SECRET}@db/shop", "leave out the '+...' before '://'"),
        (f"postgres://payments:%{SECRET}@db/shop", "this is no conninfo (not shown, it may hold a password)"),
        (f"host=db passwrd={SECRET}", "this is no conninfo"),
        (f"{SECRET}@db", "this is no conninfo"),
        (f"postgres://payments:p@{SECRET}@db/shop", "there is more than one '@' in the conninfo (not shown)"),
        (f"postgres://payments:12/{SECRET}@db/shop", "there is more than one '@' in the conninfo (not shown)"),
    ],
)
def test_a_wrong_conninfo_is_one_line_that_does_not_show_it(conninfo: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        PostgresStore(conninfo)

    assert told in str(refused.value)
    assert "with what is special in the password as %xx" in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"schema": 'a"b'}, "schema='a\"b'; use letters, digits, '_' and '-', at most 63"),
        ({"schema": ""}, "schema=''"),
        ({"schema": "x" * 64}, "at most 63"),
        ({"lock_timeout_s": 0}, "lock_timeout_s=0; use 0.001 to 3,600"),
        ({"lock_timeout_s": float("nan")}, "lock_timeout_s=nan"),
    ],
)
def test_a_wrong_setting_is_told_with_what_may_be(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        PostgresStore("host=db", **settings)

    assert told in str(refused.value)


@pytest.mark.parametrize("database", [7, None, b"host=db", "pool"])
def test_what_is_neither_conninfo_nor_pool_is_refused(database: Any) -> None:
    if database == "pool":
        database = AsyncConnectionPool("host=db", open=False)

    with pytest.raises(ConfigurationError) as refused:
        PostgresStore(database)

    assert f"takes a conninfo or a psycopg_pool.ConnectionPool, not {type(database).__name__}" in str(refused.value)


def test_a_server_that_is_gone_without_a_word_is_noticed_and_the_conninfo_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)

    own = OwnConnection("host=db keepalives_idle=77")._parameters
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "3")
    by_environment = OwnConnection("host=db")._parameters

    assert (own["connect_timeout"], own["tcp_user_timeout"], own["keepalives_idle"]) == (10, 20_000, "77")
    assert "connect_timeout" not in by_environment


@pytest.mark.parametrize(
    ("conninfo", "place"),
    [
        ("postgresql://payments@db:6432/shop", "db:6432/shop"),
        ("host=db dbname=shop", "db:5432/shop"),
        ("dbname=shop", "localhost:5432/shop"),
        ("host=/run/postgresql dbname=shop", "/run/postgresql:5432/shop"),
    ],
)
def test_it_says_where_it_will_look_before_it_has(conninfo: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PGHOST", "PGPORT", "PGDATABASE"):
        monkeypatch.delenv(name, raising=False)

    assert PostgresStore(conninfo).describe() == f"PostgreSQL {place}, schema choreo"


WITHOUT_PSYCOPG = """
import sys
import choreo
print("psycopg" in sys.modules)
sys.modules["psycopg"] = None  # as if it were not installed
from choreo import PostgresStore
try:
    PostgresStore("host=db")
except choreo.ConfigurationError as error:
    print(error)
"""


def test_choreo_works_without_psycopg_and_the_store_says_what_to_install() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_PSYCOPG], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )

    imported, told = ended.stdout.splitlines()
    assert imported == "False"
    assert told.startswith("PostgresStore needs psycopg, which can't be imported (")
    assert told.endswith("): pip install choreo[postgres]")
