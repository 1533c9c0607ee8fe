"""A SQLite file of the tests' own, and bursts on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from choreo.record import Outgoing
from choreo.runtime.burst import run_now
from choreo.storage.sqlite import SqliteStore
from choreo.storage.sqlite_transactions import SqliteTransaction, SqliteTransactions
from choreo.store import Claim, OutboxRow

ROOT = Path(__file__).parents[2]
GROUP = "payments"
Act = Callable[[Any], object]


def claim(number: int | str) -> Claim:
    return Claim("book-payment", f"e{number}")


def row(number: int, key: bytes | None = b"o-1", *, topic: str = "payments", due: Any = None) -> OutboxRow:
    return OutboxRow(Outgoing(topic, key, b"{}", [("choreo-id", f"e{number}".encode())]), "payment.received", f"e{number}", due)


class Desk:
    """The file, with the tables that handlers of these tests write in: `entries`, and `strict`, whose conflicts roll all of it back."""

    def __init__(self, folder: Path, *, busy_timeout_s: float = 0.3) -> None:
        self.path = folder / "shop.db"
        self.store = SqliteStore(self.path, busy_timeout_s=busy_timeout_s)
        self.store.open(GROUP)
        with closing(self.connect()) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS entries (text)")
            connection.execute("CREATE TABLE IF NOT EXISTS strict (text UNIQUE ON CONFLICT ROLLBACK)")
        made = self.store.transactions(sqlite3.Connection)
        assert made is not None
        self.transactions: SqliteTransactions = made

    def connect(self, **settings: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(self.path, timeout=20, **settings)
        return connection

    def entries(self) -> list[Any]:
        with closing(self.connect()) as connection:
            return [text for (text,) in connection.execute("SELECT text FROM entries ORDER BY rowid")]

    def begin(self) -> SqliteTransaction:
        return run_now(self.transactions.begin(quiet_s=5.0))

    def deliver(self, transaction: SqliteTransaction, act: Act) -> BaseException | None:
        """One handler: what it raised. Raises what keep and undo do."""
        connection = run_now(transaction.begin_delivery())
        try:
            act(connection)
        except BaseException as error:
            run_now(transaction.undo(error))
            return error
        run_now(transaction.keep())
        return None

    def burst(self, *acts: Act, claims: Sequence[Claim] = (), rows: Sequence[OutboxRow] = ()) -> list[BaseException | None]:
        """A whole burst: what each handler raised. Raises what the transaction does; it has ended then."""
        transaction = self.begin()
        try:
            raised = [self.deliver(transaction, act) for act in acts]
            run_now(transaction.commit(claims, [b""] * len(claims), rows))
        finally:
            run_now(transaction.end())
        return raised

    def close(self) -> None:
        run_now(self.transactions.close())
        self.store.close()


def write(text: str) -> Act:
    return lambda connection: connection.execute("INSERT INTO entries VALUES (?)", [text])


def each(*acts: Act) -> Act:
    def all_of_them(connection: Any) -> None:
        for act in acts:
            act(connection)

    return all_of_them


def run(*statements: str) -> Act:
    return each(*((lambda connection, text=text: connection.execute(text)) for text in statements))


def swallowing(act: Act) -> Act:
    def swallow(connection: Any) -> None:
        try:
            act(connection)
        except Exception:
            pass

    return swallow


def ids(rows: Iterable[Any]) -> list[str]:
    return [stored.event_id for stored in rows]
