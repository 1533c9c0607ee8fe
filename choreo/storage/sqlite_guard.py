"""What does a handler get as ``context.transaction`` of a SQLite file? A connection that ends no transaction, and is good for one delivery.

sqlite3's own can't be given: ``with connection:`` commits the burst. What a handler gets is a view of it, of a subclass, that passes on what
is harmless; and SQLite itself asks the connection's authorizer about each statement when it is prepared.
"""

from __future__ import annotations

import secrets
import sqlite3
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from choreo.errors import PermanentError, StoreError

SAVEPOINT = "choreo_delivery"
_OVER = "context.transaction was good for one delivery, which is over; use it inside handle() only, and keep no cursor of it"
_PASSED_ON = ("create_function", "create_aggregate", "create_window_function", "create_collation", "blobopen", "iterdump", "getlimit")
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
_DENIED = {
    sqlite3.SQLITE_TRANSACTION: "{0}",
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
}


class Guard:
    """What one delivery did to its connection. `enter` is called before its first statement."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self.over = False
        self.refused: PermanentError | None = None
        self.lost: StoreError | None = None
        self._enter: Callable[[], None] | None = enter
        self.cursors: weakref.WeakSet[sqlite3.Cursor] = weakref.WeakSet()

    @property
    def entered(self) -> bool:
        return self._enter is None

    def refusal(self, what: str) -> PermanentError:
        """To be raised; where the handler swallows it, it is raised at the end of its delivery."""
        self.refused = PermanentError(
            f"{what} on context.transaction: the handler's writes, its claim and its events are committed together, by choreo; "
            "leave it out (to undo a part, use a savepoint of your own)"
        )
        return self.refused

    def check(self) -> None:
        """Before each statement. Raises PermanentError, and TransactionLostError where the write lock could not be had."""
        if self.over:
            raise PermanentError(_OVER)
        if self._enter is not None:
            try:
                self._enter()
            except StoreError as error:
                self.lost = error
                raise
            self._enter = None

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
            denied = None if (first or "").lower() in _READING_PRAGMAS else f"PRAGMA {first}"
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
        view._guard.check()
        setattr(view._real, name, value)

    return property(get, set_)


class View(sqlite3.Connection):
    """See the module. Its own base was never initialised: only what is passed on works."""

    is_choreos = True
    _real: Real
    _guard: Guard

    def __init__(self, real: Real, guard: Guard) -> None:  # not the base's: that would open a database
        self._real = real
        self._guard = guard

    def execute(self, sql: str, parameters: Any = (), /) -> Any:
        return self.cursor().execute(sql, parameters)

    def executemany(self, sql: str, parameters: Any, /) -> Any:
        return self.cursor().executemany(sql, parameters)

    def cursor(self, factory: Any = None) -> Any:
        self._guard.check()
        cursor: Any = self._real.cursor(_cursor_of(factory or sqlite3.Cursor))
        cursor.guard = self._guard
        self._guard.cursors.add(cursor)
        return cursor

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
    row_factory: Any = _seen("row_factory")
    text_factory: Any = _seen("text_factory")


def _passing_on(name: str) -> Any:
    def pass_on(self: View, *arguments: Any, **named: Any) -> Any:
        self._guard.check()
        return getattr(self._real, name)(*arguments, **named)

    return pass_on


def _refusing(name: str) -> Any:
    def refuse(self: View, *_: object, **__: object) -> NoReturn:
        raise self._guard.refusal(f"{name}()")

    return refuse


for _name in dir(sqlite3.Connection):
    if _name.startswith("_") or _name in vars(View) or not callable(getattr(sqlite3.Connection, _name)):
        continue
    if not isinstance(getattr(sqlite3.Connection, _name), type):  # its exceptions are classes
        setattr(View, _name, (_passing_on if _name in _PASSED_ON else _refusing)(_name))

_cursors: dict[type, type] = {}


def _cursor_of(base: type) -> Any:
    made = _cursors.get(base)
    if made is None:
        made = _cursors[base] = type(base.__name__, (_Guarded, base), {})
    return made


class _Guarded:
    """A cursor that is good for one delivery, and says who refused."""

    guard: Guard | None = None

    def execute(self, *arguments: Any) -> Any:
        return self._run(super().execute, arguments)  # type: ignore[misc]

    def executemany(self, *arguments: Any) -> Any:
        return self._run(super().executemany, arguments)  # type: ignore[misc]

    def executescript(self, *_: object) -> Any:
        if self.guard is not None:
            raise self.guard.refusal("executescript(), which commits,")
        raise PermanentError(_OVER)

    def _run(self, run: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        guard = self.guard
        if guard is None:
            return run(*arguments)
        guard.check()
        try:
            return run(*arguments)
        except sqlite3.Error as error:
            refused = guard.refused_by_sqlite(error)
            if refused is None:
                raise
            raise refused from error
