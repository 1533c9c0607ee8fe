"""Where does a service of the shop keep its state? In one SQLite file of its own, in the folder SHOP_DATA."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self


def shop_file(name: str, data: Path | None = None) -> Path:
    """The file `name` in `data`; without it in $SHOP_DATA, else in `.choreo/shop`."""
    return (data or Path(os.environ.get("SHOP_DATA", ".choreo/shop"))) / name


class Database:
    """One SQLite file, open within `with`. The base of each service's books; all threads of a service share one.

    `transaction` is the lock that a handler needs when two topics speak of one order: one transaction at a time, among
    threads by the lock, among processes by BEGIN IMMEDIATE.
    """

    schema: ClassVar[str]

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        Path(self._path).parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(self._path, timeout=10, isolation_level=None, check_same_thread=False)
        self._connection.executescript(self.schema)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits at the end, rolls back when the body raises. Raises RuntimeError outside of `with`."""
        if self._connection is None:
            raise RuntimeError(f"{self._path} is not open; enter it first, or name it in Service(resources=[...])")
        with self._lock, self._connection as connection:
            connection.execute("begin immediate")
            yield connection
