"""Do handlers' transactions on a SQLite file hold when a handler, the file or another process misbehaves? Beside the conformance suite,
what only SQLite can do."""

from __future__ import annotations

import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from choreo.errors import PermanentError, StoreError, TransactionLostError
from choreo.runtime.burst import run_now
from choreo.storage.sqlite import SqliteStore
from choreo.store import Claim
from tests.unit.sqlite_desk import GROUP, ROOT, Act, Desk, claim, each, ids, row, run, swallowing, write


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@contextmanager
def held(desk: Desk) -> Iterator[None]:
    """Somebody else has the write lock."""
    with closing(desk.connect(isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")


def conflict(connection: Any) -> None:
    connection.execute("INSERT INTO strict VALUES ('a')")
    connection.execute("INSERT INTO strict VALUES ('a')")


# ---- the lock -----------------------------------------------------------------------------------------------------------


def test_there_are_transactions_for_sqlites_connection_and_no_other(desk: Desk) -> None:
    class Mine(sqlite3.Connection):
        """A service's own."""

    assert desk.store.transactions(Mine) is None
    assert (desk.transactions.blocking, desk.transactions.most, desk.transactions.largest) == (True, 1, 256)


def test_looking_up_and_a_handler_that_asks_nobody_take_no_lock(desk: Desk) -> None:
    desk.store.claim([claim(1)], [b"hash"])
    seen: list[Any] = []

    def sets_up(connection: Any) -> None:
        connection.row_factory = sqlite3.Row
        connection.create_function("twice", 1, lambda number: 2 * number)
        seen.append(connection.total_changes)

    with held(desk):
        transaction = desk.begin()
        found = run_now(transaction.look_up([claim(1), claim(2)]))
        raised = desk.deliver(transaction, sets_up)
        run_now(transaction.end())

    assert (found, raised, len(seen)) == ({claim(1): b"hash"}, None, 1)


def test_a_lock_that_others_hold_too_long_is_a_loss_also_where_the_handler_swallows_it(desk: Desk) -> None:
    began_s = time.monotonic()
    with held(desk):
        transaction = desk.begin()
        with pytest.raises(TransactionLostError) as caught:
            desk.deliver(transaction, each(swallowing(write("a")), swallowing(write("b")), swallowing(write("c"))))
        run_now(transaction.end())
    took_s = time.monotonic() - began_s

    assert (caught.value.reason, caught.value.retriable) == ("lock", True)
    assert took_s < 0.8, "it was waited for once"
    assert desk.burst(write("after")) == [None]
    assert desk.entries() == ["after"]


def test_threads_of_one_process_wait_for_each_other_also_by_another_name_of_the_file(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "alias.db").symlink_to(desk.path)
    other = SqliteStore(tmp_path / "alias.db", busy_timeout_s=10)
    other.open(GROUP)
    assert other._file.writer() is desk.store._file.writer(), "else they would poll"
    transaction = desk.begin()
    desk.deliver(transaction, write("a"))

    claiming = threading.Thread(target=other.claim, args=[[claim(1)]])
    claiming.start()
    claiming.join(0.5)
    assert claiming.is_alive()
    run_now(transaction.commit([claim(2)], [b""], []))
    run_now(transaction.end())
    claiming.join(10)

    assert other.lookup([claim(1), claim(2)]) == {claim(1), claim(2)}
    other.close()


def test_what_was_not_committed_is_gone_at_the_end_and_the_connection_is_kept(desk: Desk) -> None:
    desk.burst(write("a"))
    connection = desk.transactions._connection
    transaction = desk.begin()
    desk.deliver(transaction, write("b"))

    run_now(transaction.end())

    assert desk.entries() == ["a"]
    assert desk.transactions._connection is connection
    assert desk.burst(write("c")) == [None]


def test_a_thread_that_waits_too_long_for_another_is_told_so(desk: Desk) -> None:
    transaction = desk.begin()
    desk.deliver(transaction, write("a"))

    with pytest.raises(StoreError, match="another thread of this process") as caught:
        desk.store.claim([claim(1)])
    another = desk.store.transactions(sqlite3.Connection)
    assert another is not None
    second = run_now(another.begin(quiet_s=5.0))
    with pytest.raises(TransactionLostError, match="another thread of this process") as lost:
        desk.deliver(second, write("b"))
    run_now(second.end())
    run_now(transaction.end())

    assert (caught.value.retriable, lost.value.reason) == (True, "lock")
    run_now(another.close())


def test_a_forked_process_waits_for_no_thread_that_it_does_not_have(desk: Desk) -> None:
    transaction = desk.begin()
    desk.deliver(transaction, write("a"))
    child = os.fork()
    if child == 0:
        free = desk.store._file.writer().acquire(blocking=False)
        os._exit(0 if free else 1)
    run_now(transaction.end())

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---- a transaction that is rolled back by a statement -------------------------------------------------------------------


def test_after_a_statement_has_rolled_all_back_nothing_is_written_outside_of_the_transaction(desk: Desk) -> None:
    tried: list[BaseException] = []

    def goes_on(connection: Any) -> None:
        with pytest.raises(sqlite3.IntegrityError):
            conflict(connection)
        for text in ("INSERT INTO entries VALUES ('outside')", "SAVEPOINT mine"):
            with pytest.raises(TransactionLostError) as refused:
                connection.execute(text)
            tried.append(refused.value)

    with pytest.raises(TransactionLostError) as caught:
        desk.burst(write("before"), goes_on, claims=[claim(1)], rows=[row(1)])

    assert caught.value.reason == "rolled-back"
    assert len(tried) == 2
    assert "UNIQUE constraint failed: strict.text" in str(caught.value)
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
    assert (desk.entries(), desk.store.lookup([claim(1)])) == ([], set())


@pytest.mark.parametrize("swallows", [True, False])
def test_a_statement_that_rolls_all_back_is_a_loss_and_says_why(desk: Desk, swallows: bool) -> None:
    with pytest.raises(TransactionLostError) as caught:
        desk.burst(write("before"), swallowing(conflict) if swallows else conflict)

    assert caught.value.reason == "rolled-back"
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
    assert desk.burst(write("after")) == [None]
    assert desk.entries() == ["after"]


def test_a_trigger_that_rolls_all_back_is_a_loss_too(desk: Desk) -> None:
    raising = "CREATE TRIGGER no BEFORE INSERT ON entries WHEN new.text = 'bad' BEGIN SELECT RAISE(ROLLBACK, 'no'); END"
    desk.burst(run(raising))

    with pytest.raises(TransactionLostError) as caught:
        desk.burst(write("good"), write("bad"))

    assert (caught.value.reason, desk.entries()) == ("rolled-back", [])


def test_what_is_committed_when_the_transaction_is_gone_is_refused(desk: Desk) -> None:
    transaction = desk.begin()
    with pytest.raises(TransactionLostError):
        desk.deliver(transaction, conflict)

    with pytest.raises(TransactionLostError):
        run_now(transaction.commit([claim(1)], [b""], [row(1)]))
    run_now(transaction.end())

    assert desk.store.lookup([claim(1)]) == set()


# ---- whose failure is it? -----------------------------------------------------------------------------------------------


def test_trouble_with_another_file_or_of_the_handlers_own_making_is_the_handlers_failure(desk: Desk, tmp_path: Path) -> None:
    def opens_nothing(connection: Any) -> None:
        write("a")(connection)
        sqlite3.connect(f"file:{tmp_path}/nowhere/x.db?mode=ro", uri=True)

    def drops_what_it_reads(connection: Any) -> None:
        connection.executemany("INSERT INTO entries VALUES (?)", [("c",)] * 20)
        for _ in connection.execute("SELECT * FROM entries"):
            connection.execute("DROP TABLE strict")

    def locks_itself_out(connection: Any) -> None:
        write("b")(connection)
        with closing(sqlite3.connect(desk.path, timeout=0.05)) as second:
            second.execute("INSERT INTO entries VALUES ('second')")

    def releases_what_it_reads(connection: Any) -> None:
        connection.execute("SAVEPOINT mine")
        reading = connection.execute("INSERT INTO entries VALUES ('d') RETURNING text")
        connection.execute("RELEASE mine")
        reading.close()

    raised = desk.burst(write("before"), opens_nothing, locks_itself_out, drops_what_it_reads, releases_what_it_reads, write("after"))

    assert [None if error is None else str(error) for error in raised] == [
        None,
        "unable to open database file",
        "database is locked",
        "database table is locked",
        "cannot release savepoint - SQL statements in progress",
        None,
    ]
    assert desk.entries() == ["before", "after"]


def test_a_full_disk_in_a_handler_is_the_files_trouble_also_where_the_handler_says_something_else(desk: Desk) -> None:
    desk.burst(write("before"))
    real = desk.transactions._connection
    assert real is not None
    (pages,) = real.execute("PRAGMA page_count").fetchone()
    real.execute(f"PRAGMA max_page_count = {pages}")

    def fills(connection: Any) -> None:
        try:
            connection.execute("INSERT INTO entries VALUES (zeroblob(1000000))")
        except sqlite3.Error as error:
            raise PermanentError("can't save it") from error

    with pytest.raises(StoreError, match="the disk is full") as caught:
        desk.burst(write("a"), fills)
    real.execute("PRAGMA max_page_count = 1000000")

    assert caught.value.retriable
    assert not isinstance(caught.value, TransactionLostError)
    assert desk.burst(write("after")) == [None]
    assert desk.entries() == ["before", "after"]


def test_a_damaged_page_that_a_handler_reads_is_the_files_trouble_and_for_somebody_to_mend(desk: Desk) -> None:
    desk.burst(each(*(write("x" * 3000) for _ in range(50))))
    with closing(desk.connect()) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    with desk.path.open("r+b") as file:
        for page in range(pages - 20, pages):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    desk.close()
    again = Desk(desk.path.parent)

    with pytest.raises(StoreError, match=r"in a handler: .*it is damaged") as caught:
        again.burst(each(write("a"), lambda connection: connection.execute("SELECT sum(length(text)) FROM entries").fetchall()))

    assert not caught.value.retriable
    again.close()


def test_a_disk_that_fails_at_commit_leaves_nothing_and_the_next_burst_goes_through(desk: Desk) -> None:
    desk.burst(write("before"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    transaction = desk.begin()
    desk.deliver(transaction, write("x" * 100_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (Path(f"{desk.path}-wal").stat().st_size, limits[1]))
    try:
        with pytest.raises(StoreError, match="committing") as caught:
            run_now(transaction.commit([claim(1)], [b""], [row(1)]))
        run_now(transaction.end())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert caught.value.retriable
    assert desk.burst(write("after"), claims=[claim(1)]) == [None]
    assert desk.entries() == ["before", "after"]


def test_a_file_that_was_replaced_stops_it_before_anything_is_written_there(desk: Desk, tmp_path: Path) -> None:
    desk.path.rename(tmp_path / "elsewhere.db")

    with pytest.raises(StoreError, match="moved, deleted or replaced") as caught:
        desk.begin()
    assert not caught.value.retriable
    assert not desk.path.exists(), "and none is made in its place"

    (tmp_path / "elsewhere.db").rename(desk.path)
    desk.burst(write("a"))
    transaction = desk.begin()
    desk.deliver(transaction, write("b"))
    desk.path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(StoreError, match="moved, deleted or replaced"):
        run_now(transaction.commit([], [], []))
    run_now(transaction.end())
    (tmp_path / "elsewhere.db").rename(desk.path)
    assert desk.entries() == ["a"]


def test_a_virtual_table_that_finds_itself_corrupt_is_the_handlers_failure(desk: Desk) -> None:
    desk.burst(
        run("CREATE VIRTUAL TABLE found USING fts5(text, content='entries')", "INSERT INTO found (rowid, text) VALUES (1, 'never there')")
    )

    raised = desk.burst(write("a"), run("INSERT INTO found (found, rank) VALUES ('integrity-check', 1)"))

    assert getattr(raised[1], "sqlite_errorcode", None) == sqlite3.SQLITE_CORRUPT_VTAB
    assert desk.entries() == ["a"]


# ---- all together -------------------------------------------------------------------------------------------------------

STEPS = st.sampled_from(["write", "fail", "savepoint", "undone", "commit", "swallowed commit", "conflict", "read", "raise"])
BURSTS = st.lists(st.tuples(st.lists(st.lists(STEPS, max_size=4), max_size=4), st.booleans()), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(bursts=BURSTS)
def test_any_bursts_leave_what_was_kept_and_committed(tmp_path_factory: pytest.TempPathFactory, bursts: list[Any]) -> None:
    desk = Desk(tmp_path_factory.mktemp("bursts"))
    expected: list[str] = []
    number = 0

    for deliveries, commits in bursts:
        kept: list[str] = []
        ended = "committed" if commits else "ended"
        transaction = desk.begin()
        for steps in deliveries:
            number += 1
            wrote = _deliver(desk, transaction, steps, str(number))
            if wrote is None:
                ended = "lost"
                break
            kept += wrote
        if ended == "committed":
            run_now(transaction.commit([claim(f"{number}-{n}") for n in range(3)], [b""] * 3, []))
            expected += kept
        run_now(transaction.end())
        number += 1
        assert desk.entries() == expected

    desk.close()


def _deliver(desk: Desk, transaction: Any, steps: list[str], name: str) -> list[str] | None:
    """Runs one delivery; what of it must be there when it is committed. None: the transaction must be lost, and is."""
    acts: dict[str, Act] = {
        "write": write(name),
        "fail": swallowing(run("INSERT INTO nowhere VALUES (1)")),
        "savepoint": each(run("SAVEPOINT mine"), write(name), run("RELEASE mine")),
        "undone": each(run("SAVEPOINT mine"), write("undone"), run("ROLLBACK TO mine")),
        "commit": run("COMMIT"),
        "swallowed commit": swallowing(run("COMMIT")),
        "conflict": swallowing(conflict),
        "read": run("SELECT text FROM entries"),
        "raise": lambda _: 1 / 0,
    }
    expected = _expected(steps)
    try:
        desk.deliver(transaction, each(*(acts[step] for step in steps)))
        became = "kept or undone"
    except TransactionLostError as error:
        became = error.reason
    except PermanentError:
        became = "refused"
    assert became == {"kept": "kept or undone", "undone": "kept or undone"}.get(expected, expected)
    if expected == "rolled-back":
        return None
    return [name for step in steps if step in ("write", "savepoint")] if expected == "kept" else []


def _expected(steps: list[str]) -> str:
    became = "kept"
    for step in steps:
        match step:
            case "conflict":
                return "rolled-back"
            case "commit" | "raise":
                return "undone"
            case "swallowed commit":
                became = "refused"
    return became


MEMBER = """
import sqlite3, sys
from choreo.errors import TransactionLostError
from choreo.runtime.burst import run_now
from choreo.storage.sqlite import SqliteStore
from tests.unit.sqlite_desk import GROUP, claim, row
store = SqliteStore(sys.argv[1]); store.open(GROUP)
transactions = store.transactions(sqlite3.Connection)
def burst(numbers):
    transaction = run_now(transactions.begin(quiet_s=5))
    try:
        claimed = run_now(transaction.look_up([claim(n) for n in numbers]))
        new = [n for n in numbers if claim(n) not in claimed]
        for n in new:
            run_now(transaction.begin_delivery()).execute("INSERT INTO entries VALUES (?)", [n])
            run_now(transaction.keep())
        if new:
            run_now(transaction.commit([claim(n) for n in new], [b""] * len(new), [row(n) for n in new]))
    finally:
        run_now(transaction.end())
lost = 0
for at in range(0, 300, 5):
    for numbers in [range(at, at + 5)], [[n] for n in range(at, at + 5)]:
        try:
            for some in numbers:
                burst(some)
            break
        except TransactionLostError as error:
            assert error.reason in ("claimed", "lock"), error
            lost += 1
print(lost)
"""


def test_processes_with_the_same_events_do_each_once(desk: Desk) -> None:
    arguments = [sys.executable, "-c", MEMBER, str(desk.path)]
    members = [subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(member.communicate(timeout=120)[1], member.returncode) for member in members]

    assert [code for _, code in ended] == [0, 0], ended
    assert sorted(desk.entries()) == list(range(300))
    outbox = desk.store.outbox(GROUP)
    assert sorted(ids(outbox.due(range(16), 1000))) == sorted(f"e{number}" for number in range(300))
    outbox.close()


def test_claims_of_another_handler_or_run_are_other_claims(desk: Desk) -> None:
    desk.store.claim([claim(1)])

    assert desk.burst(write("a"), claims=[Claim("another", "e1"), Claim("book-payment", "e1", "run-7")]) == [None]
