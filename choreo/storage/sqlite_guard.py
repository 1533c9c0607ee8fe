"""What does a handler get as ``context.transaction`` of a SQLite file? A connection that ends no transaction, and is good for one delivery.

sqlite3's own can't be given: ``with connection:`` commits the burst. What a handler gets is a view of it that passes on what is harmless;
and SQLite itself asks the connection's authorizer about each statement when it is prepared. A view says that it is a sqlite3.Connection
(`isinstance`), and is none: sqlite3's C code takes a subclass whose base was never initialised for an open connection, and crashes.
"""

from __future__ import annotations

import secrets
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any, NoReturn

from choreo.errors import PermanentError, StateError, StoreError

SAVEPOINT = "choreo_delivery"
_OVER = "context.transaction was good for one delivery, which is over; use it inside handle() only, and keep no cursor of it"
_PASSED_ON = ("create_function", "create_aggregate", "create_window_function", "create_collation", "getlimit")
# What a handler may ask, and not set: those that tell of a table, or of the file.
_READING_PRAGMAS = [
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "foreign_key_check",
    "database_list",
    "collation_list",
    "function_list",
    "compile_options",
    "data_version",
    "page_count",
    "freelist_count",
    "integrity_check",
    "quick_check",
]
# These with a value would set something. Full-text search asks for page_size by itself, with the handler's statement.
_PRAGMAS_WITHOUT_VALUE = ["page_size", "user_version", "application_id", "schema_version", "encoding", "foreign_keys", "journal_mode"]
_DENIED = {
    sqlite3.SQLITE_TRANSACTION: "{0}",
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
}


class Guard:
    """What one delivery did to its connection. `enter` is called before its first statement, and when the transaction is gone: then it
    raises."""

    def __init__(self, real: Real, enter: Callable[[], None]) -> None:
        self.entered = False
        self.over = False
        self.refused: PermanentError | None = None
        self.lost: StoreError | StateError | None = None
        self.failed: sqlite3.Error | None = None
        """What SQLite said last of a statement of the delivery that failed."""
        self._real = real
        self._enter = enter
        self._kept: weakref.WeakSet[sqlite3.Cursor | sqlite3.Blob] = weakref.WeakSet()

    def refusal(self, what: str) -> PermanentError:
        """To be raised; where the handler swallows it, it is raised at the end of its delivery."""
        self.refused = PermanentError(
            f"{what} on context.transaction: the handler's writes, its claim and its events are committed together, by choreo; "
            "leave it out (to undo a part, use a savepoint of your own)"
        )
        return self.refused

    def live(self) -> None:
        """Raises PermanentError when the delivery is over."""
        if self.over:
            raise PermanentError(_OVER)

    def check(self) -> None:
        """Before each statement: outside of the transaction it would be committed by itself. Raises PermanentError, and StoreError or
        StateError where the write lock could not be had, or the transaction is gone."""
        self.live()
        if self.lost is not None:
            raise self.lost
        if self.entered and self._real.in_transaction:
            return
        try:
            self._enter()
        except (StoreError, StateError) as error:
            self.lost = error
            raise
        self.entered = True

    def keep_in_sight(self, opened: sqlite3.Cursor | sqlite3.Blob) -> None:
        """It is closed at the end of the delivery: a statement that was not read to its end, or an open blob, keeps COMMIT from coming,
        and the next transaction from beginning."""
        self._kept.add(opened)

    def close(self) -> None:
        """The delivery is over."""
        self.over = True
        for opened in tuple(self._kept) if self._kept else ():
            # One that was never open holds nothing, and one that another thread is using shows at the next statement. Not its own close():
            # a handler's class may have another.
            with suppress(sqlite3.ProgrammingError):
                (sqlite3.Blob if isinstance(opened, sqlite3.Blob) else sqlite3.Cursor).close(opened)  # type: ignore[arg-type]

    def refused_by_sqlite(self, error: sqlite3.Error) -> PermanentError | None:
        """What the authorizer said, where it is why a statement failed."""
        return self.refused if self.refused is not None and "not authorized" in str(error) else None


class Real(sqlite3.Connection):
    """The connection that choreo has. Its own statements carry a word that no handler can guess, for sqlite3 keeps prepared statements by
    their text, and doesn't ask about these again."""

    guard: Guard | None = None

    def prepare(self) -> None:
        """Once, when it was made."""
        self._mark = secrets.token_hex(8)
        self.set_authorizer(self._asked)

    def own(self, sql: str) -> sqlite3.Cursor:
        """Runs a statement of choreo's own."""
        guard, self.guard = self.guard, None
        try:
            return self.execute(f"{sql} -- {self._mark}")
        finally:
            self.guard = guard

    def _asked(self, action: int, first: str | None, second: str | None, database: str | None, trigger: str | None) -> int:
        guard = self.guard
        if guard is None:
            return sqlite3.SQLITE_OK
        if action == sqlite3.SQLITE_SAVEPOINT:
            denied = f"the savepoint {second}" if (second or "").lower() == SAVEPOINT else None
        elif action == sqlite3.SQLITE_PRAGMA:
            name = (first or "").lower()
            harmless = name in _READING_PRAGMAS or (second is None and name in _PRAGMAS_WITHOUT_VALUE)
            denied = None if harmless else f"PRAGMA {first}"
        else:
            denied = _DENIED[action].format(first) if action in _DENIED else None
        if denied is None:
            return sqlite3.SQLITE_OK
        guard.refusal(denied)
        return sqlite3.SQLITE_DENY


def _seen(name: str, *, may_be_set: bool = True) -> Any:
    """An attribute of the real connection, seen through a view of it."""

    def get(view: View) -> Any:
        return getattr(view._real, name)

    def set_(view: View, value: Any) -> None:
        if not may_be_set:
            raise view._guard.refusal(f"{name} =")
        view._guard.live()
        setattr(view._real, name, value)

    return property(get, set_)


class View:
    """See the module. Only what is passed on works."""

    __slots__ = ("_guard", "_real")
    is_choreos = True
    _real: Real
    _guard: Guard

    def __init__(self, real: Real, guard: Guard) -> None:
        self._real = real
        self._guard = guard

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What `isinstance` sees."""
        return sqlite3.Connection

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        return self.cursor().executemany(sql, parameters)

    def cursor(self, factory: Any = sqlite3.Cursor) -> Any:
        self._guard.check()
        if not isinstance(factory, type):
            raise PermanentError(f"cursor(factory) on context.transaction takes a subclass of sqlite3.Cursor, not {factory!r}")
        cursor: Any = self._real.cursor(_cursor_of(factory))
        cursor.view = self
        self._guard.keep_in_sight(cursor)
        return cursor

    def blobopen(self, *arguments: Any, **named: Any) -> sqlite3.Blob:
        self._guard.check()
        blob = self._real.blobopen(*arguments, **named)
        self._guard.keep_in_sight(blob)
        return blob

    def iterdump(self, **named: Any) -> Iterator[str]:
        self._guard.check()
        return iter(list(self._real.iterdump(**named)))  # at once: it has a cursor of its own

    def __call__(self, sql: str) -> Any:
        raise self._guard.refusal("calling it")

    def __enter__(self) -> NoReturn:
        raise self._guard.refusal("'with connection:', which commits,")

    def __exit__(self, *_: object) -> Any:
        """Never entered."""

    @property
    def in_transaction(self) -> bool:
        self._guard.check()
        return self._real.in_transaction

    @property
    def total_changes(self) -> int:
        return self._real.total_changes

    isolation_level: Any = _seen("isolation_level", may_be_set=False)
    autocommit: Any = _seen("autocommit", may_be_set=False)
    """From Python 3.12 on."""
    row_factory: Any = _seen("row_factory")
    text_factory: Any = _seen("text_factory")


def _passing_on(name: str) -> Any:
    def pass_on(self: View, *arguments: Any, **named: Any) -> Any:
        self._guard.live()
        return getattr(self._real, name)(*arguments, **named)

    return pass_on


def _refusing(name: str) -> Any:
    def refuse(self: View, *_: object, **__: object) -> NoReturn:
        raise self._guard.refusal(f"{name}()")

    return refuse


for _name in dir(sqlite3.Connection):
    if _name.startswith("_") or _name in vars(View):
        continue
    if isinstance(_error := getattr(sqlite3, _name, None), type):  # connection.IntegrityError
        setattr(View, _name, _error)
    elif callable(getattr(sqlite3.Connection, _name)):
        setattr(View, _name, (_passing_on if _name in _PASSED_ON else _refusing)(_name))


@lru_cache(maxsize=256)
def _cursor_of(base: type) -> Any:
    return type(base)(base.__name__, (_Guarded, base), {})


class _Guarded:
    """A cursor that is good for one delivery, and says who refused."""

    view: View | None = None

    @property
    def connection(self) -> View:
        """The view, for the real connection is nobody's."""
        if self.view is None:
            raise PermanentError("a cursor of context.transaction has its connection when it was made, not before")
        return self.view

    def execute(self, *arguments: Any) -> Any:
        return self._run(super().execute, arguments)  # type: ignore[misc]

    def executemany(self, *arguments: Any) -> Any:
        return self._run(super().executemany, arguments)  # type: ignore[misc]

    def executescript(self, *_: object) -> Any:
        raise self.connection._guard.refusal("executescript(), which commits,")

    def _run(self, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        guard = self.connection._guard
        guard.check()
        try:
            return run(*arguments)
        except sqlite3.Error as error:
            guard.failed = error
            refused = guard.refused_by_sqlite(error)
            if refused is None:
                raise
            raise refused from error
