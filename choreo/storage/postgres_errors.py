"""What is the matter with PostgreSQL, may waiting help, and what is to be done? Its errors as StoreErrors.

An error of a statement has an SQLSTATE (https://www.postgresql.org/docs/current/errcodes-appendix.html). One of connecting has
none, only a text: what is known not to get better by waiting is found there in English; a server that speaks another
language is waited for, and what it says is shown. Neither ever holds the password.
"""

from __future__ import annotations

import re

import psycopg

from choreo.errors import StoreError, printable

_AGAIN = "choreo tries again"
_TABLES = "its tables are not as they should be; make them: choreo store apply MODULE:NAME"
_MAX_CHARS = 300

# By SQLSTATE, or the beginning of several; the longest counts.
_WAITING_HELPS = {
    "08": f"the connection was lost; {_AGAIN}",
    "25006": "it is a replica, or was set to read-only, as some hosters do when the disk is full; name the primary, or add"
    f" target_session_attrs=read-write; {_AGAIN}",
    "25P03": f"this process stood still in the middle of a transaction; {_AGAIN}",
    "40": f"another transaction was in its way; {_AGAIN}",
    "53": f"the server is short of something; {_AGAIN}",
    "53100": f"the server's disk is full; make room, {_AGAIN}",
    "53200": f"the server has no memory left; {_AGAIN}",
    "53300": f"the server has no connection left; raise max_connections or close some, {_AGAIN}",
    "55P03": f"another session holds a lock on it; find it in pg_stat_activity if this goes on; {_AGAIN}",
    "57014": f"somebody cancelled it, or statement_timeout is too short; {_AGAIN}",
    "57P": f"the server is stopping or starting, or somebody ended the session; {_AGAIN}",
    "58030": f"the server's disk failed to read or write; look at it, {_AGAIN}",
}
_SOMEBODY_MUST_ACT = {
    "28": "correct user and password",
    "3D000": "create the database, or name another one",
    "3F000": _TABLES,
    "42501": "its owner can allow it: GRANT USAGE ON SCHEMA {schema} TO ...; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema}"
    " TO ...; and make missing tables with the SQL that choreo store plan MODULE:NAME prints",
    "42703": _TABLES,
    "42P01": _TABLES,
    "42P10": _TABLES,
    "57P04": "the database was dropped; create it, or name another one",
    "XX001": "its data is damaged; restore a backup",
    "XX002": "an index of it is damaged; find out why, then: REINDEX TABLE {schema}.choreo_claims",
}
# What libpq or the server says when it does not let us in.
_REFUSALS = (
    (r"authentication failed for user|no password supplied", "correct user and password"),
    (r"role .* does not exist|is not permitted to log in", "create the role with LOGIN, or name another one"),
    (r"database .* does not exist", "create the database, or name another one"),
    (r"permission denied for database", "its owner can allow it: GRANT CONNECT ON DATABASE ... TO ..."),
    (r"pg_hba\.conf", "let this host and role in (pg_hba.conf on the server), or add sslmode=require if it wants encryption"),
    (
        r"does not support SSL|certificate verify failed|server certificate for|certificate file|private key file",
        "set sslmode, sslrootcert, sslcert and sslkey as this server needs them",
    ),
    (r"[Ss]ervname not supported|invalid port number|invalid integer value", "correct the port"),
)
# By the name of the error's class: psycopg_pool need not be there.
_POOLS = {
    "PoolClosed": (False, "open the pool before the service and close it after: Service(..., resources=[pool])"),
    "PoolTimeout": (True, f"all its connections are in use, or the server is away; raise its max_size if this goes on; {_AGAIN}"),
    "TooManyRequests": (True, f"too many wait for a connection of the pool; raise its max_size if this goes on; {_AGAIN}"),
}


def explain(error: psycopg.Error, where: str, doing: str, schema: str) -> StoreError:
    """What `error` means: ``PostgreSQL 18 db:5432/shop, schema choreo: writing claims: deadlock detected; another ...``."""
    retriable, advice = _judge(error)
    said = error.diag.message_primary or str(error).strip().partition("\n")[0]
    said = printable(said.removeprefix("connection failed: "), _MAX_CHARS)
    advice = advice.replace("{schema}", f'"{schema}"')
    return StoreError(f"{where}: {doing}: {said}; {advice}", retriable=retriable)


def is_lost(error: psycopg.Error) -> bool:
    """Whether there was no connection, or is none any more."""
    if not isinstance(error, psycopg.OperationalError) or type(error).__name__ in _POOLS:
        return False
    return not error.sqlstate or error.sqlstate.startswith(("08", "57P"))


def _judge(error: psycopg.Error) -> tuple[bool, str]:
    """May waiting help, and what is to be done."""
    if type(error).__name__ in _POOLS:
        return _POOLS[type(error).__name__]
    code = error.sqlstate or ""
    for length in (5, 3, 2):
        if code[:length] in _SOMEBODY_MUST_ACT:
            return False, _SOMEBODY_MUST_ACT[code[:length]]
        if code[:length] in _WAITING_HELPS:
            return True, _WAITING_HELPS[code[:length]]
    if not code and isinstance(error, psycopg.OperationalError):
        for pattern, advice in _REFUSALS:
            if re.search(pattern, str(error)):
                return False, advice
        return True, f"look whether it runs, and at this address; {_AGAIN}"
    return False, "this is no error choreo knows; look at the server's log"
