"""What does a handler get as ``context.transaction``? psycopg's own connection, seen through a guard: whatever ends the transaction is
refused, and after its delivery it is good for nothing.

A guarded connection is a view: an object of a subclass that shares the state of the real one, so that all of psycopg works on it
(cursors, COPY, ``connection.transaction()`` for savepoints). Imported when a PostgresStore is made, for it needs psycopg.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from functools import cache
from typing import Any, NoReturn, TypeVar

import psycopg
from psycopg import sql

from choreo.errors import PermanentError
from choreo.storage.statements import forbidden

_OVER = "context.transaction was good for one delivery, which is over; use it inside handle() only, and keep no cursor or task of it"


class Guard:
    """What one delivery did to its connection: whether it is over, and what was refused last."""

    __slots__ = ("over", "refused")

    def __init__(self) -> None:
        self.over = False
        self.refused: PermanentError | None = None

    def refusal(self, what: str) -> PermanentError:
        """To be raised; where the handler swallows it, it is raised at the end of its delivery."""
        self.refused = PermanentError(
            f"{what} on context.transaction: the handler's writes, its claim and its events are committed together, by choreo; "
            "leave it out (to undo a part, use a savepoint: connection.transaction())"
        )
        return self.refused

    def check(self) -> None:
        if self.over:
            raise PermanentError(_OVER)

    def check_text(self, query: object, connection: Any) -> None:
        """Raises PermanentError for SQL that would end the transaction."""
        self.check()
        if isinstance(query, str):
            text = query
        elif isinstance(query, bytes):
            text = query.decode("utf-8", "replace")
        elif isinstance(query, sql.Composable):
            text = query.as_string(connection)
        else:
            text = " ".join(getattr(query, "strings", ()))  # a template string of Python 3.14
        command = forbidden(text)
        if command is not None:
            raise self.refusal(command)


_ENDING = ("commit", "rollback", "close", "tpc_begin", "tpc_prepare", "tpc_commit", "tpc_rollback")
_SETTINGS = ("autocommit", "isolation_level", "read_only", "deferrable")


def _refusing(name: str) -> Any:
    def refuse(self: Any, *_: object, **__: object) -> NoReturn:
        raise self._guard.refusal(f"{name}()")

    return refuse


def _fixed(name: str, base: type) -> property:
    inherited: property = getattr(base, name)

    def refuse(self: Any, _: object) -> NoReturn:
        raise self._guard.refusal(f"{name} =")

    return property(inherited.fget, refuse)


def _members(base: type) -> dict[str, Any]:
    """What both views refuse."""
    members = {name: _refusing(name) for name in (*_ENDING, *(f"set_{name}" for name in _SETTINGS))}
    return {**members, **{name: _fixed(name, base) for name in _SETTINGS}}


class _View:
    """The part that both kinds share. `_guard` is the view's alone, all else the real connection's."""

    __slots__ = ("_guard",)
    _guard: Guard

    def __del__(self) -> None:
        """psycopg warns of a connection that was not closed; this is only a view of one."""

    def __enter__(self) -> NoReturn:
        raise self._guard.refusal("'with connection:', which commits,")

    def __exit__(self, *_: object) -> None:
        """Never entered."""

    async def __aenter__(self) -> NoReturn:
        raise self._guard.refusal("'async with connection:', which commits,")

    async def __aexit__(self, *_: object) -> None:
        """Never entered."""


class _PlainView(_View):
    __slots__ = ()

    def cursor(self, *arguments: Any, **named: Any) -> Any:
        self._guard.check()
        return super().cursor(*arguments, **named)  # type: ignore[misc]

    def wait(self, *arguments: Any, **named: Any) -> Any:
        self._guard.check()
        return super().wait(*arguments, **named)  # type: ignore[misc]


class _AsyncView(_View):
    __slots__ = ()

    def cursor(self, *arguments: Any, **named: Any) -> Any:
        self._guard.check()
        return super().cursor(*arguments, **named)  # type: ignore[misc]

    async def wait(self, *arguments: Any, **named: Any) -> Any:
        self._guard.check()
        return await super().wait(*arguments, **named)  # type: ignore[misc]


class _PlainCursor:
    """Looks at each text before psycopg does."""

    def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
        _looked_at(self, query)
        return super().execute(query, *arguments, **named)  # type: ignore[misc]

    def executemany(self, query: Any, *arguments: Any, **named: Any) -> Any:
        _looked_at(self, query)
        return super().executemany(query, *arguments, **named)  # type: ignore[misc]

    def stream(self, query: Any, *arguments: Any, **named: Any) -> Iterator[Any]:
        _looked_at(self, query)
        found: Iterator[Any] = super().stream(query, *arguments, **named)  # type: ignore[misc]
        return found

    def copy(self, query: Any, *arguments: Any, **named: Any) -> Any:
        _looked_at(self, query)
        return super().copy(query, *arguments, **named)  # type: ignore[misc]


class _AsyncCursor(_PlainCursor):
    # Each of psycopg's gives an awaitable, an async iterator or a context manager: what is refused is so before it.
    async def execute(self, query: Any, *arguments: Any, **named: Any) -> Any:
        return await super().execute(query, *arguments, **named)

    async def executemany(self, query: Any, *arguments: Any, **named: Any) -> Any:
        return await super().executemany(query, *arguments, **named)

    def stream(self, query: Any, *arguments: Any, **named: Any) -> AsyncIterator[Any]:  # type: ignore[override]
        found: Any = super().stream(query, *arguments, **named)
        return found  # type: ignore[no-any-return]


def _looked_at(cursor: Any, query: object) -> None:
    connection = cursor.connection
    guard = getattr(connection, "_guard", None)
    if guard is not None:
        guard.check_text(query, connection)


@cache
def _view_class(base: Any) -> Any:
    view = _AsyncView if issubclass(base, psycopg.AsyncConnection) else _PlainView
    return type(base.__name__, (view, base), {"__slots__": (), "__module__": base.__module__, **_members(base)})


@cache
def _cursor_class(base: Any) -> Any:
    guarded = _AsyncCursor if issubclass(base, psycopg.AsyncCursor | psycopg.AsyncServerCursor) else _PlainCursor
    return type(base.__name__, (guarded, base), {"__module__": base.__module__})


_C = TypeVar("_C", bound="psycopg.Connection[Any] | psycopg.AsyncConnection[Any]")


def guarded(connection: _C, guard: Guard) -> _C:
    """A view of `connection` for one delivery, under `guard`."""
    real: Any = type(connection)
    view = _view_class(real)
    made: Any = view.__new__(view)
    object.__setattr__(made, "__dict__", connection.__dict__)
    made._guard = guard
    return made  # type: ignore[no-any-return]


class Manners:
    """How a connection was when it came: what handlers may change on it is set back after each delivery."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._was = [(name, getattr(connection, name)) for name in ("row_factory", "cursor_factory", "server_cursor_factory")]
        self._was.append(("prepare_threshold", connection.prepare_threshold))
        self._factories = [(name, _cursor_class(kind)) for name, kind in self._was[1:3]]

    def prepare(self) -> None:
        """For the next delivery."""
        self._set(self._was[:1])
        self._set(self._factories)

    def restore(self) -> None:
        """For whoever has the connection next."""
        self._set(self._was)

    def _set(self, values: Iterable[tuple[str, Any]]) -> None:
        for name, value in values:
            setattr(self._connection, name, value)
