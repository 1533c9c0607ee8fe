"""Claims in PostgreSQL, the transactions of handlers, and the outbox: each event once among all members that share the database.

Members that claim the same events at once wait for each other and never deadlock, because each claims in the order of the
key; the one that is second is told so. psycopg is imported when a store is made, not with this module: choreo works without it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from choreo import failpoint
from choreo.errors import ConfigurationError, StoreError
from choreo.storage.schema import migrations, still_to_run
from choreo.store import Claim, Migration, OutboxRow, SchemaPlan

if TYPE_CHECKING:
    from psycopg_pool import ConnectionPool

    from choreo.storage.postgres_links import Links
    from choreo.storage.postgres_outbox import PostgresOutbox
    from choreo.storage.postgres_sessions import Execute, Sessions, Statement
    from choreo.storage.postgres_transactions import PostgresTransactions

_MIGRATIONS = migrations("postgres")
SCHEMA_VERSION = _MIGRATIONS[-1].version
_SCHEMA_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")
_Key = tuple[str, str, str]

# LIMIT keeps the loops as they are: for each id one search in the key, never a scan of the claims, whatever the statistics say.
_LOOK_UP = """
SELECT wanted.number, found.payload, found.claimed_at_us
FROM unnest(%b::text[], %b::text[], %b::text[]) WITH ORDINALITY AS wanted (handler, event_id, run, number)
CROSS JOIN LATERAL (
    SELECT payload, (extract(epoch FROM claimed_at) * 1000000)::bigint AS claimed_at_us FROM {schema}.choreo_claims AS claims
    WHERE claims.consumer_group = %b AND claims.handler = wanted.handler AND claims.event_id = wanted.event_id AND claims.run = wanted.run
    LIMIT 1
) AS found
"""
_INSERT = """
INSERT INTO {schema}.choreo_claims (consumer_group, handler, event_id, run, payload)
SELECT %b::text, new.* FROM unnest(%b::text[], %b::text[], %b::text[], %b::bytea[]) AS new
ON CONFLICT DO NOTHING RETURNING handler, event_id, run
"""
# Without statistics PostgreSQL would sort all old claims for each step: 25 ms in place of 1 (seen).
_BY_AGE = """
SELECT set_config('enable_sort', 'off', true), set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true)
"""
# One member at a time: two would wait for each other at every row.
_DELETE = """
WITH gone AS (
    DELETE FROM {schema}.choreo_claims WHERE ctid = ANY (ARRAY (
        SELECT ctid FROM {schema}.choreo_claims
        WHERE consumer_group = %b AND claimed_at <= now() - make_interval(secs => %s)
        AND (SELECT pg_try_advisory_xact_lock(hashtextextended(%b, 0)))
        ORDER BY claimed_at LIMIT %s
    )) RETURNING 1
)
SELECT count(*) FROM gone
"""
_FACTS = """
SELECT current_setting('server_encoding'), current_setting('client_encoding'), to_regclass('{schema}.choreo_schema') IS NOT NULL
"""
_VERSION = "SELECT coalesce(max(version), 0) FROM {schema}.choreo_schema"
_LACKING = """
SELECT DISTINCT privilege FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
CROSS JOIN unnest(ARRAY['claims', 'outbox', 'outbox_leases', 'outbox_relays']) AS ours
WHERE NOT has_table_privilege('{schema}.choreo_' || ours, privilege) ORDER BY 1
"""
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(hashtextextended('choreo store apply {schema}', 0));\n"
_HAS_SCHEMA = "SELECT to_regnamespace('{schema}') IS NOT NULL"
_MAKE_SCHEMA = "CREATE SCHEMA {schema};\n"
_USE_SCHEMA = "SET LOCAL search_path TO {schema};\n"
_RECORD = "INSERT INTO choreo_schema (version) VALUES ({});\n"
_BEFORE = "BEGIN;\n" + _ONE_AT_A_TIME
_AFTER = "\nCOMMIT;\n"


class PostgresStore:
    """See `choreo.store.Store`, `Migrating`, `Transactional`. ``PostgresStore("postgresql://payments@db/shop")`` has connections of its
    own: one for claims, up to four for handlers with psycopg.Connection, four for those with AsyncConnection, one for the outbox.
    ``PostgresStore(pool)``, a psycopg_pool.ConnectionPool, borrows them and never closes the pool; it has none for AsyncConnection.
    `schema` is where its tables are, `lock_timeout_s` how long it waits for another session's lock. Raises ConfigurationError; `open`
    does the I/O.
    """

    def __init__(self, database: str | ConnectionPool[Any], *, schema: str = "choreo", lock_timeout_s: float = 5.0) -> None:
        if not _SCHEMA_NAME.fullmatch(schema):
            raise ConfigurationError(f"PostgresStore: schema={schema!r}; use letters, digits, '_' and '-', at most 63")
        if not 0.001 <= lock_timeout_s <= 3_600:
            raise ConfigurationError(f"PostgresStore: lock_timeout_s={lock_timeout_s}; use 0.001 to 3,600")
        self._sessions = _sessions(database, schema, lock_timeout_s)
        self._database = database
        self._schema = schema
        self._lock_timeout_s = lock_timeout_s
        self._group: str | None = None
        # Claims whose COMMIT was not answered, each with its time (epoch microseconds): those that stand there with it are our own.
        self._in_doubt: dict[Claim, int] = {}

    def open(self, group: str) -> None:
        if self._group is not None:
            return
        self._sessions.name(f"choreo {group}")
        try:
            self._check()
        except BaseException:
            self._sessions.close()
            raise
        self._group = group

    def _check(self) -> None:
        with self._sessions.transaction("opening") as execute:
            version = self._version(execute)
            if version == SCHEMA_VERSION and (lacking := execute(self._sql(_LACKING))):
                raise StoreError(
                    f"{self.describe()}: this role may not {', '.join(privilege for (privilege,) in lacking)}; its owner can allow it:"
                    f' GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{self._schema}" TO ...',
                    retriable=False,
                )
        if version < SCHEMA_VERSION:
            raise StoreError(
                f"{self.describe()}: {_are(version)}, this choreo needs version {SCHEMA_VERSION}; run: choreo store apply MODULE:NAME",
                retriable=False,
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.describe()}: {_are(version)}, this choreo knows {SCHEMA_VERSION}; a newer choreo made them: install that one here",
                retriable=False,
            )

    def _version(self, execute: Execute) -> int:
        """The version of the tables that are there, 0 for none. Raises StoreError for a database that can't hold any id."""
        ((server, client, there),) = execute(self._sql(_FACTS))
        if (server, client) != ("UTF8", "UTF8"):
            raise StoreError(
                f"{self.describe()}: its encoding is {server}, the connection's {client}; both must be UTF8, for ids are any text",
                retriable=False,
            )
        return int(execute(self._sql(_VERSION))[0][0]) if there else 0

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        return set(self.payloads(claims))

    def payloads(self, claims: Collection[Claim]) -> dict[Claim, bytes]:
        group = self._ready()
        if not claims:
            return {}
        wanted = list(claims)
        rows = self._sessions.read("looking claims up", self._look_up(group, wanted))
        return {wanted[number - 1]: payload for number, payload, _ in rows}

    def claim(self, claims: Sequence[Claim], payloads: Sequence[bytes] = ()) -> set[Claim]:
        group = self._ready()
        if not claims:
            return set()
        if failpoint.ACTIVE:
            failpoint.hit("before_store_tx")
        given: dict[_Key, tuple[Claim, bytes]] = {}
        for claim, payload in zip(claims, payloads or [b""] * len(claims), strict=True):
            given.setdefault(_key(claim), (claim, payload))
        already = self._claim(group, given)
        for claim in claims:
            self._in_doubt.pop(claim, None)
        if failpoint.ACTIVE:
            failpoint.hit("after_store_commit")
        return already

    def _claim(self, group: str, given: Mapping[_Key, tuple[Claim, bytes]]) -> set[Claim]:
        # In the order of the key: two members with the same claims would else each hold what the other waits for.
        keys = sorted(given)
        statements: list[Statement] = [(self._sql(_INSERT), [group, *_columns(keys), [given[key][1] for key in keys]])]
        in_doubt = [claim for claim, _ in given.values() if claim in self._in_doubt]
        if in_doubt:
            statements.append(self._look_up(group, in_doubt))

        def note(at_us: int, found: Sequence[Sequence[_Key]]) -> None:
            self._in_doubt.update((given[key][0], at_us) for key in found[0])

        new, *seen = self._sessions.write("writing claims", statements, before_commit=_in_tx, in_doubt=note)
        if len(new) == len(given):
            return set()
        there = {in_doubt[number - 1]: made_at_us for rows in seen for number, _, made_at_us in rows}
        own = {claim for claim, made_at_us in there.items() if made_at_us == self._in_doubt[claim]}
        return {given[key][0] for key in given.keys() - set(new)} - own

    def _look_up(self, group: str, claims: Sequence[Claim]) -> Statement:
        return self._sql(_LOOK_UP), [*_columns(map(_key, claims)), group]

    def transactions(self, connection: type) -> PostgresTransactions | None:
        links = self._links(connection)
        if links is None:
            return None
        from choreo.storage.postgres_transactions import PostgresTransactions, Statements

        statements = Statements(lambda claims: self._look_up(self._ready(), claims), self._inserted_last, self._rows)
        return PostgresTransactions(
            links, statements, lock_timeout_s=self._lock_timeout_s, where=self._sessions.describe(), schema=self._schema
        )

    def _links(self, connection: type) -> Links | None:
        import psycopg

        from choreo.storage.postgres_links import OwnLinks, PoolLinks

        if connection not in (psycopg.Connection, psycopg.AsyncConnection):
            return None
        blocking = connection is psycopg.Connection
        if not isinstance(self._database, str):
            return PoolLinks(self._database) if blocking else None
        return OwnLinks(self._database, lambda: f"choreo {self._ready()} handlers", blocking=blocking)

    def _inserted_last(self, claims: Sequence[Claim], payloads: Sequence[bytes]) -> Statement:
        given = dict(sorted(zip(map(_key, claims), payloads, strict=True)))
        return self._sql(_INSERT), [self._ready(), *_columns(given), list(given.values())]

    def _rows(self, rows: Sequence[OutboxRow]) -> Statement:
        return self._insertion(self._ready(), rows)

    def _insertion(self, group: str, rows: Sequence[OutboxRow]) -> Statement:
        from choreo.storage.postgres_outbox import insertion

        text, parameters = insertion(group, rows)
        return self._sql(text), parameters

    def add(self, connection: Any, group: str, rows: Sequence[OutboxRow]) -> Any:
        from choreo.storage.postgres_outbox import add

        return add(connection, self._insertion(group, rows))

    def outbox(self, group: str) -> PostgresOutbox:
        from choreo.storage.postgres_outbox import PostgresOutbox

        sessions = _sessions(self._database, self._schema, self._lock_timeout_s)
        sessions.name(f"choreo {group} outbox")
        return PostgresOutbox(sessions, self._schema, group)

    def delete_older(self, age_s: float, limit: int) -> int:
        group = self._ready()
        lock = f"choreo deletes claims of {group} in {self._schema}"
        statements = [(_BY_AGE, []), (self._sql(_DELETE), [group, age_s, lock, limit])]
        _, ((deleted,),) = self._sessions.write("deleting old claims", statements)
        return int(deleted)

    def plan_schema(self) -> SchemaPlan:
        with self._closing():
            with self._sessions.transaction("looking at the schema") as execute:
                return self._plan(execute)

    def apply_schema(self) -> SchemaPlan:
        with self._closing():
            with self._sessions.transaction("changing the schema") as execute:
                execute(self._sql(_ONE_AT_A_TIME))
                plan = self._plan(execute)
                if plan.steps:
                    execute(self._changes(execute, plan.steps))
        return plan

    def _plan(self, execute: Execute) -> SchemaPlan:
        version = self._version(execute)
        steps = still_to_run(_MIGRATIONS, version)
        script = self._sql(_BEFORE) + self._changes(execute, steps) + _AFTER if steps else ""
        return SchemaPlan(self.describe(), version, SCHEMA_VERSION, steps, script)

    def _changes(self, execute: Execute, steps: Iterable[Migration]) -> str:
        """The SQL between lock and COMMIT."""
        ((there,),) = execute(self._sql(_HAS_SCHEMA))
        # Not IF NOT EXISTS: that asks for the right to make schemas even where there is nothing to make.
        parts = ["" if there else self._sql(_MAKE_SCHEMA), self._sql(_USE_SCHEMA)]
        parts += [f"\n-- {step.name}\n{step.sql}{_RECORD.format(step.version)}" for step in steps]
        return "".join(parts)

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """A store that is not open stays so."""
        try:
            yield
        finally:
            if self._group is None:
                self._sessions.close()

    def describe(self) -> str:
        return self._sessions.describe() + ("" if self._group is None else f" v{SCHEMA_VERSION}")

    def close(self) -> None:
        self._group = None
        self._sessions.close()

    def _ready(self) -> str:
        if self._group is None:
            raise StoreError(f"{self.describe()}: not open; call open(group) first, and not after close()", retriable=False)
        return self._group

    def _sql(self, text: str) -> str:
        return text.replace("{schema}", f'"{self._schema}"')


def _sessions(database: object, schema: str, lock_timeout_s: float) -> Sessions:
    try:
        from choreo.storage.postgres_sessions import Sessions
    except ImportError as error:
        if error.name is not None and error.name.partition(".")[0] == "choreo":
            raise
        told = str(error).partition("\n")[0]
        raise ConfigurationError(f"PostgresStore needs psycopg, which can't be imported ({told}): pip install choreo[postgres]") from error
    return Sessions(database, schema=schema, lock_timeout_s=lock_timeout_s)


def _in_tx() -> None:
    if failpoint.ACTIVE:
        failpoint.hit("in_store_tx")


def _key(claim: Claim) -> _Key:
    """As it stands in the table. PostgreSQL's text holds any character but NUL, which is written ``\\0``, and so ``\\`` as ``\\\\``."""
    handler, event_id, run = claim
    return _text(handler), _text(event_id), _text(run)


def _text(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\x00", "\\0")


def _columns(keys: Iterable[_Key]) -> list[list[str]]:
    return [list(column) for column in zip(*keys, strict=True)]


def _are(version: int) -> str:
    return f"its tables are of version {version}" if version else "it has no tables of choreo"
