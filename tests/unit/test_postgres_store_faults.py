"""What does the PostgreSQL store say when its server is not as it should be, does it come back by itself, and does it leave anything
half-done?"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import psutil
import psycopg
import pytest
from psycopg_pool import ConnectionPool

from choreo import failpoint
from choreo.errors import StateError, StoreError
from choreo.storage.postgres import SCHEMA_VERSION, PostgresStore
from choreo.storage.postgres_sessions import Row, Statement
from choreo.store import Claim
from tests.support import guard
from tests.support.kafka_jars import ROOT
from tests.support.postgres import PostgresServer

CLAIM = Claim("charge-card", "e-1")
OTHER = Claim("charge-card", "e-2")
DEADLINE_S = 20.0
SOON_S = 0.1
"""For how long the stores here wait for a lock."""
SECRET = "s3cret-of-payments"


@pytest.fixture
def database(postgres: PostgresServer) -> str:
    """A database of this test alone, with choreo's tables."""
    name = postgres.new_database()
    PostgresStore(postgres.conninfo(name)).apply_schema()
    return name


@pytest.fixture
def make(postgres: PostgresServer, database: str) -> Iterator[Callable[[], PostgresStore]]:
    """Makes open stores that are soon tired of waiting for a lock."""
    made: list[PostgresStore] = []

    def make_one() -> PostgresStore:
        store = PostgresStore(postgres.conninfo(database), lock_timeout_s=SOON_S)
        store.open("payments")
        made.append(store)
        return store

    yield make_one
    for store in made:
        store.close()


@pytest.fixture
def store(make: Callable[[], PostgresStore]) -> PostgresStore:
    return make()


@pytest.fixture
def admin(postgres: PostgresServer, database: str) -> Iterator[psycopg.Connection]:
    """Somebody else in the database; every statement commits unless they say BEGIN."""
    with closing(psycopg.connect(postgres.conninfo(database), autocommit=True)) as connection:
        yield connection


def claimed(postgres: PostgresServer, database: str) -> list[str]:
    return [row[0] for row in postgres.execute("SELECT event_id FROM choreo.choreo_claims ORDER BY 1", database=database)]


def refusal(store: PostgresStore) -> StoreError:
    """What opening it raises."""
    with pytest.raises(StoreError) as refused:
        store.open("payments")
    with pytest.raises(StoreError, match="not open"):
        store.lookup([CLAIM])
    return refused.value


def until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {DEADLINE_S:g} s"
        time.sleep(0.01)


def waiting_for_a_lock(postgres: PostgresServer, database: str) -> list[int]:
    """The process ids of those sessions."""
    rows = postgres.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", database)
    return [pid for (pid,) in rows]


# ---- opening ------------------------------------------------------------------------------------------------------------


def test_nothing_is_connected_before_it_is_opened(postgres: PostgresServer, database: str) -> None:
    store = PostgresStore(postgres.conninfo(database))

    before = postgres.sessions(database)
    store.open("payments")
    after = [application for _, application, _ in postgres.sessions(database)]
    store.close()

    assert (before, after) == ([], ["choreo payments"])
    until(lambda: postgres.sessions(database) == [])


def test_it_says_where_it_is_and_never_the_password(postgres: PostgresServer, database: str) -> None:
    store = PostgresStore(postgres.conninfo(database, password=SECRET))

    before = store.describe()
    store.open("payments")
    after = store.describe()
    store.close()

    assert before == f"PostgreSQL 127.0.0.1:{postgres.port}/{database}, schema choreo"
    version = postgres.execute("SHOW server_version")[0][0].partition(".")[0]
    assert after == f"PostgreSQL {version} 127.0.0.1:{postgres.port}/{database}, schema choreo v{SCHEMA_VERSION}"
    assert SECRET not in repr(store)


def test_without_tables_it_says_who_makes_them(postgres: PostgresServer) -> None:
    database = postgres.new_database()

    error = refusal(PostgresStore(postgres.conninfo(database)))

    assert not error.retriable
    assert f"it has no tables of choreo, this choreo needs version {SCHEMA_VERSION}; run: choreo store apply MODULE:NAME" in str(error)
    until(lambda: postgres.sessions(database) == [])


def test_tables_that_are_too_old_are_refused_for_good(postgres: PostgresServer, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("choreo.storage.postgres.SCHEMA_VERSION", SCHEMA_VERSION + 1)

    error = refusal(PostgresStore(postgres.conninfo(database)))

    assert not error.retriable
    assert f"its tables are of version {SCHEMA_VERSION}, this choreo needs version {SCHEMA_VERSION + 1}; run: choreo store apply" in str(
        error
    )


def test_tables_that_are_too_new_are_refused_for_good(postgres: PostgresServer, database: str) -> None:
    postgres.execute("INSERT INTO choreo.choreo_schema (version) VALUES (%s)", SCHEMA_VERSION + 1, database=database)

    error = refusal(PostgresStore(postgres.conninfo(database)))

    assert not error.retriable
    assert f"its tables are of version {SCHEMA_VERSION + 1}, this choreo knows {SCHEMA_VERSION}; a newer choreo made them" in str(error)


@pytest.fixture
def role(postgres: PostgresServer) -> Iterator[str]:
    """A role without any rights, whose password is SECRET."""
    postgres.execute(f"CREATE ROLE payments LOGIN PASSWORD '{SECRET}'")
    yield "payments"
    for (name,) in postgres.execute("SELECT datname FROM pg_database WHERE datallowconn"):
        postgres.execute("DROP OWNED BY payments", database=name)
    postgres.execute("DROP ROLE payments")


def test_a_wrong_password_is_refused_for_good_and_not_shown(postgres: PostgresServer, database: str, role: str) -> None:
    error = refusal(PostgresStore(postgres.conninfo(database, user=role, password="wr0ng-" + SECRET)))

    assert not error.retriable
    assert 'password authentication failed for user "payments"; correct user and password' in str(error)
    assert SECRET not in str(error) + repr(error) + str(error.__cause__)


@pytest.mark.parametrize(
    ("prepare", "user", "advice"),
    [
        ("SELECT 1", "nobody_knows", "correct user and password"),
        ("CREATE ROLE shut_out LOGIN", "shut_out", "let this host and role in (pg_hba.conf on the server)"),
        ("CREATE ROLE no_login PASSWORD 'x'", "no_login", "create the role with LOGIN, or name another one"),
    ],
)
def test_who_may_not_log_in_is_refused_for_good(postgres: PostgresServer, database: str, prepare: str, user: str, advice: str) -> None:
    postgres.execute(prepare)

    error = refusal(PostgresStore(postgres.conninfo(database, user=user, password="x")))
    postgres.execute(f"DROP ROLE IF EXISTS {user}")

    assert not error.retriable
    assert advice in str(error)


def test_no_password_is_refused_for_good(postgres: PostgresServer, database: str, role: str) -> None:
    error = refusal(PostgresStore(postgres.conninfo(database, user=role)))

    assert not error.retriable
    assert "no password supplied; correct user and password" in str(error)


def test_a_missing_database_is_refused_for_good(postgres: PostgresServer) -> None:
    error = refusal(PostgresStore(postgres.conninfo("nowhere")))

    assert not error.retriable
    assert 'database "nowhere" does not exist; create the database, or name another one' in str(error)


def test_a_database_without_the_right_to_connect_is_refused_for_good(postgres: PostgresServer, database: str, role: str) -> None:
    postgres.execute(f"REVOKE CONNECT ON DATABASE {database} FROM PUBLIC")

    error = refusal(PostgresStore(postgres.conninfo(database, user=role, password=SECRET)))

    assert not error.retriable
    assert "GRANT CONNECT ON DATABASE ... TO ..." in str(error)


def test_encryption_that_the_server_has_not_is_refused_for_good(postgres: PostgresServer, database: str) -> None:
    error = refusal(PostgresStore(postgres.conninfo(database) + "?sslmode=require"))

    assert not error.retriable
    assert "server does not support SSL, but SSL was required; set sslmode" in str(error)


def test_a_role_that_may_not_enter_the_schema_is_told_what_to_grant(postgres: PostgresServer, database: str, role: str) -> None:
    error = refusal(PostgresStore(postgres.conninfo(database, user=role, password=SECRET)))

    assert not error.retriable
    assert 'permission denied for schema choreo; its owner can allow it: GRANT USAGE ON SCHEMA "choreo" TO ...' in str(error)


def test_a_right_that_is_missing_is_found_at_the_start_and_not_at_the_first_claim(
    postgres: PostgresServer, database: str, role: str
) -> None:
    grant = f"GRANT USAGE ON SCHEMA choreo TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA choreo TO {role}"
    postgres.execute(grant, database=database)
    conninfo = postgres.conninfo(database, user=role, password=SECRET)

    error = refusal(PostgresStore(conninfo))
    postgres.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA choreo TO {role}", database=database)
    store = PostgresStore(conninfo)
    store.open("payments")
    already = store.claim([CLAIM])
    deleted = store.delete_older(0.0, 10)
    store.close()

    assert not error.retriable
    assert "this role may not DELETE, INSERT, UPDATE; its owner can allow it: GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES" in str(
        error
    )
    assert (already, deleted) == (set(), 1)


def test_a_database_that_cannot_hold_every_id_is_refused_for_good(postgres: PostgresServer) -> None:
    database = postgres.new_database("ENCODING 'LATIN1' TEMPLATE template0")

    error = refusal(PostgresStore(postgres.conninfo(database)))

    assert not error.retriable
    assert "its encoding is LATIN1, the connection's LATIN1; both must be UTF8" in str(error)


def test_a_server_that_is_away_at_the_start_is_worth_another_try(postgres: PostgresServer, database: str) -> None:
    store = PostgresStore(postgres.conninfo(database))
    postgres.stop()

    error = refusal(store)
    postgres.start()
    store.open("payments")
    already = store.claim([CLAIM])
    store.close()

    assert error.retriable
    assert "Connection refused; look whether it runs, and at this address; choreo tries again" in str(error)
    assert already == set()


def test_a_host_nobody_knows_is_worth_another_try() -> None:
    error = refusal(PostgresStore("postgresql://payments@db.invalid/shop"))

    assert error.retriable
    assert "PostgreSQL db.invalid:5432/shop, schema choreo: opening: failed to resolve host 'db.invalid'" in str(error)


def test_too_many_connections_are_worth_another_try(postgres: PostgresServer, database: str, role: str) -> None:
    postgres.execute(f"ALTER ROLE {role} CONNECTION LIMIT 0")

    error = refusal(PostgresStore(postgres.conninfo(database, user=role, password=SECRET)))

    assert error.retriable
    assert "too many connections for role" in str(error)


# ---- the server goes and comes back -------------------------------------------------------------------------------------


def test_a_server_that_was_stopped_is_waited_for_and_found_again(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    store.claim([CLAIM])
    postgres.stop()

    errors = []
    for call in (lambda: store.lookup([CLAIM]), lambda: store.claim([OTHER]), lambda: store.payloads([CLAIM])):
        with pytest.raises(StoreError) as refused:
            call()
        errors.append(refused.value)
    postgres.start()
    found = store.lookup([CLAIM, OTHER])
    already = store.claim([OTHER])

    assert all(error.retriable for error in errors)
    assert f"127.0.0.1:{postgres.port}/{database}, schema choreo v{SCHEMA_VERSION}" not in str(errors[0])
    assert (found, already) == ({CLAIM}, set())
    assert [application for _, application, _ in postgres.sessions(database)] == ["choreo payments"]


def test_a_server_that_crashed_has_what_was_claimed(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    store.claim([CLAIM])
    postgres.stop(signal.SIGQUIT)
    postgres.start()

    found = store.lookup([CLAIM, OTHER])

    assert found == {CLAIM}


def test_a_restart_while_nobody_asks_is_not_noticed(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    store.claim([CLAIM])

    postgres.restart()
    found = store.lookup([CLAIM, OTHER])
    postgres.restart()
    already = store.claim([CLAIM, OTHER])

    assert (found, already) == ({CLAIM}, {CLAIM})


def test_a_session_that_was_ended_while_it_was_idle_is_not_noticed(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    for number in range(5):
        ((ended, _, _),) = postgres.sessions(database)
        postgres.execute("SELECT pg_terminate_backend(%s)", ended)
        until(lambda: postgres.sessions(database) == [])
        assert store.claim([Claim("charge-card", f"e-{number}")]) == set()

    assert claimed(postgres, database) == ["e-0", "e-1", "e-2", "e-3", "e-4"]
    assert len(postgres.sessions(database)) == 1


def test_a_session_that_is_ended_in_the_middle_leaves_nothing_and_no_connection(
    postgres: PostgresServer, database: str, make: Callable[[], PostgresStore], admin: psycopg.Connection
) -> None:
    store = make()
    admin.execute("BEGIN")
    admin.execute("INSERT INTO choreo.choreo_claims VALUES ('payments', 'charge-card', 'e-2', '', now(), '')")
    patient = PostgresStore(postgres.conninfo(database), lock_timeout_s=DEADLINE_S)
    patient.open("payments")

    with ThreadPoolExecutor(1) as threads:
        claiming = threads.submit(patient.claim, [CLAIM, OTHER])
        until(lambda: waiting_for_a_lock(postgres, database) != [])
        (ended,) = waiting_for_a_lock(postgres, database)
        postgres.execute("SELECT pg_terminate_backend(%s)", ended)
        # On a new connection it waits once more.
        until(lambda: waiting_for_a_lock(postgres, database) not in ([], [ended]))
        meanwhile = store.lookup([CLAIM, OTHER])
        admin.execute("COMMIT")
        already = claiming.result(DEADLINE_S)
    patient.close()

    assert (meanwhile, already) == (set(), {OTHER})
    assert claimed(postgres, database) == ["e-1", "e-2"]
    until(lambda: len(postgres.sessions(database)) == 2)  # `store` and `admin`


def test_failures_leave_no_connections_behind(
    postgres: PostgresServer, database: str, store: PostgresStore, admin: psycopg.Connection
) -> None:
    admin.execute("ALTER TABLE choreo.choreo_claims RENAME TO elsewhere")

    for _ in range(20):
        with pytest.raises(StoreError):
            store.lookup([CLAIM])
        with pytest.raises(StoreError):
            store.claim([CLAIM])
    admin.execute("ALTER TABLE choreo.elsewhere RENAME TO choreo_claims")
    already = store.claim([CLAIM])

    assert already == set()
    assert sorted((application, state) for _, application, state in postgres.sessions(database)) == [
        ("", "idle"),
        ("choreo payments", "idle"),
    ]


# ---- somebody is in the way ---------------------------------------------------------------------------------------------


def test_a_lock_is_waited_for_and_then_said_to_be_worth_another_try(
    postgres: PostgresServer, database: str, store: PostgresStore, admin: psycopg.Connection
) -> None:
    admin.execute("BEGIN")
    admin.execute("INSERT INTO choreo.choreo_claims VALUES ('payments', 'charge-card', 'e-2', '', now(), '')")

    with pytest.raises(StoreError) as refused:
        store.claim([CLAIM, OTHER])
    found_meanwhile = store.lookup([CLAIM, OTHER])
    admin.execute("ROLLBACK")
    already = store.claim([CLAIM, OTHER])

    assert refused.value.retriable
    assert "writing claims: canceling statement due to lock timeout; another session holds a lock on it" in str(refused.value)
    assert (found_meanwhile, already) == (set(), set())


def test_a_locked_table_holds_nobody_for_ever(store: PostgresStore, admin: psycopg.Connection) -> None:
    admin.execute("BEGIN")
    admin.execute("LOCK TABLE choreo.choreo_claims IN ACCESS EXCLUSIVE MODE")

    with pytest.raises(StoreError) as refused:
        store.lookup([CLAIM])
    admin.execute("ROLLBACK")

    assert refused.value.retriable
    assert "looking claims up: canceling statement due to lock timeout" in str(refused.value)


def test_a_claim_that_another_member_is_just_making_is_told_as_made(
    postgres: PostgresServer, database: str, store: PostgresStore, admin: psycopg.Connection
) -> None:
    admin.execute("BEGIN")
    admin.execute("INSERT INTO choreo.choreo_claims VALUES ('payments', 'charge-card', 'e-2', '', now(), 'theirs')")
    patient = PostgresStore(postgres.conninfo(database), lock_timeout_s=DEADLINE_S)
    patient.open("payments")

    with ThreadPoolExecutor(1) as threads:
        claiming = threads.submit(patient.claim, [CLAIM, OTHER], [b"ours", b"ours"])
        until(lambda: waiting_for_a_lock(postgres, database) != [])
        admin.execute("COMMIT")
        already = claiming.result(DEADLINE_S)
    patient.close()

    assert already == {OTHER}
    assert store.payloads([CLAIM, OTHER]) == {CLAIM: b"ours", OTHER: b"theirs"}


def test_a_deadlock_is_worth_another_try_and_leaves_nothing_half_written(
    postgres: PostgresServer, database: str, admin: psycopg.Connection
) -> None:
    # Not choreo's members, which claim in one order; somebody who doesn't. Who waits last finds the deadlock: the store, which is
    # held at e-2 until `admin` waits for e-1.
    insert = "INSERT INTO choreo.choreo_claims VALUES ('payments', 'charge-card', %s, '', now(), '')"
    third = Claim("charge-card", "e-3")
    store = PostgresStore(postgres.conninfo(database), lock_timeout_s=DEADLINE_S)
    store.open("payments")
    with closing(psycopg.connect(postgres.conninfo(database))) as holder, ThreadPoolExecutor(2) as threads:
        holder.execute(insert, ["e-2"])
        admin.execute("SET deadlock_timeout = '60s'; BEGIN")
        admin.execute(insert, ["e-3"])
        claiming = threads.submit(store.claim, [CLAIM, OTHER, third])
        until(lambda: len(waiting_for_a_lock(postgres, database)) == 1)
        inserting = threads.submit(admin.execute, insert, ["e-1"])
        until(lambda: len(waiting_for_a_lock(postgres, database)) == 2)
        holder.rollback()
        with pytest.raises(StoreError) as refused:
            claiming.result(DEADLINE_S)
        inserting.result(DEADLINE_S)
    admin.execute("ROLLBACK")
    already = store.claim([CLAIM, OTHER, third])
    store.close()

    assert refused.value.retriable
    assert "deadlock detected; another transaction was in its way; choreo tries again" in str(refused.value)
    assert already == set()


def test_members_that_claim_the_same_in_opposite_order_never_deadlock(make: Callable[[], PostgresStore], admin: psycopg.Connection) -> None:
    admin.execute("ALTER DATABASE " + admin.info.dbname + " SET deadlock_timeout = '10ms'")
    claims = [Claim("charge-card", f"e-{number:04}") for number in range(600)]
    stores = [PostgresStore(admin.info.dsn, lock_timeout_s=DEADLINE_S) for _ in range(3)]
    together = threading.Barrier(len(stores))

    def claim_all(store: PostgresStore, order: Sequence[Claim]) -> int:
        store.open("payments")
        together.wait(DEADLINE_S)
        return len(order) - len(store.claim(order))

    with ThreadPoolExecutor(len(stores)) as threads:
        orders = [claims, claims[::-1], claims[300:] + claims[:300]]
        new = list(threads.map(claim_all, stores, orders))
    for store in stores:
        store.close()

    assert sum(new) == len(claims)


STOPS_IN_THE_MIDDLE = """
import sys
from choreo.storage.postgres import PostgresStore
from choreo.store import Claim
store = PostgresStore(sys.argv[1], lock_timeout_s=0.1)
store.open("payments")
store.claim([Claim("charge-card", "e-1")])
"""


def test_a_member_that_is_stopped_in_the_middle_does_not_hold_its_locks_for_ever(
    postgres: PostgresServer, database: str, store: PostgresStore
) -> None:
    environment = {**os.environ, "CHOREO_FAILPOINT": "in_store_tx=stop", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", STOPS_IN_THE_MIDDLE, postgres.conninfo(database)], env=environment) as stopped:
        guard.watch(stopped.pid)
        try:
            until(lambda: psutil.Process(stopped.pid).status() == psutil.STATUS_STOPPED)

            with pytest.raises(StoreError) as refused:
                store.claim([CLAIM])
            until(lambda: not any(state == "idle in transaction" for _, _, state in postgres.sessions(database)))
            already = store.claim([CLAIM])
        finally:
            stopped.kill()

    assert refused.value.retriable
    assert already == set()


# ---- the server cannot --------------------------------------------------------------------------------------------------


def test_a_missing_table_is_refused_for_good(store: PostgresStore, admin: psycopg.Connection) -> None:
    admin.execute("DROP TABLE choreo.choreo_claims")

    errors = []
    for call in (lambda: store.lookup([CLAIM]), lambda: store.claim([CLAIM]), lambda: store.delete_older(0.0, 1)):
        with pytest.raises(StoreError) as refused:
            call()
        errors.append(refused.value)

    assert not any(error.retriable for error in errors)
    assert 'relation "choreo.choreo_claims" does not exist; its tables are not as they should be; make them: choreo store apply' in str(
        errors[0]
    )


def test_a_read_only_database_is_worth_another_try(postgres: PostgresServer, database: str, store: PostgresStore) -> None:
    postgres.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    postgres.restart()

    found = store.lookup([CLAIM])
    with pytest.raises(StoreError) as refused:
        store.claim([CLAIM])
    postgres.execute(f"ALTER DATABASE {database} RESET default_transaction_read_only")
    already = store.claim([CLAIM])  # on a new connection

    assert refused.value.retriable
    assert "it is a replica, or was set to read-only" in str(refused.value)
    assert (found, already) == (set(), set())


def test_a_primary_that_became_a_replica_is_left_as_soon_as_there_is_another_one(
    postgres: PostgresServer, database: str, store: PostgresStore
) -> None:
    store.claim([CLAIM])
    postgres.stop()
    (postgres.data / "standby.signal").touch()
    postgres.start()

    found = store.lookup([CLAIM, OTHER])
    with pytest.raises(StoreError) as refused:
        store.claim([OTHER])
    postgres.stop()
    (postgres.data / "standby.signal").unlink()
    postgres.start()
    already = store.claim([CLAIM, OTHER])

    assert refused.value.retriable
    assert "name the primary, or add target_session_attrs=read-write" in str(refused.value)
    assert (found, already) == ({CLAIM}, {CLAIM})


@pytest.mark.parametrize(
    ("code", "retriable", "advice"),
    [
        ("53100", True, "the server's disk is full; make room, choreo tries again"),
        ("53200", True, "no memory left"),
        ("53400", True, "short of something"),
        ("40001", True, "another transaction was in its way"),
        ("57014", True, "somebody cancelled it"),
        ("57P03", True, "stopping or starting"),
        ("58030", True, "disk failed to read or write"),
        ("08006", True, "the connection was lost"),
        ("42501", False, 'GRANT USAGE ON SCHEMA "choreo" TO'),
        ("XX001", False, "its data is damaged; restore a backup"),
        ("XX002", False, 'REINDEX TABLE "choreo".choreo_claims'),
        ("22012", False, "this is no error choreo knows; look at the server's log"),
    ],
)
def test_what_the_server_says_is_judged_and_nothing_is_half_written(
    postgres: PostgresServer,
    database: str,
    store: PostgresStore,
    admin: psycopg.Connection,
    code: str,
    retriable: bool,
    advice: str,
) -> None:
    admin.execute(
        "CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF NEW.event_id = 'e-2' THEN RAISE EXCEPTION 'as asked' USING ERRCODE = '{code}'; END IF; RETURN NEW; END $$;"
        " CREATE TRIGGER fails BEFORE INSERT ON choreo.choreo_claims FOR EACH ROW EXECUTE FUNCTION fail()"
    )

    with pytest.raises(StoreError) as refused:
        store.claim([CLAIM, OTHER])
    left = claimed(postgres, database)
    admin.execute("DROP TRIGGER fails ON choreo.choreo_claims")
    already = store.claim([CLAIM, OTHER])

    assert refused.value.retriable == retriable
    assert "writing claims: as asked; " in str(refused.value)
    assert advice in str(refused.value)
    assert "\n" not in str(refused.value)
    assert (left, already) == ([], set())


@pytest.mark.parametrize(("set_to", "used"), [("off", "on"), ("remote_apply", "remote_apply"), ("local", "local")])
def test_a_claim_is_durable_when_it_is_told_whatever_the_database_is_set_to(
    postgres: PostgresServer, database: str, set_to: str, used: str
) -> None:
    postgres.execute(f"ALTER DATABASE {database} SET synchronous_commit = {set_to}")
    store = PostgresStore(postgres.conninfo(database))
    store.open("payments")

    actual = store._sessions.write("looking", [("SELECT current_setting('synchronous_commit')", [])])
    store.close()

    assert actual == [[(used,)]]


# ---- COMMIT without an answer -------------------------------------------------------------------------------------------


class Cut:
    """A way to the server that is cut once it has carried out a COMMIT and before its answer is through."""

    def __init__(self, port: int) -> None:
        self._server = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._server))
            threading.Thread(target=self._up, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        down = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
        down.start()
        while data := _received(client):
            if self.cuts and b"COMMIT\0" in data:
                self.cuts -= 1
                client.shutdown(socket.SHUT_RDWR)
            server.sendall(data)
        # The server reads what was sent, COMMIT too, and then the end.
        server.shutdown(socket.SHUT_WR)
        down.join(DEADLINE_S)
        client.close()
        server.close()

    def close(self) -> None:
        self._listener.close()


def _received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65_536)
    except OSError:
        return b""


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    while data := _received(source):
        try:
            target.sendall(data)
        except OSError:
            pass


@contextmanager
def cut_off(postgres: PostgresServer, database: str) -> Iterator[tuple[PostgresStore, Cut]]:
    """A store behind a `Cut`."""
    with closing(Cut(postgres.port)) as cut:
        store = PostgresStore(postgres.conninfo(database, port=cut.port))
        store.open("payments")
        yield store, cut
        store.close()


def test_claims_whose_commit_was_not_answered_are_its_own_when_it_asks_again(
    postgres: PostgresServer, database: str, make: Callable[[], PostgresStore]
) -> None:
    theirs = Claim("charge-card", "e-3")
    make().claim([theirs])
    with cut_off(postgres, database) as (store, cut):
        cut.cuts = 1

        with pytest.raises(StoreError) as refused:
            store.claim([CLAIM, OTHER, theirs])
        until(lambda: claimed(postgres, database) == ["e-1", "e-2", "e-3"])
        already = store.claim([CLAIM, OTHER, theirs])
        once_more = store.claim([CLAIM, OTHER, theirs])

    assert refused.value.retriable
    assert "writing claims: COMMIT was sent and not answered" in str(refused.value)
    assert already == {theirs}
    assert once_more == {CLAIM, OTHER, theirs}


def test_a_second_commit_without_an_answer_changes_nothing(postgres: PostgresServer, database: str) -> None:
    with cut_off(postgres, database) as (store, cut):
        cut.cuts = 2
        for _ in range(2):
            with pytest.raises(StoreError):
                store.claim([CLAIM, OTHER])
            until(lambda: claimed(postgres, database) == ["e-1", "e-2"])

        already = store.claim([CLAIM, OTHER])

    assert (already, cut.cuts) == (set(), 0)


def test_what_another_member_claimed_in_place_of_a_lost_commit_is_told(
    postgres: PostgresServer, database: str, make: Callable[[], PostgresStore]
) -> None:
    other_member = make()
    with cut_off(postgres, database) as (store, cut):
        cut.cuts = 1
        with pytest.raises(StoreError):
            store.claim([CLAIM, OTHER])
        until(lambda: claimed(postgres, database) == ["e-1", "e-2"])
        # As if the server had lost it: a failover to a replica that hadn't got it yet.
        postgres.execute("DELETE FROM choreo.choreo_claims WHERE event_id = 'e-2'", database=database)
        other_member.claim([OTHER])

        already = store.claim([CLAIM, OTHER])

    assert already == {OTHER}


# ---- the user's pool ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pool(postgres: PostgresServer, database: str) -> Iterator[ConnectionPool]:
    with ConnectionPool(postgres.conninfo(database), min_size=1, max_size=2, timeout=0.2, open=True) as pool:
        pool.wait(DEADLINE_S)
        yield pool


def test_a_pool_is_used_and_left_as_it_was(pool: ConnectionPool, admin: psycopg.Connection) -> None:
    store = PostgresStore(pool)
    store.open("payments")
    store.claim([CLAIM])
    admin.execute("ALTER TABLE choreo.choreo_claims RENAME TO elsewhere")
    for _ in range(5):
        with pytest.raises(StoreError):
            store.claim([OTHER])
    admin.execute("ALTER TABLE choreo.elsewhere RENAME TO choreo_claims")
    store.close()

    with pool.connection() as connection:
        found = connection.execute("SELECT event_id FROM choreo.choreo_claims").fetchall()
        in_autocommit = connection.autocommit
    stats = pool.get_stats()

    assert (found, in_autocommit, pool.closed) == ([("e-1",)], False, False)
    assert stats["pool_available"] == stats["pool_size"]


def test_what_a_pool_sets_up_for_itself_does_not_count_for_claims(postgres: PostgresServer, database: str) -> None:
    complaints: list[str | None] = []

    def configure(connection: psycopg.Connection) -> None:
        connection.add_notice_handler(lambda notice: complaints.append(notice.message_primary))
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.execute("SET DateStyle = 'German'")
        connection.commit()

    with ConnectionPool(postgres.conninfo(database), min_size=1, configure=configure, open=True) as pool:
        store = PostgresStore(pool)
        store.open("payments")
        isolation = store._sessions.write("looking", [("SELECT current_setting('transaction_isolation')", [])])
        already = [store.claim([CLAIM]), store.claim([CLAIM])]

    assert isolation == [[("read committed",)]]
    assert already == [set(), {CLAIM}]
    assert complaints == []


def test_a_pool_without_a_free_connection_is_worth_another_try(pool: ConnectionPool) -> None:
    store = PostgresStore(pool)
    store.open("payments")

    with pool.connection(), pool.connection():
        with pytest.raises(StoreError) as refused:
            store.lookup([CLAIM])
    found = store.lookup([CLAIM])

    assert refused.value.retriable
    assert "all its connections are in use, or the server is away; raise its max_size" in str(refused.value)
    assert found == set()


def test_a_pool_whose_server_was_restarted_is_used_again(postgres: PostgresServer, pool: ConnectionPool) -> None:
    store = PostgresStore(pool)
    store.open("payments")
    store.claim([CLAIM])
    postgres.restart()

    found: list[set[Claim]] = []

    def asked() -> bool:
        try:
            found.append(store.lookup([CLAIM]))
        except StoreError as error:
            assert error.retriable
        return bool(found)

    until(asked)

    assert found == [{CLAIM}]


@pytest.mark.parametrize("opened_before", [False, True])
def test_a_pool_that_is_not_open_is_refused_for_good(postgres: PostgresServer, database: str, opened_before: bool) -> None:
    pool = ConnectionPool(postgres.conninfo(database), min_size=1, open=False)
    if opened_before:
        pool.open()
        pool.close()

    error = refusal(PostgresStore(pool))

    assert not error.retriable
    assert "open the pool before the service and close it after: Service(..., resources=[pool])" in str(error)
    assert f"PostgreSQL of the pool {pool.name}, schema choreo" in str(error)


# ---- when the process dies ----------------------------------------------------------------------------------------------

CLAIMS_AND_DIES = """
import sys
from choreo.storage.postgres import PostgresStore
from choreo.store import Claim
store = PostgresStore(sys.argv[1])
store.open("payments")
store.claim([Claim("charge-card", f"e-{number}") for number in range(700)])
print("alive")
"""


@pytest.mark.parametrize(("point", "count"), [("before_store_tx", 0), ("in_store_tx", 0), ("after_store_commit", 700)])
def test_claims_are_all_there_after_a_kill_or_none_is(
    postgres: PostgresServer, database: str, store: PostgresStore, point: str, count: int
) -> None:
    environment = {**os.environ, "CHOREO_FAILPOINT": f"{point}=kill9", "PYTHONPATH": str(ROOT)}

    dead = subprocess.run(
        [sys.executable, "-c", CLAIMS_AND_DIES, postgres.conninfo(database)], env=environment, capture_output=True, text=True, timeout=60
    )
    found = store.lookup([Claim("charge-card", f"e-{number}") for number in range(700)])

    assert (dead.returncode, dead.stdout) == (-9, ""), dead.stderr
    assert len(found) == count


def test_after_any_failure_the_next_claim_goes_through(
    postgres: PostgresServer, database: str, store: PostgresStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failpoint, "ACTIVE", True)
    monkeypatch.setattr(failpoint, "_points", failpoint._parse("in_store_tx=raise"))
    with pytest.raises(StateError):
        store.claim([CLAIM])

    after_failure = claimed(postgres, database)
    already = store.claim([CLAIM])

    assert (after_failure, already) == ([], set())
    assert claimed(postgres, database) == ["e-1"]


# ---- speed --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("analyzed", [True, False])
def test_looking_500_claims_up_searches_the_key_and_never_scans(store: PostgresStore, admin: psycopg.Connection, analyzed: bool) -> None:
    fill(admin, analyzed=analyzed)

    plan = explained(admin, *store._look_up("payments", [Claim("charge-card", f"e-{number}") for number in range(500)]))

    assert "Index Scan using choreo_claims_pkey on choreo_claims" in plan
    assert "Seq Scan" not in plan


@pytest.mark.parametrize("analyzed", [True, False])
def test_deleting_old_claims_searches_by_age_and_never_sorts(
    store: PostgresStore, admin: psycopg.Connection, analyzed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(admin, analyzed=analyzed)
    ran: list[Statement] = []
    write = store._sessions.write

    def remember(doing: str, statements: Sequence[Statement]) -> list[list[Row]]:
        ran.extend(statements)
        return write(doing, statements)

    monkeypatch.setattr(store._sessions, "write", remember)

    deleted = store.delete_older(10_000.0, 1_000)
    with admin.transaction():
        for sql, parameters in ran[:-1]:
            admin.execute(sql.encode(), parameters)
        plan = explained(admin, *ran[-1])

    assert "Index Scan using choreo_claims_by_age on choreo_claims" in plan
    assert "Tid Scan on choreo_claims" in plan
    assert "Sort" not in plan
    assert deleted == 1_000


def fill(admin: psycopg.Connection, *, analyzed: bool) -> None:
    """50,000 claims, one a second."""
    admin.execute(
        "INSERT INTO choreo.choreo_claims SELECT 'payments', 'charge-card', 'e-' || n, '', now() - n * '1 s'::interval, ''"
        " FROM generate_series(1, 50000) AS n"
    )
    if analyzed:
        admin.execute("ANALYZE choreo.choreo_claims")


def explained(admin: psycopg.Connection, sql: str, parameters: Sequence[object]) -> str:
    return "\n".join(row[0] for row in admin.execute(b"EXPLAIN " + sql.encode(), parameters, prepare=False))
