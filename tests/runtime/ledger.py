"""A database for the runtime's tests: handlers write into a ledger in memory, in transactions that the test can make fail at any step.

It keeps the contract of choreo.store.Transactions, for what a real database does about locks and crashes see tests/conformance and
tests/chaos.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from choreo.errors import PermanentError, StoreError, TransactionLostError
from choreo.storage.memory import MemoryStore
from choreo.store import Claim, Outbox, OutboxRow, OutboxState, StoredRow

Hook = Callable[[str, "LedgerTransaction"], Awaitable[None] | None]


class Ledger:
    """What an ``async def`` handler writes into: ``await context.transaction.write("e1")``."""

    def __init__(self, transaction: LedgerTransaction) -> None:
        self._transaction = transaction
        self.over = False

    async def write(self, text: str) -> None:
        self.write_now(text)

    def write_now(self, text: str) -> None:
        if self.over:
            raise PermanentError("this connection was good for one delivery, which is over")
        self._transaction.writes.append(text)


class PlainLedger(Ledger):
    """What a plain ``def`` handler writes into, by `write_now`."""


class LedgerStore(MemoryStore):
    """Claims in memory, and a ledger that is written in transactions. `hook` is called at each step of each transaction (begin,
    look_up, begin_delivery, keep, undo, commit, committed, end): it may raise what a database would, or wait."""

    def __init__(self, *, shared_with: LedgerStore | None = None, most: int = 2, largest: int = 32) -> None:
        super().__init__(shared_with=shared_with)
        self.most, self.largest = most, largest
        self.committed: list[str] = shared_with.committed if shared_with is not None else []
        self.rows: list[OutboxRow] = shared_with.rows if shared_with is not None else []
        self.bursts: list[int] = []
        """How many deliveries each transaction looked up."""
        self.open_now = 0
        self.hook: Hook = lambda step, transaction: None

    def transactions(self, connection: type) -> LedgerTransactions | None:
        return LedgerTransactions(self, connection) if connection in (Ledger, PlainLedger) else None

    def add(self, connection: Any, group: str, rows: Sequence[OutboxRow]) -> Any:
        raise NotImplementedError

    def outbox(self, group: str) -> Outbox:
        return NobodysOutbox()


class NobodysOutbox:
    """See `choreo.store.Outbox`. It has no shard for anybody: what was committed stays in `LedgerStore.rows`."""

    def lease(self, relay: str, lasts_s: float) -> Collection[int]:
        return ()

    def due(self, shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        return ()

    def published(self, seqs: Collection[int]) -> None:
        raise AssertionError("nothing was published")

    def set_aside(self, seq: int, reason: str) -> None:
        raise AssertionError("nothing was published")

    def state(self) -> OutboxState:
        return OutboxState(0, 0.0, 0, 0)

    def close(self) -> None:
        """Nothing is its own."""


class LedgerTransactions:
    """See `choreo.store.Transactions`."""

    def __init__(self, store: LedgerStore, connection: type) -> None:
        self.store = store
        self.connection = connection
        self.blocking = connection is PlainLedger
        self.most, self.largest = store.most, store.largest

    async def begin(self, *, quiet_s: float) -> LedgerTransaction:
        transaction = LedgerTransaction(self, quiet_s)
        await transaction.step("begin")
        self.store.open_now += 1
        return transaction

    async def close(self) -> None:
        """Nothing is its own."""


class LedgerTransaction:
    """See `choreo.store.Transaction`."""

    _committing = threading.Lock()

    def __init__(self, transactions: LedgerTransactions, quiet_s: float) -> None:
        self._of = transactions
        self._store = transactions.store
        self.quiet_s = quiet_s
        self.writes: list[str] = []
        self._mark = 0
        self._handle: Ledger | None = None

    async def step(self, name: str) -> None:
        waiting = self._store.hook(name, self)
        if waiting is not None:
            await waiting

    async def look_up(self, claims: Collection[Claim]) -> Mapping[Claim, bytes]:
        await self.step("look_up")
        self._store.bursts.append(len(claims))
        return self._store.payloads(claims)

    async def begin_delivery(self) -> Any:
        await self.step("begin_delivery")
        self._mark = len(self.writes)
        self._handle = self._of.connection(self)
        return self._handle

    async def keep(self) -> None:
        self._over()
        await self.step("keep")

    async def undo(self, error: BaseException) -> None:
        self._over()
        await self.step("undo")
        if isinstance(error, TransactionLostError):
            raise error
        del self.writes[self._mark :]

    def _over(self) -> None:
        if self._handle is not None:
            self._handle.over = True

    async def commit(self, claims: Sequence[Claim], payloads: Sequence[bytes], rows: Sequence[OutboxRow]) -> None:
        await self.step("commit")
        with self._committing:
            if self._store.lookup(claims):
                raise TransactionLostError("claimed by another member", reason="claimed")
            self._store.claim(claims, payloads)
            self._store.committed.extend(self.writes)
            self._store.rows.extend(rows)
        await self.step("committed")

    async def end(self) -> None:
        self._store.open_now -= 1
        await self.step("end")


def times(count: int, step: str, make: Callable[[], Exception]) -> Hook:
    """Raises at the first `count` times of a step."""
    left = [count]

    def hook(name: str, transaction: LedgerTransaction) -> None:
        if name == step and left[0]:
            left[0] -= 1
            raise make()

    return hook


def deadlock() -> TransactionLostError:
    return TransactionLostError("deadlock detected, as the test asked", reason="deadlock")


def unanswered() -> TransactionLostError:
    return TransactionLostError("COMMIT was sent and not answered, as the test asked", reason="connection")


def down() -> StoreError:
    return StoreError("the database is away, as the test asked", retriable=True)
