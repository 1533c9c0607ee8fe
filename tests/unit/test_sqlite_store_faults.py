"""What does the SQLite store say when its file is not as it should be, and does it leave anything half-done?

No file mode stops root: where a file must not be writable, a process becomes somebody else.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from choreo import failpoint
from choreo.errors import StateError, StoreError
from choreo.storage.sqlite import SCHEMA_VERSION, SqliteStore
from choreo.store import Claim
from tests.support.kafka_jars import ROOT

CLAIM = Claim("charge-card", "e-1")
DEADLINE_S = 20.0
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "payments.db"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    """Open, and soon tired of waiting for a lock."""
    store = SqliteStore(path, busy_timeout_s=0.05)
    store.open("payments")
    yield store
    store.close()


def rows(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT consumer_group, handler, event_id, run FROM choreo_claims ORDER BY 1, 2, 3, 4").fetchall()


def refusal(path: Path) -> StoreError:
    """What opening it raises."""
    store = SqliteStore(path, busy_timeout_s=0.05)
    with pytest.raises(StoreError) as refused:
        store.open("payments")
    with pytest.raises(StoreError, match="not open"):
        store.lookup([CLAIM])
    return refused.value


# ---- opening ------------------------------------------------------------------------------------------------------------


def test_missing_folders_are_made(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a" / "b" / "payments.db")

    store.open("payments")
    store.claim([CLAIM])
    store.close()

    assert rows(tmp_path / "a" / "b" / "payments.db") == [("payments", "charge-card", "e-1", "")]


def test_nothing_is_touched_before_it_is_opened(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "a" / "payments.db")

    assert list(tmp_path.iterdir()) == []


def test_the_file_is_in_wal_mode_and_every_commit_is_synced(path: Path, store: SqliteStore) -> None:
    connection = store._ready()

    (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    (synchronous,) = connection.execute("PRAGMA synchronous").fetchone()

    assert (mode, synchronous) == ("wal", 2)


def test_a_relative_path_stays_where_it_was_when_the_working_folder_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = SqliteStore(".choreo/payments.db")
    (tmp_path / "elsewhere").mkdir()

    monkeypatch.chdir(tmp_path / "elsewhere")
    store.open("payments")
    store.close()

    assert (tmp_path / ".choreo" / "payments.db").exists()
    assert store.describe() == "SQLite .choreo/payments.db"


def test_a_folder_in_place_of_the_file_is_refused_for_good(path: Path) -> None:
    path.mkdir()

    error = refusal(path)

    assert not error.retriable
    assert str(path) in str(error)
    assert "must be a file (not a folder)" in str(error)


def test_a_file_in_place_of_the_folder_is_refused_for_good(path: Path) -> None:
    path.write_text("a file")

    error = refusal(path / "payments.db")

    assert not error.retriable
    assert "its folder can't be made" in str(error)


def test_a_file_that_is_no_database_is_refused_for_good_and_left_alone(path: Path) -> None:
    path.write_bytes(b"these are my notes, keep them " * 100)

    error = refusal(path)

    assert not error.retriable
    assert "it is no SQLite database; move it away, or choose another path" in str(error)
    assert path.read_bytes() == b"these are my notes, keep them " * 100


def test_a_newer_schema_is_refused_for_good(path: Path, store: SqliteStore) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE choreo_schema SET version = ?", [SCHEMA_VERSION + 1])

    error = refusal(path)

    assert not error.retriable
    assert f"schema is version {SCHEMA_VERSION + 1}, this choreo knows {SCHEMA_VERSION}" in str(error)
    assert "run the choreo release that wrote it" in str(error)


def test_a_database_of_somebody_else_gets_choreos_tables_and_keeps_its_own(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE orders (id TEXT)")
        connection.execute("INSERT INTO orders VALUES ('o-1')")

    store = SqliteStore(path)
    store.open("payments")
    store.claim([CLAIM])
    store.close()

    assert rows(path) == [("payments", "charge-card", "e-1", "")]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM orders").fetchall() == [("o-1",)]


def test_many_that_open_a_new_file_at_once_all_succeed(path: Path) -> None:
    stores = [SqliteStore(path) for _ in range(8)]
    problems: list[StoreError] = []
    together = threading.Barrier(len(stores))

    def open_one(store: SqliteStore) -> None:
        together.wait(DEADLINE_S)
        try:
            store.open("payments")
        except StoreError as error:
            problems.append(error)

    threads = [threading.Thread(target=open_one, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    for store in stores:
        store.close()

    assert problems == []


@pytest.fixture
def somebody_elses(tmp_path: Path) -> Iterator[Path]:
    """A folder that this process may read and not write, until the test is over."""
    with TemporaryDirectory() as name:
        os.chmod(name, 0o755 if os.geteuid() == 0 else 0o555)
        yield Path(name)
        os.chmod(name, 0o755)


def refusal_to_nobody(path: Path) -> StoreError:
    """What opening it raises without root's rights, where the tests run as root. In a process of its own: to change the user
    interrupts every thread of this one, and librdkafka's in-process cluster takes that for its end (seen: the client that held
    it then crashed when it was closed)."""
    if os.geteuid() != 0:
        return refusal(path)
    told = subprocess.run([sys.executable, "-c", AS_NOBODY, str(path), str(NOBODY)], capture_output=True, text=True, check=True, cwd=ROOT)
    retriable, text = json.loads(told.stdout)
    return StoreError(text, retriable=retriable)


AS_NOBODY = """
import json, os, sys
from pathlib import Path
from tests.unit.test_sqlite_store_faults import refusal

os.seteuid(int(sys.argv[2]))
error = refusal(Path(sys.argv[1]))
print(json.dumps([error.retriable, str(error)]))
"""


def test_a_folder_that_may_not_be_written_is_refused_for_good(somebody_elses: Path) -> None:
    error = refusal_to_nobody(somebody_elses / "payments.db")

    assert not error.retriable
    assert "it must be a file (not a folder) that this user may write" in str(error)


def test_a_folder_in_which_no_folder_can_be_made_is_refused_for_good(somebody_elses: Path) -> None:
    error = refusal_to_nobody(somebody_elses / "a" / "payments.db")

    assert not error.retriable
    assert "its folder can't be made" in str(error)


@pytest.mark.parametrize("closed_cleanly", [True, False])
def test_a_file_that_may_only_be_read_is_refused_when_it_is_opened(somebody_elses: Path, closed_cleanly: bool) -> None:
    path = somebody_elses / "payments.db"
    os.chmod(somebody_elses, 0o755)
    owner = SqliteStore(path)
    owner.open("payments")
    owner.claim([CLAIM])
    if closed_cleanly:
        owner.close()
    for file in somebody_elses.iterdir():
        file.chmod(0o444)

    error = refusal_to_nobody(path)
    owner.close()

    assert not error.retriable
    assert "it can't be written; give this user write access to the file and its folder" in str(error)


# ---- while it is open ---------------------------------------------------------------------------------------------------


def test_a_locked_file_is_waited_for_and_then_said_to_be_worth_another_try(path: Path, store: SqliteStore) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreError) as refused:
            store.claim([CLAIM])
        found_meanwhile = store.lookup([CLAIM])
        other.execute("COMMIT")
    already = store.claim([CLAIM])

    assert refused.value.retriable
    assert "another process holds its lock" in str(refused.value)
    assert str(path) in str(refused.value)
    assert (found_meanwhile, already) == (set(), set())


def test_a_lock_that_goes_away_in_time_is_not_noticed(path: Path) -> None:
    store = SqliteStore(path, busy_timeout_s=DEADLINE_S)
    store.open("payments")
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.1, other.execute, ["COMMIT"])
        release.start()

        already = store.claim([CLAIM])
        release.join()
    store.close()

    assert already == set()


def test_a_full_disk_is_worth_another_try_and_leaves_nothing_half_written(path: Path, store: SqliteStore) -> None:
    connection = store._ready()
    store.claim([CLAIM])
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    many = [Claim("charge-card", f"full-{number}") for number in range(2000)]

    with pytest.raises(StoreError) as refused:
        store.claim(many)
    found_while_full = store.lookup([CLAIM, *many])
    connection.execute("PRAGMA max_page_count = 1073741823")
    already = store.claim(many)

    assert refused.value.retriable
    assert "the disk is full; make room" in str(refused.value)
    assert found_while_full == {CLAIM}
    assert already == set()


def test_a_database_that_may_not_be_written_is_refused_for_good(store: SqliteStore) -> None:
    store._ready().execute("PRAGMA query_only = ON")

    with pytest.raises(StoreError) as refused:
        store.claim([CLAIM])

    assert not refused.value.retriable
    assert "give this user write access" in str(refused.value)


def test_a_damaged_file_is_refused_for_good(path: Path, store: SqliteStore) -> None:
    claims = [Claim("charge-card", f"e-{number}") for number in range(5000)]
    store.claim(claims)
    store.close()
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x55" * (len(content) - 4096)
    path.write_bytes(content)

    error = refusal(path)

    assert not error.retriable
    assert "it is damaged; move it away and restore a backup" in str(error)


def test_a_file_that_was_deleted_while_it_was_open_is_noticed(path: Path, store: SqliteStore) -> None:
    store.claim([CLAIM])
    path.unlink()

    with pytest.raises(StoreError) as refused:
        store.claim([Claim("charge-card", "e-2")])

    assert not refused.value.retriable
    assert "moved, deleted or replaced while it was open" in str(refused.value)


def test_a_missing_table_is_refused_for_good(store: SqliteStore) -> None:
    store._ready().execute("DROP TABLE choreo_claims")

    with pytest.raises(StoreError, match="no such table: choreo_claims") as refused:
        store.lookup([CLAIM])

    assert not refused.value.retriable


def test_after_any_failure_the_next_claim_goes_through(path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failpoint, "ACTIVE", True)
    monkeypatch.setattr(failpoint, "_points", failpoint._parse("in_store_tx=raise"))
    with pytest.raises(StateError):
        store.claim([CLAIM])

    rows_after_failure = rows(path)
    already = store.claim([CLAIM])

    assert rows_after_failure == []
    assert already == set()
    assert rows(path) == [("payments", "charge-card", "e-1", "")]


# ---- when the process dies ----------------------------------------------------------------------------------------------

CLAIMS_AND_DIES = """
import sys
from choreo.storage.sqlite import SqliteStore
from choreo.store import Claim
store = SqliteStore(sys.argv[1])
store.open("payments")
store.claim([Claim("charge-card", f"e-{number}") for number in range(700)])
print("alive")
"""


@pytest.mark.parametrize(("point", "claimed"), [("before_store_tx", 0), ("in_store_tx", 0), ("after_store_commit", 700)])
def test_claims_are_all_there_after_a_kill_or_none_is(path: Path, point: str, claimed: int) -> None:
    environment = {**os.environ, "CHOREO_FAILPOINT": f"{point}=kill9"}

    dead = subprocess.run([sys.executable, "-c", CLAIMS_AND_DIES, path], env=environment, capture_output=True, text=True, timeout=60)
    store = SqliteStore(path)
    store.open("payments")
    found = store.lookup([Claim("charge-card", f"e-{number}") for number in range(700)])
    store.close()

    assert (dead.returncode, dead.stdout) == (-9, ""), dead.stderr
    assert len(found) == claimed


# ---- speed --------------------------------------------------------------------------------------------------------------


def test_looking_500_claims_up_searches_the_key_and_never_scans(path: Path, store: SqliteStore) -> None:
    statements: list[str] = []
    connection = store._ready()
    store.claim([Claim("charge-card", f"e-{number}") for number in range(1000)])
    connection.set_trace_callback(statements.append)

    found = store.lookup([Claim("charge-card", f"e-{number}") for number in range(500)])
    connection.set_trace_callback(None)
    (statement,) = statements
    plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}")]

    assert len(found) == 500
    assert any("SEARCH choreo_claims USING PRIMARY KEY (consumer_group=? AND handler=? AND event_id=? AND run=?)" in step for step in plan)
    assert not any("SCAN choreo_claims" in step for step in plan)


def test_claims_carry_the_time_they_were_made_at(path: Path, store: SqliteStore) -> None:
    before_ms = int(time.time() * 1000)

    store.claim([CLAIM])
    with closing(sqlite3.connect(path)) as connection:
        ((at_ms,),) = connection.execute("SELECT claimed_at_ms FROM choreo_claims").fetchall()

    assert before_ms <= at_ms <= before_ms + 60_000
