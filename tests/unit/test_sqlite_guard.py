"""What may a handler do with ``context.transaction`` of a SQLite file, and what can it do to the others of its burst? Nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from choreo.errors import PermanentError, StateError
from tests.unit.sqlite_desk import ROOT, Act, Desk, claim, each, row, run, write


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


# ---- what handlers may do -----------------------------------------------------------------------------------------------


def test_nothing_that_is_left_open_holds_up_this_burst_or_the_next(desk: Desk) -> None:
    desk.burst(run("CREATE TABLE blobs (data)", "INSERT INTO blobs VALUES (zeroblob(4))"))
    kept: list[Any] = []

    def leaves_open(connection: Any) -> None:
        connection.executemany("INSERT INTO entries VALUES (?)", [("x",)] * 500)
        blob = connection.blobopen("blobs", "data", 1)
        blob.write(b"kept")
        reading = connection.execute("SELECT text FROM entries")
        returning = connection.execute("INSERT INTO entries VALUES ('r') RETURNING text")
        dump = connection.iterdump()
        next(line for line in dump if "entries" in line and "INSERT" in line)
        next(reading)
        kept.extend([blob, reading, returning, dump])

    def leaves_open_and_fails(connection: Any) -> None:
        leaves_open(connection)
        kept[-4].seek(0)
        kept[-4].write(b"lost")
        raise ValueError("the handler's")

    raised = desk.burst(leaves_open, leaves_open_and_fails, leaves_open)
    desk.store.claim([claim(1)])  # others go on, and the connection must see it

    assert [type(error) for error in raised] == [type(None), ValueError, type(None)]
    assert desk.burst(write("next"), claims=[claim(2)]) == [None]
    assert len(desk.entries()) == 2 * 501 + 1
    with closing(desk.connect()) as connection:
        assert connection.execute("SELECT data FROM blobs").fetchall() == [(b"kept",)]
    with pytest.raises(sqlite3.ProgrammingError):
        kept[0].write(b"late")
    with pytest.raises(PermanentError, match="good for one delivery"):
        kept[1].execute("SELECT 1")


def test_cursor_classes_that_misbehave_harm_nobody(desk: Desk) -> None:
    class NeverMade(sqlite3.Cursor):
        def __init__(self, connection: Any) -> None:
            """Forgets its base."""

    class NeverClosed(sqlite3.Cursor):
        def close(self) -> None:
            raise ValueError("not now")

    kept: list[Any] = []

    def opens_them(connection: Any) -> None:
        kept.append(connection.cursor(NeverMade))
        kept.append(connection.cursor(factory=NeverClosed).execute("SELECT text FROM entries"))
        kept[-1].execute("INSERT INTO entries VALUES ('a') RETURNING text")

    def wants_a_function(connection: Any) -> None:
        connection.cursor(lambda real: sqlite3.Cursor(real))

    raised = desk.burst(opens_them, wants_a_function)

    assert raised[0] is None
    assert isinstance(raised[1], PermanentError)
    assert isinstance(kept[1], NeverClosed)
    assert desk.entries() == ["a"]


def test_settings_of_one_handler_are_not_anothers_nor_choreos(desk: Desk) -> None:
    seen: list[Any] = []

    def sets(connection: Any) -> None:
        connection.row_factory = lambda cursor, row: 1 / 0
        connection.text_factory = bytes
        connection.create_function("count", 1, lambda _: 1 / 0)
        write("a")(connection)

    raised = desk.burst(sets, lambda c: seen.extend(c.execute("SELECT text FROM entries")), claims=[claim(1), claim(2)], rows=[row(1)])

    assert (raised, seen) == ([None, None], [("a",)])
    assert desk.store.lookup([claim(1), claim(2)]) == {claim(1), claim(2)}


def test_full_text_search_and_trees_work_and_so_do_questions_about_the_file(desk: Desk) -> None:
    found: list[Any] = []

    def searches(connection: Any) -> None:
        for kind in ("fts4(text)", "fts5(text)", "rtree(id, low, high)"):
            connection.execute(f"CREATE VIRTUAL TABLE {kind[:4]} USING {kind}")
        connection.execute("INSERT INTO fts4 VALUES ('hello world')")
        connection.execute("INSERT INTO fts5 VALUES ('hello world')")
        connection.execute("INSERT INTO rtre VALUES (1, 2, 3)")
        found.extend(connection.execute("SELECT * FROM fts4 WHERE fts4 MATCH 'hello'"))
        found.extend(connection.execute("PRAGMA user_version"))
        found.extend(row[1] for row in connection.execute("PRAGMA table_info(entries)"))

    assert desk.burst(searches) == [None]
    assert found == [("hello world",), (0,), "text"]
    assert desk.burst(lambda connection: connection.execute("INSERT INTO fts4 VALUES ('again')")) == [None]


def test_a_savepoint_of_the_handlers_own_undoes_a_part(desk: Desk) -> None:
    part = each(write("a"), run("SAVEPOINT mine"), write("b"), run("ROLLBACK TO mine", "RELEASE mine"), write("c"), run("SAVEPOINT left"))

    assert desk.burst(part, write("d")) == [None, None]
    assert desk.entries() == ["a", "c", "d"]


# ---- the guard ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("COMMIT", "ROLLBACK", "BEGIN IMMEDIATE", "SAVEPOINT choreo_delivery", "RELEASE choreo_delivery", "ROLLBACK TO choreo_delivery"),
        *('RELEASE "choreo_delivery"', "release [CHOREO_DELIVERY]", "EXPLAIN COMMIT", "DETACH other"),
        *("PRAGMA user_version = 7", "PRAGMA page_size = 512", "PRAGMA locking_mode = EXCLUSIVE", "PRAGMA main.journal_mode = OFF"),
        *("PRAGMA wal_checkpoint", "PRAGMA writable_schema = 1", "PRAGMA defer_foreign_keys = 1", "PRAGMA query_only = 1"),
    ],
)
def test_no_text_gets_past_the_guard_when_choreo_has_run_the_same(desk: Desk, text: str) -> None:
    desk.burst(write("a"), lambda _: 1 / 0)  # all of choreo's own statements are in sqlite3's cache now
    desk.burst(write("b"))

    raised = desk.burst(write("c"), each(write("wrong"), run(text)), write("d"))

    assert isinstance(raised[1], PermanentError)
    assert desk.entries() == ["a", "b", "c", "d"]


def test_the_real_connection_is_nobodys(desk: Desk) -> None:
    acts: list[Act] = [
        lambda c: c.execute("SELECT 1").connection.commit(),
        lambda c: c.execute("SELECT 1").connection.close(),
        lambda c: c.cursor().connection.set_authorizer(None),
        lambda c: c.cursor().connection.__enter__(),
        lambda c: setattr(c, "autocommit", True),
        lambda c: c("COMMIT"),
        lambda c: c.interrupt(),
    ]

    raised = desk.burst(*(each(write("wrong"), act) for act in acts), write("right"))

    assert [type(error) for error in raised] == [PermanentError] * len(acts) + [type(None)]
    assert desk.entries() == ["right"]


def test_a_view_is_a_connection_to_python_and_none_to_sqlite3s_c_code(tmp_path: Path) -> None:
    """In a process of its own: with a subclass whose base was never initialised this is a segmentation fault."""
    script = f"""
import sqlite3
from pathlib import Path
from tests.unit.sqlite_desk import Desk, write
desk = Desk(Path({str(tmp_path)!r}))
def tries(connection):
    write("wrong")(connection)
    assert isinstance(connection, sqlite3.Connection) and connection.IntegrityError is sqlite3.IntegrityError
    for act in (lambda: sqlite3.Cursor(connection).execute("COMMIT"), lambda: sqlite3.Connection.commit(connection),
                lambda: sqlite3.Connection.execute(connection, "COMMIT"), lambda: sqlite3.connect(":memory:").backup(connection)):
        try:
            act()
        except TypeError:
            continue
        raise AssertionError("it worked")
    raise ValueError
print([type(error).__name__ for error in desk.burst(tries, write("right"))], desk.entries())
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stdout.strip()) == (0, "['ValueError', 'NoneType'] ['right']"), done.stderr


@pytest.mark.parametrize("ending", ["COMMIT", "ROLLBACK", "RELEASE choreo_delivery"])
def test_who_gets_past_the_guard_all_the_same_stops_the_process(desk: Desk, ending: str) -> None:
    def breaks_in(connection: Any) -> None:
        write("wrong")(connection)
        connection._real.own(ending)

    with pytest.raises(StateError, match="past the guard"):
        desk.burst(write("before"), breaks_in)
    with pytest.raises(StateError, match="past the guard"):
        desk.burst(each(breaks_in, lambda _: 1 / 0))

    assert desk.burst(write("after")) == [None]
    assert desk.entries()[-1] == "after"
