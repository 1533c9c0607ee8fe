"""How does code that is no handler publish an event with what it tells of? In its own transaction: ``service.outbox.add(connection, event)``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, overload

from choreo.errors import ConfigurationError
from choreo.handler import EmitItem
from choreo.runtime.publishing import Published, Publishing
from choreo.store import Transactional


class PlainConnection(Protocol):
    """A sqlite3.Connection, or psycopg's Connection."""

    def __enter__(self) -> Any: ...


class AsyncConnection(Protocol):
    """psycopg's AsyncConnection."""

    def __aenter__(self) -> Awaitable[Any]: ...


class ServiceOutbox:
    """See the module. `added` hears of each call, so that the rows are looked for soon."""

    def __init__(self, publishing: Callable[[], Publishing], store: object, group: Callable[[], str], added: Callable[[], None]) -> None:
        self._make_publishing = publishing
        self._store = store
        self._group = group
        self._added = added
        self._publishing: Publishing | None = None

    @overload
    def add(self, connection: PlainConnection, event: EmitItem, *, event_id: str | None = None) -> Published: ...

    @overload
    def add(self, connection: AsyncConnection, event: EmitItem, *, event_id: str | None = None) -> Awaitable[Published]: ...

    def add(self, connection: Any, event: EmitItem, *, event_id: str | None = None) -> Any:
        """Writes `event` in the transaction of `connection`, which is the caller's: it is published once that is committed, and never if it
        is rolled back. Does no other I/O.

        `connection` is a sqlite3.Connection to the store's file, or a psycopg Connection or AsyncConnection to the store's database.
        Returns Published(event_id, flow_id); on an AsyncConnection an awaitable of it. A given `event_id` (see `derived_id`) makes a repeated
        request the same event: whoever handles it does so once. Raises ConfigurationError for an event that the service does not declare, a
        store without an outbox, a connection of another kind or in autocommit; and what the database raises.
        """
        if not isinstance(self._store, Transactional):
            given = "no store was given" if self._store is None else f"{type(self._store).__name__} has no outbox"
            raise ConfigurationError(f"outbox.add needs a store whose database the event is written to, and {given}: Service(store=...)")
        if self._publishing is None:
            self._publishing = self._make_publishing()
        published, row = self._publishing.row(event, event_id)
        written = self._store.add(connection, self._group(), [row])
        if hasattr(written, "__await__"):
            return self._awaited(written, published)
        self._added()
        return published

    async def _awaited(self, written: Any, published: Published) -> Published:
        await written
        self._added()
        return published
