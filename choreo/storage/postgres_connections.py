"""Whose connections does the PostgreSQL store use? One of its own, made anew when it was lost, or one of the user's pool at a time.

Imported when a PostgresStore is made, for it needs psycopg. What a conninfo holds is never shown as a whole: it may be a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict

from choreo.errors import ConfigurationError

Connection = psycopg.Connection[Any]

# For a connection of our own, where its conninfo says nothing else: a server that is gone without a word (a pulled cable, a
# firewall) is noticed in 20 s, and not in the quarter of an hour that TCP takes by itself.
_DEFAULTS: Mapping[str, object] = {
    "connect_timeout": 10,
    "fallback_application_name": "choreo",
    "keepalives_idle": 5,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_FORM = "postgresql://user:password@host:5432/database, with what is special in the password as %xx, or host=... dbname=..."


class Connections(Protocol):
    """Lends one connection at a time: idle, and in autocommit."""

    place: str
    """Where they lead to: ``18 db:5432/shop``, with PostgreSQL's version once it is known."""

    def may_be_stale(self) -> bool:
        """Whether the next one was made before, so that the other side may have closed it since."""

    def borrow(self) -> AbstractContextManager[Connection]:
        """The next one, made if need be. Raises psycopg.Error."""

    def close(self) -> None:
        """Closes what is its own. A second call does nothing."""


class OwnConnection:
    """See `Connections`. One connection by `conninfo`; after it was lost, the next call makes another one."""

    def __init__(self, conninfo: str) -> None:
        self._parameters = parameters(conninfo)
        self._connection: Connection | None = None
        self.place = _place(self._parameters.get("host"), self._parameters.get("port"), self._parameters.get("dbname"))

    def name(self, application: str) -> None:
        """What pg_stat_activity calls it, where the conninfo does not say."""
        self._parameters["fallback_application_name"] = application

    def may_be_stale(self) -> bool:
        return self._connection is not None

    @contextmanager
    def borrow(self) -> Iterator[Connection]:
        if self._connection is None:
            self._connection = psycopg.connect(**self._parameters, autocommit=True)
            self.place = _found(self._connection)
        try:
            yield self._connection
        finally:
            if self._connection.closed:
                self.close()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class PooledConnections:
    """See `Connections`. One of the user's pool for each call; the pool is never opened or closed here."""

    def __init__(self, pool: object) -> None:
        self._pool = _checked(pool)
        self.place = "of the pool " + self._pool.name

    def may_be_stale(self) -> bool:
        return True

    @contextmanager
    def borrow(self) -> Iterator[Connection]:
        with self._pool.connection() as connection:
            was = connection.autocommit
            connection.autocommit = True
            self.place = _found(connection)
            try:
                yield connection
            finally:
                if not connection.closed:
                    connection.autocommit = was

    def close(self) -> None:
        """Nothing is its own."""


def parameters(conninfo: str) -> dict[str, Any]:
    """What a conninfo says, over the defaults. Raises ConfigurationError, which shows nothing of it."""
    if "+" in conninfo.partition("://")[0]:
        raise ConfigurationError(f"PostgresStore: a conninfo names no driver: leave out the '+...' before '://' and write {_FORM}")
    try:
        given = conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError:
        raise ConfigurationError(f"PostgresStore: this is no conninfo (not shown, it may hold a password); write {_FORM}") from None
    # libpq takes the first '@' for the end of the password; the rest would be shown as host or database.
    if "://" in conninfo and any("@" in str(given.get(part) or "") for part in ("host", "port", "dbname")):
        raise ConfigurationError(f"PostgresStore: there is more than one '@' in the conninfo (not shown); write {_FORM}")
    defaults = {name: value for name, value in _DEFAULTS.items() if name != "connect_timeout" or "PGCONNECT_TIMEOUT" not in os.environ}
    return {**defaults, **given}


def _checked(pool: object) -> Any:
    try:
        from psycopg_pool import ConnectionPool
    except ImportError:
        known = False
    else:
        known = isinstance(pool, ConnectionPool)
    if not known:
        raise ConfigurationError(
            f"PostgresStore takes a conninfo or a psycopg_pool.ConnectionPool, not {type(pool).__name__}: choreo calls its store from a "
            "thread of its own; give it the conninfo, it then has one connection of its own"
        )
    return pool


def _found(connection: Connection) -> str:
    info = connection.info
    return f"{info.server_version // 10_000} {_place(info.host, info.port, info.dbname)}"


def _place(host: object, port: object, database: object) -> str:
    host, port = host or os.environ.get("PGHOST") or "localhost", port or os.environ.get("PGPORT") or 5432
    return f"{host}:{port}/{database or os.environ.get('PGDATABASE') or ''}"
