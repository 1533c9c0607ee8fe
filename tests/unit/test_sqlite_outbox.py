"""Does the outbox in a SQLite file keep its rows, their order and their file apart from what callers and clocks do? Beside the conformance
suite, what only SQLite can do."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from choreo.errors import ConfigurationError, StoreError
from choreo.record import Outgoing
from choreo.storage import sqlite_outbox
from choreo.storage.sqlite import SqliteStore
from choreo.storage.sqlite_outbox import SqliteOutbox
from choreo.store import SHARDS, OutboxRow, shard_of
from tests.unit.sqlite_desk import GROUP, Desk, ids, row, write

ALL = range(SHARDS)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.close()


@pytest.fixture
def outbox(desk: Desk) -> Iterator[SqliteOutbox]:
    outbox = desk.store.outbox(GROUP)
    yield outbox
    outbox.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """This host's clock, which the test sets (seconds after the start)."""
    now = [1_700_000_000_000]
    monkeypatch.setattr(sqlite_outbox, "epoch_ms", lambda: now[0])

    def at(seconds: float) -> None:
        now[0] = 1_700_000_000_000 + round(seconds * 1000)

    return at


def add(desk: Desk, *rows: OutboxRow) -> None:
    with closing(desk.connect()) as connection, connection:
        desk.store.add(connection, GROUP, rows)


# ---- add ----------------------------------------------------------------------------------------------------------------


def test_a_row_is_there_with_the_callers_commit_and_not_after_its_rollback(desk: Desk, outbox: SqliteOutbox) -> None:
    with closing(desk.connect()) as connection:
        desk.store.add(connection, GROUP, [row(1)])
        assert connection.in_transaction, "the INSERT has begun it"
        connection.rollback()
        desk.store.add(connection, GROUP, [row(2), row(3)])
        connection.execute("INSERT INTO entries VALUES ('a')")
        assert ids(outbox.due(ALL, 10)) == []
        connection.commit()

    assert (ids(outbox.due(ALL, 10)), desk.entries()) == (["e2", "e3"], ["a"])


def test_a_connection_in_autocommit_is_refused_until_it_has_begun(desk: Desk, outbox: SqliteOutbox) -> None:
    class FromPython312(sqlite3.Connection):
        autocommit = True

    for settings_ in ({"isolation_level": None}, {"factory": FromPython312}):
        with closing(desk.connect(**settings_)) as connection:
            with pytest.raises(ConfigurationError, match="in autocommit"):
                desk.store.add(connection, GROUP, [row(1)])
            connection.execute("BEGIN")
            desk.store.add(connection, GROUP, [row(2)])
            connection.execute("COMMIT")

    assert ids(outbox.due(ALL, 10)) == ["e2", "e2"]


def test_a_connection_to_anything_else_is_refused(desk: Desk, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    for path in (other, ":memory:", ""):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("ATTACH ? AS choreos", [str(desk.path)])
            with pytest.raises(ConfigurationError, match=r"other\.db|in memory"):
                desk.store.add(connection, GROUP, [row(1)])
    with pytest.raises(ConfigurationError, match="not str"):
        desk.store.add(str(desk.path), GROUP, [row(1)])
    with closing(desk.connect()) as connection:
        desk.path.rename(tmp_path / "moved.db")
        with pytest.raises(ConfigurationError):
            desk.store.add(connection, GROUP, [row(1)])
        (tmp_path / "moved.db").rename(desk.path)


def test_what_the_caller_made_of_its_connection_does_not_matter(
    desk: Desk, outbox: SqliteOutbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OwnCursors(sqlite3.Connection):
        def cursor(self, factory: Any = None) -> Any:
            return super().cursor(Upside)

    class Upside(sqlite3.Cursor):
        def execute(self, *_: Any) -> Any:
            raise AssertionError("not asked for")

    ways: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (desk.path, {}, {"text_factory": bytes, "row_factory": sqlite3.Row}),
        ("alias.db", {}, {"text_factory": lambda _: 1 / 0, "row_factory": lambda cursor, row: 1 / 0}),
        ("./shop.db", {"detect_types": sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES}, {}),
        (f"file:{desk.path}?mode=rw", {"uri": True, "factory": OwnCursors}, {}),
    ]
    (tmp_path / "alias.db").symlink_to(desk.path)
    monkeypatch.chdir(tmp_path)
    for number, (path, settings_, factories) in enumerate(ways):
        with closing(sqlite3.connect(path, **settings_)) as connection, connection:
            for name, value in factories.items():
                setattr(connection, name, value)
            desk.store.add(connection, GROUP, [row(number)])
            assert {name: getattr(connection, name) for name in factories} == factories

    assert ids(outbox.due(ALL, 10)) == ["e0", "e1", "e2", "e3"]


def test_a_store_that_is_not_open_adds_too_and_says_it_where_the_tables_are_missing(
    desk: Desk, outbox: SqliteOutbox, tmp_path: Path
) -> None:
    with closing(desk.connect()) as connection, connection:
        SqliteStore(desk.path).add(connection, GROUP, [row(1)])
    assert ids(outbox.due(ALL, 10)) == ["e1"]

    bare = tmp_path / "bare.db"
    with closing(sqlite3.connect(bare)) as connection:
        connection.execute("CREATE TABLE entries (text)")
        with pytest.raises(StoreError, match="has no outbox yet; run the service on it once") as caught:
            SqliteStore(bare).add(connection, GROUP, [row(1)])
    assert not caught.value.retriable
    assert f"open({GROUP!r})" in str(caught.value)


def test_a_file_that_another_has_locked_is_worth_another_try(desk: Desk) -> None:
    with closing(desk.connect(isolation_level=None)) as holder, closing(sqlite3.connect(desk.path, timeout=0.05)) as connection:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="database is locked") as caught:
            desk.store.add(connection, GROUP, [row(1)])
        holder.execute("ROLLBACK")

    assert caught.value.retriable


def test_a_handler_adds_on_its_own_connection_and_to_its_own_file_only(desk: Desk, outbox: SqliteOutbox, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    another = Desk(tmp_path / "b")

    def adds(store: SqliteStore, number: int, *, fails: bool = False) -> Callable[[Any], object]:
        def act(connection: Any) -> None:
            connection.text_factory = bytes
            connection.row_factory = lambda cursor, row: 1 / 0
            store.add(connection, GROUP, [row(number)])
            write(str(number))(connection)
            if fails:
                raise ValueError("the handler's")

        return act

    raised = desk.burst(adds(desk.store, 1), adds(desk.store, 2, fails=True), adds(another.store, 3), rows=[row(4)])

    assert [type(error) for error in raised] == [type(None), ValueError, ConfigurationError]
    assert (ids(outbox.due(ALL, 10)), desk.entries()) == (["e1", "e4"], ["1"])
    another.close()


# ---- rows ---------------------------------------------------------------------------------------------------------------


def test_other_tools_find_what_debezium_names_and_headers_that_they_can_read(desk: Desk) -> None:
    headers = [("choreo-id", b"e1"), ("mine", b"\xff\0"), ("mine", None), ("ß", b"")]
    add(desk, OutboxRow(Outgoing("payments", b"o-\xff", None, headers), "payment.received", "e1"))

    with closing(desk.connect()) as connection:
        found = connection.execute("SELECT id, aggregatetype, aggregateid, type, payload, headers FROM choreo_outbox").fetchall()

    ((*columns, encoded),) = found
    assert columns == ["e1", "payments", b"o-\xff", "payment.received", None]
    assert msgspec.msgpack.decode(encoded) == [["choreo-id", b"e1"], ["mine", b"\xff\0"], ["mine", None], ["ß", b""]]


def test_nothing_is_touched_before_it_is_used(tmp_path: Path) -> None:
    outbox = SqliteStore(tmp_path / "shop.db").outbox(GROUP)
    outbox.close()

    assert list(tmp_path.iterdir()) == []


def test_thousands_are_published_at_once(desk: Desk, outbox: SqliteOutbox) -> None:
    add(desk, *(row(number, b"o-%d" % (number % 7)) for number in range(5_000)))

    outbox.published([stored.seq for stored in outbox.due(ALL, 4_990)])

    assert ids(outbox.due(ALL, 5_000)) == [f"e{number}" for number in range(4_990, 5_000)]


def test_rows_that_are_due_are_found_without_reading_others(desk: Desk, outbox: SqliteOutbox) -> None:
    add(desk, row(1))
    outbox.due(ALL, 1)
    asked: list[str] = []
    connection = outbox._connection()
    connection.set_trace_callback(asked.append)
    outbox.due([1, 2], 5, beside=[("payments", b"o-1")])
    connection.set_trace_callback(None)

    plans = [step[3] for text in asked for step in connection.execute(f"EXPLAIN QUERY PLAN {text}")]

    assert not [step for step in plans if step.startswith(("SCAN", "USE TEMP"))], plans
    assert {step.split()[4] for step in plans if step.startswith("SEARCH")} == {
        "choreo_outbox_due",
        "choreo_outbox_timers",
        "choreo_outbox_aside",
    }


def test_without_a_shard_there_is_nothing(desk: Desk, outbox: SqliteOutbox) -> None:
    add(desk, row(1))

    assert list(outbox.due((), 10)) == []


def test_a_number_is_never_given_twice(desk: Desk, outbox: SqliteOutbox) -> None:
    """A relay that was stopped deletes by number: it must not hit a row that came later."""
    add(desk, row(1), row(2))
    before = [stored.seq for stored in outbox.due(ALL, 10)]
    outbox.published(before)

    add(desk, row(3))

    (stored,) = outbox.due(ALL, 10)
    assert stored.seq > max(before)
    outbox.published(before)
    assert ids(outbox.due(ALL, 10)) == ["e3"]


# ---- clocks -------------------------------------------------------------------------------------------------------------


def test_a_timer_falls_due_by_this_hosts_clock_and_stays_so_when_that_is_set_back(
    desk: Desk, outbox: SqliteOutbox, clock: Callable[[float], None]
) -> None:
    clock(0)
    add(desk, row(1, due=timedelta(seconds=10)), row(2, due=datetime.fromtimestamp(1_700_000_005, UTC)), row(3))
    assert ids(outbox.due(ALL, 10)) == ["e3"]

    clock(9.999)
    add(desk, row(4))
    assert ids(outbox.due(ALL, 10)) == ["e3", "e4", "e2"]
    clock(10)
    assert ids(outbox.due(ALL, 10)) == ["e3", "e4", "e2", "e1"]
    clock(-3600)
    assert ids(outbox.due(ALL, 10)) == ["e3", "e4", "e2", "e1"]
    assert outbox.state().oldest_s == 0.0, "and no age is below zero"


def test_timers_that_no_calendar_reaches_are_kept_and_can_be_listed(desk: Desk, outbox: SqliteOutbox) -> None:
    add(desk, row(1, due=timedelta.max), row(2, due=datetime.max.replace(tzinfo=UTC)), row(3, due=timedelta.min))

    assert ids(outbox.due(ALL, 10)) == ["e3"]
    assert sorted(ids(outbox.waiting(10))) == ["e1", "e2", "e3"]
    assert {stored.due_at.year for stored in outbox.waiting(10) if stored.due_at} == {1, 9999}


def test_a_lease_ends_by_this_hosts_clock(desk: Desk, outbox: SqliteOutbox, clock: Callable[[float], None]) -> None:
    another = desk.store.outbox(GROUP)
    clock(0)
    assert outbox.lease("a", 5) == frozenset(ALL)

    clock(5)
    assert another.lease("b", 5) == frozenset()
    clock(5.001)
    assert another.lease("b", 5) == frozenset(ALL)
    clock(-60)
    assert outbox.lease("a", 5) == frozenset(), "set back, a lease lasts longer: nobody has a shard twice"
    another.close()


# ---- the file -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [True, False])
def test_a_file_that_was_moved_stops_the_relay(desk: Desk, tmp_path: Path, opened: bool) -> None:
    """Its rows would be published, and those that others write to the new file of that name never."""
    outbox = (desk.store if opened else SqliteStore(desk.path)).outbox(GROUP)
    outbox.lease("a", 5)
    desk.path.rename(tmp_path / "elsewhere.db")

    with pytest.raises(StoreError, match="moved, deleted or replaced") as caught:
        outbox.lease("a", 5)

    assert not caught.value.retriable
    outbox.close()
    if opened:
        with pytest.raises(StoreError, match="moved, deleted or replaced"):
            outbox.state()
        assert not desk.path.exists(), "and none is made in its place"
    (tmp_path / "elsewhere.db").rename(desk.path)


@pytest.mark.parametrize("call", ["lease", "published", "set_aside", "retry", "discard"])
def test_while_another_writes_it_is_worth_another_try(desk: Desk, outbox: SqliteOutbox, call: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "lease": lambda: outbox.lease("a", 5),
        "published": lambda: outbox.published([1]),
        "set_aside": lambda: outbox.set_aside(1, "too large"),
        "retry": lambda: outbox.retry([1]),
        "discard": lambda: outbox.discard([1]),
    }
    outbox.state()
    with closing(desk.connect(isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked") as caught:
            calls[call]()
        holder.execute("ROLLBACK")

    assert caught.value.retriable
    calls[call]()


def test_where_the_table_is_gone_it_says_so_and_waiting_is_no_use(desk: Desk, outbox: SqliteOutbox) -> None:
    with closing(desk.connect()) as connection:
        connection.execute("DROP TABLE choreo_outbox")

    with pytest.raises(StoreError, match="no such table: choreo_outbox") as caught:
        outbox.due(ALL, 10)

    assert not caught.value.retriable


# ---- any order of things ------------------------------------------------------------------------------------------------

KEYS = st.sampled_from([None, b"o-1", b"o-2"])
STEPS = st.one_of(
    st.tuples(st.just("add"), KEYS, st.sampled_from([None, 1, 5])),
    st.tuples(st.sampled_from(["published", "aside", "retry", "discard"]), st.integers(0, 3), st.none()),
    st.tuples(st.just("tick"), st.integers(1, 4), st.none()),
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(keys=st.lists(KEYS, min_size=2, max_size=5), steps=st.lists(STEPS, max_size=12), shard=st.integers(0, SHARDS - 1))
def test_any_order_of_things_leaves_what_a_list_would_hold(
    tmp_path_factory: pytest.TempPathFactory, keys: list[Any], steps: list[Any], shard: int
) -> None:
    now_ms = 1_700_000_000_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite_outbox, "epoch_ms", lambda: now_ms)
        desk = Desk(tmp_path_factory.mktemp("outbox"))
        outbox = desk.store.outbox(GROUP)
        in_order: list[OutboxRow] = []
        timers: list[tuple[int, OutboxRow]] = []
        aside: set[str] = set()
        all_steps: list[tuple[str, Any, Any]] = [*(("add", key, None) for key in keys), *steps]
        for number, (what, first, due_s) in enumerate(all_steps):
            waiting = {stored.event_id: stored.seq for stored in outbox.waiting(1000)}
            named = [one.event_id for one in in_order][first : first + 1] if what not in ("add", "tick") else []
            seqs = [waiting[name] for name in named]
            match what:
                case "add":
                    new = row(number, first, due=None if due_s is None else timedelta(seconds=due_s))
                    add(desk, new)
                    if due_s is None:
                        in_order.append(new)
                    else:
                        timers.append((now_ms + due_s * 1000, new))
                case "tick":
                    now_ms += first * 1000
                case "published":
                    outbox.published(seqs)
                    in_order = [one for one in in_order if one.event_id not in named]
                    aside -= set(named)
                case "aside":
                    for seq in seqs:
                        outbox.set_aside(seq, "too large")
                    aside |= set(named)
                case "retry":
                    assert outbox.retry(seqs) == len(aside & set(named))
                    aside -= set(named)
                case "discard":
                    assert outbox.discard(seqs) == len(aside & set(named))
                    in_order = [one for one in in_order if one.event_id not in aside & set(named)]
                    aside -= set(named)
            fell = sorted((timer for timer in timers if timer[0] <= now_ms), key=lambda timer: timer[0])
            timers = [timer for timer in timers if timer not in fell]
            in_order += [timer for _, timer in fell]
            may_go = _may_go(in_order, aside)
            assert ids(outbox.due(ALL, 1000)) == may_go
            of_shard = {one.event_id for one in in_order if shard_of("payments", one.record.key, one.event_id) == shard}
            assert ids(outbox.due([shard], 1000)) == [name for name in may_go if name in of_shard]
            state = outbox.state()
            assert (state.due, state.timers, state.aside) == (len(in_order) - len(aside), len(timers), len(aside))
        outbox.close()
        desk.close()


def _may_go(in_order: list[OutboxRow], aside: set[str]) -> list[str]:
    held: set[bytes | None] = set()
    found = []
    for one in in_order:
        if one.event_id in aside:
            held.add(one.record.key)
        elif one.record.key is None or one.record.key not in held:
            found.append(one.event_id)
    return found
