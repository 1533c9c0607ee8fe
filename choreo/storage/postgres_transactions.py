"""How does a burst's transaction run on PostgreSQL? One BEGIN, a savepoint a delivery, the rows of its events, its claims, one COMMIT.

Round trips are what it costs, so what can go together does: BEGIN with the settings, one delivery's RELEASE with the next one's SAVEPOINT,
the last one's with COMMIT. Never in a pipeline: psycopg ends one with a Flush, at which PostgreSQL forgets to watch for idle
transactions (ADR 0014). Imported when a PostgresStore is made, for it needs psycopg.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, NoReturn

import psycopg
from psycopg.pq import TransactionStatus

from choreo import failpoint
from choreo.errors import HandlerError, StateError, StoreError, TransactionLostError, TransientError, told
from choreo.storage.postgres_errors import explain, is_lost
from choreo.storage.postgres_guard import Guard, guarded
from choreo.storage.postgres_links import Link, Links
from choreo.storage.statements import SAVEPOINT
from choreo.store import Claim, OutboxRow

Statement = tuple[str, Sequence[object]]

LARGEST = 60
"""Deliveries a burst: above 64 savepoints of one transaction PostgreSQL keeps them no longer in memory, and others' look-ups slow down."""
_IDLE_S = 5.0
_BEGIN = (
    "BEGIN ISOLATION LEVEL READ COMMITTED; SELECT set_config('lock_timeout', '{}ms', true),"
    " set_config('idle_in_transaction_session_timeout', '{}ms', true),"
    " CASE WHEN current_setting('synchronous_commit') = 'off' THEN set_config('synchronous_commit', 'on', true) END"
)
_SAVEPOINT = f"SAVEPOINT {SAVEPOINT}"
_RELEASE = f"RELEASE SAVEPOINT {SAVEPOINT}"
_ROLLBACK_TO = f"ROLLBACK TO SAVEPOINT {SAVEPOINT}"
_REASONS = {"40P01": "deadlock", "40001": "serialization", "40003": "connection", "55P03": "lock", "25P03": "quiet", "25P04": "quiet"}
_SERVER_TROUBLE = ("53", "57P", "58", "25006")
"""No fault of the statement's: no disk, no memory, no connection left; the server stops, or may not write just now."""
_SAVEPOINT_GONE = ("3B001", "25P01")


class Statements(NamedTuple):
    """What the store's tables ask for: which SQL looks claims up, inserts them, and inserts rows of the outbox."""

    look_up: Callable[[Sequence[Claim]], Statement]
    insert: Callable[[Sequence[Claim], Sequence[bytes]], Statement]
    add: Callable[[Sequence[OutboxRow]], Statement]


class PostgresTransactions:
    """See `choreo.store.Transactions`. `where` and `schema` are only named in messages."""

    largest = LARGEST

    def __init__(self, links: Links, statements: Statements, *, lock_timeout_s: float, where: str, schema: str) -> None:
        self._links = links
        self.statements = statements
        self._lock_ms = max(1, round(lock_timeout_s * 1000))
        self.where = where
        self._schema = schema
        self.blocking = links.blocking
        self.most = links.most

    async def begin(self, *, quiet_s: float) -> PostgresTransaction:
        begin = _BEGIN.format(self._lock_ms, round((quiet_s + _IDLE_S) * 1000))
        try:
            link, stale = await self._links.take()
        except psycopg.Error as error:
            raise explain(error, self.where, "connecting for handlers", self._schema) from error
        try:
            await self._run(link, begin)
        except psycopg.Error as error:
            self._links.give(link)
            if not (stale and is_lost(error)):
                raise explain(error, self.where, "beginning a transaction", self._schema) from error
            link = await self._begun_anew(begin)
        return PostgresTransaction(self, link)

    async def _begun_anew(self, begin: str) -> Link:
        """The connection had been closed while nobody used it."""
        try:
            link, _ = await self._links.take(new=True)
            await self._run(link, begin)
        except psycopg.Error as error:
            raise explain(error, self.where, "beginning a transaction", self._schema) from error
        return link

    async def _run(self, link: Link, begin: str) -> None:
        try:
            await link.run(begin)
        except psycopg.Error:
            raise
        except BaseException:
            link.cut()
            self._links.give(link)
            raise

    def give(self, link: Link) -> None:
        self._links.give(link)

    def explained(self, error: psycopg.Error, doing: str, *, closed: bool) -> StoreError:
        """The error of a statement of choreo's own: TransactionLostError where its deliveries are to run again one by one."""
        explained = explain(error, self.where, doing, self._schema)
        reason = _REASONS.get(error.sqlstate or "") or ("connection" if closed or is_lost(error) else None)
        return explained if reason is None else TransactionLostError(str(explained), reason=reason)

    async def close(self) -> None:
        await self._links.close()


class PostgresTransaction:
    """See `choreo.store.Transaction`. `of` are the transactions it is one of."""

    def __init__(self, of: PostgresTransactions, link: Link) -> None:
        self._of = of
        self._link = link
        self._guard: Guard | None = None
        self._inside = False
        """Whether our savepoint stands."""
        self._kept = False
        """Whether what was written since it is to be kept; it is released with the next statement of ours."""

    async def look_up(self, claims: Collection[Claim]) -> Mapping[Claim, bytes]:
        wanted = list(claims)
        async with self._explaining("looking claims up"):
            rows, _ = await self._link.run(*self._of.statements.look_up(wanted))
        return {wanted[number - 1]: payload for number, payload, *_ in rows}

    async def begin_delivery(self) -> Any:
        if not self._inside or self._kept:
            async with self._explaining("beginning a delivery"):
                await self._link.run(f"{_RELEASE}; {_SAVEPOINT}" if self._kept else _SAVEPOINT)
            self._inside, self._kept = True, False
        self._guard = Guard()
        self._link.manners.prepare()
        return guarded(self._link.connection, self._guard)

    async def keep(self) -> None:
        await self._link.come_to_rest()
        guard = self._over()
        status = self._link.status
        if status is TransactionStatus.INTRANS and guard.refused is None:
            self._kept = True
            return
        self._check(None)
        await self._roll_back()
        if guard.refused is not None:
            raise guard.refused
        raise TransientError(
            "a statement failed in context.transaction, and the handler went on as if it had not: PostgreSQL undoes all that it wrote; "
            "let the error out, or put what may fail into 'with connection.transaction():'"
        )

    async def undo(self, error: BaseException) -> None:
        await self._link.come_to_rest()
        self._over()
        self._check(error)
        reason = None if isinstance(error, HandlerError) else _reason(error)
        if reason is not None:
            raise TransactionLostError(f"{self._of.where}: {told(error)}", reason=reason) from error
        if isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_SERVER_TROUBLE):
            raise self._of.explained(error, "in a handler", closed=False) from error
        await self._roll_back()

    def _over(self) -> Guard:
        guard = self._guard
        if guard is None:
            raise StateError("keep or undo without begin_delivery")
        guard.over, self._guard = True, None
        return guard

    def _check(self, error: BaseException | None) -> None:
        """Whether the transaction can go on. Raises TransactionLostError, or StateError when it was ended behind our back."""
        status = self._link.status
        if status is TransactionStatus.UNKNOWN:
            reason = (None if error is None else _reason(error)) or "connection"
            raise TransactionLostError(f"{self._of.where}: the connection was lost", reason=reason) from error
        if status is TransactionStatus.ACTIVE:
            self._link.cut()
            raise TransactionLostError(
                f"{self._of.where}: the handler left a statement running (a COPY or stream() that was not read to its end)",
                reason="rolled-back",
            ) from error
        if status is TransactionStatus.IDLE:
            self._ended_by_a_handler(error)

    def _ended_by_a_handler(self, error: BaseException | None) -> NoReturn:
        self._link.cut()
        raise StateError(
            f"{self._of.where}: a handler ended the transaction that it shares with others, past the guard of context.transaction; what it "
            "wrote may be there without its claim: find the COMMIT or ROLLBACK in it (a cursor of its own making, a DO block), take it out, restart"
        ) from error

    async def _roll_back(self) -> None:
        """To our savepoint, which stays and serves the next delivery."""
        async with self._explaining("undoing a delivery"):
            await self._link.run(_ROLLBACK_TO)

    async def commit(self, claims: Sequence[Claim], payloads: Sequence[bytes], rows: Sequence[OutboxRow]) -> None:
        statements = self._of.statements
        if rows:
            async with self._explaining("writing to the outbox"):
                await self._link.run(*statements.add(rows))
        async with self._explaining("writing claims"):
            made, _ = await self._link.run(*statements.insert(claims, payloads))
        if len(made) != len(set(claims)):
            raise TransactionLostError(f"{self._of.where}: another member has handled one of these events meanwhile", reason="claimed")
        if failpoint.ACTIVE:
            failpoint.hit("in_store_tx")
        async with self._explaining("committing (whether it was is looked up when they run again)"):
            _, said = await self._link.run(f"{_RELEASE}; COMMIT" if self._kept else "COMMIT")
        self._inside = self._kept = False
        if said != "COMMIT":
            raise TransactionLostError(f"{self._of.where}: COMMIT was answered with {said}", reason="rolled-back")

    async def end(self) -> None:
        link = self._link
        try:
            if link.status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                await link.run("ROLLBACK")
        except psycopg.Error:
            link.cut()  # the server rolls back by itself
        except BaseException:
            link.cut()
            raise
        finally:
            self._of.give(link)

    @asynccontextmanager
    async def _explaining(self, doing: str) -> AsyncIterator[None]:
        try:
            yield
        except psycopg.Error as error:
            if error.sqlstate in _SAVEPOINT_GONE:
                self._ended_by_a_handler(error)
            raise self._of.explained(error, doing, closed=self._link.connection.closed) from error


def _reason(error: BaseException) -> str | None:
    """Why a handler's error is none of its own doing: it, or what it was raised from, is a deadlock or the like. None: it is."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, psycopg.Error) and (reason := _REASONS.get(cause.sqlstate or "")) is not None:
            return reason
        cause = cause.__cause__
    return None
