"""What must the transactions of every store do? The docstrings of `choreo.store.Transaction` and `Outbox` as tests.

Subclass and supply the fixtures (see `Ground`); needs pytest and pytest-asyncio. For readable failures:
``pytest.register_assert_rewrite("choreo.testing.transaction_conformance")``.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, Protocol

import pytest

from choreo.errors import ChoreoError, PermanentError, StoreError, TransactionLostError
from choreo.record import Outgoing
from choreo.runtime.burst import run_now
from choreo.store import Claim, OutboxRow, Store, Transaction, Transactional, Transactions

GROUP = "payments"
QUIET_S = 5.0


class TransactionalStore(Store, Transactional, Protocol):
    """What the suite tests."""


class Ground(Protocol):
    """A database with a table of texts, ``entries``, without claims, and its store; each database is one case's own."""

    connection: type
    """What a handler asks for."""

    def store(self) -> TransactionalStore:
        """One more store on it, not opened yet."""

    def write(self, connection: Any, text: str) -> Any:
        """Inserts an entry as a handler does; on an async connection an awaitable."""

    def read(self, connection: Any) -> Any:
        """The entries as a handler sees them; on an async connection an awaitable."""

    def fail(self, connection: Any) -> Any:
        """Runs a statement that the database refuses; on an async connection an awaitable."""

    def endings(self, connection: Any) -> Sequence[Callable[[], Any]]:
        """What a handler could do that ends the transaction, or would; each may give an awaitable."""

    def entries(self) -> list[str]:
        """What is committed, sorted, seen from outside."""


async def settled(answer: Any) -> Any:
    """The answer of a connection of either kind."""
    return await answer if isinstance(answer, Awaitable) else answer


def claim(number: int | str) -> Claim:
    return Claim("book-payment", f"e{number}")


def row(number: int, key: bytes | None = b"o-1", topic: str = "payments") -> OutboxRow:
    headers = [
        ("choreo-id", f"e{number}".encode()),
        ("choreo-correlation-id", b"f1"),
        ("traceparent", b"00-x"),
        ("mine", b"\xff\0"),
        ("mine", None),
    ]
    return OutboxRow(Outgoing(topic, key, b'{"n":%d}' % number, headers), "payment.received", f"e{number}")


class TransactionConformance:
    """The cases of `choreo.store.Transaction`."""

    @pytest.fixture
    def ground(self) -> Ground:
        raise NotImplementedError("supply the database under test")

    @pytest.fixture
    def store(self, ground: Ground) -> Iterator[TransactionalStore]:
        store = ground.store()
        store.open(GROUP)
        yield store
        store.close()

    @pytest.fixture
    async def transactions(self, ground: Ground, store: TransactionalStore) -> AsyncIterator[Transactions]:
        made = store.transactions(ground.connection)
        assert made is not None
        yield made
        await made.close()

    async def one(self, transactions: Transactions, ground: Ground, number: int, rows: Sequence[OutboxRow] = ()) -> None:
        """One delivery in a transaction of its own: entry, claim and rows."""
        transaction = await transactions.begin(quiet_s=QUIET_S)
        try:
            assert not await transaction.look_up([claim(number)])
            await settled(ground.write(await transaction.begin_delivery(), f"t{number}"))
            await transaction.keep()
            await transaction.commit([claim(number)], [b"hash"], rows)
        finally:
            await transaction.end()

    def test_there_is_none_for_a_connection_of_another_kind(self, store: TransactionalStore) -> None:
        assert store.transactions(dict) is None

    async def test_writes_claims_and_rows_are_there_together_after_commit(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        assert await transaction.look_up([claim(1), claim(2)]) == {}
        for number in (1, 2):
            connection = await transaction.begin_delivery()
            assert isinstance(connection, ground.connection)
            await settled(ground.write(connection, f"t{number}"))
            await transaction.keep()
        outbox = store.outbox(GROUP)
        assert (ground.entries(), outbox.state().due) == ([], 0), "not seen before COMMIT"

        await transaction.commit([claim(2), claim(1)], [b"two", b"one"], [row(1), row(2)])
        await transaction.end()

        assert ground.entries() == ["t1", "t2"]
        assert store.payloads([claim(1), claim(2)]) == {claim(1): b"one", claim(2): b"two"}
        assert [stored.event_id for stored in outbox.due(range(16), 10)] == ["e1", "e2"]
        outbox.close()

    async def test_without_commit_nothing_is_there(self, ground: Ground, store: TransactionalStore, transactions: Transactions) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        await settled(ground.write(await transaction.begin_delivery(), "t1"))
        await transaction.keep()
        await transaction.end()

        assert ground.entries() == []
        await self.one(transactions, ground, 1)
        assert ground.entries() == ["t1"]

    async def test_what_a_failed_handler_wrote_is_undone_and_what_others_wrote_stays(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        for number, fails in enumerate([False, True, False, True, True, False]):
            await settled(ground.write(await transaction.begin_delivery(), f"t{number}"))
            if fails:
                await transaction.undo(ValueError("the handler's"))
            else:
                await transaction.keep()
        await transaction.commit([claim(0), claim(2), claim(5)], [b""] * 3, [])
        await transaction.end()

        assert ground.entries() == ["t0", "t2", "t5"]

    async def test_any_sequence_leaves_what_was_kept(self, ground: Ground, store: TransactionalStore, transactions: Transactions) -> None:
        seed = random.randrange(10**6)
        chance = random.Random(seed)
        expected: list[str] = []
        for burst in range(12):
            transaction = await transactions.begin(quiet_s=QUIET_S)
            kept: list[str] = []
            for number in range(chance.randrange(1, 6)):
                text = f"b{burst:02}-{number}"
                connection = await transaction.begin_delivery()
                if chance.random() < 0.8:
                    await settled(ground.write(connection, text))
                    wrote = True
                else:
                    wrote = False
                failed = chance.random() < 0.2
                if failed:
                    with pytest.raises(Exception):  # noqa: B017 - the driver's own
                        await settled(ground.fail(connection))
                if failed or chance.random() < 0.3:
                    await transaction.undo(ValueError("the handler's"))
                else:
                    await transaction.keep()
                    kept += [text] * wrote
            if kept and chance.random() < 0.8:
                await transaction.commit([Claim("h", text) for text in kept], [b""] * len(kept), [])
                expected += kept
            await transaction.end()

        assert ground.entries() == sorted(expected), f"seed {seed}"

    async def test_claims_that_were_committed_are_found_with_their_hash(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        store.claim([claim(1)], [b"hash of e1"])

        transaction = await transactions.begin(quiet_s=QUIET_S)
        found = await transaction.look_up([claim(1), claim(2), Claim("another", "e1"), Claim("book-payment", "e1", "run-7")])
        await transaction.end()

        assert found == {claim(1): b"hash of e1"}

    async def test_a_claim_that_another_member_made_meanwhile_loses_the_transaction(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        assert not await transaction.look_up([claim(1), claim(2)])
        store.claim([claim(2)], [b"theirs"])
        for number in (1, 2):
            await settled(ground.write(await transaction.begin_delivery(), f"t{number}"))
            await transaction.keep()

        with pytest.raises(TransactionLostError) as caught:
            await transaction.commit([claim(1), claim(2)], [b"", b"ours"], [row(1)])
        await transaction.end()

        assert caught.value.reason == "claimed"
        assert ground.entries() == []
        assert store.payloads([claim(1), claim(2)]) == {claim(2): b"theirs"}
        outbox = store.outbox(GROUP)
        assert outbox.state().due == 0
        outbox.close()

    async def test_strange_ids_are_claimed_and_found(self, ground: Ground, store: TransactionalStore, transactions: Transactions) -> None:
        strange = [Claim("h", text) for text in ("nul\0", "back\\0", "quote'\"", "ß中", "")]
        transaction = await transactions.begin(quiet_s=QUIET_S)
        await settled(ground.write(await transaction.begin_delivery(), "t"))
        await transaction.keep()
        await transaction.commit(strange, [b"x"] * len(strange), [])
        await transaction.end()

        assert store.lookup(strange) == set(strange)

    async def test_what_would_end_the_transaction_is_refused_and_the_others_of_the_burst_stay(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        probe = await transactions.begin(quiet_s=QUIET_S)
        count = len(ground.endings(await probe.begin_delivery()))
        await probe.undo(ValueError("a probe"))
        await probe.end()
        assert count > 5
        transaction = await transactions.begin(quiet_s=QUIET_S)
        await settled(ground.write(await transaction.begin_delivery(), "before"))
        await transaction.keep()
        for number in range(count):
            connection = await transaction.begin_delivery()
            await settled(ground.write(connection, f"wrong {number}"))
            with pytest.raises(Exception) as caught:
                await settled(ground.endings(connection)[number]())
            with pytest.raises(PermanentError):
                if isinstance(caught.value, PermanentError):
                    await transaction.undo(caught.value)
                    raise caught.value
                await transaction.keep()
        await settled(ground.write(await transaction.begin_delivery(), "behind"))
        await transaction.keep()
        await transaction.commit([claim(1), claim(2)], [b"", b""], [])
        await transaction.end()

        assert ground.entries() == ["before", "behind"]

    async def test_a_refusal_that_the_handler_swallowed_is_raised_at_its_end(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        connection = await transaction.begin_delivery()
        await settled(ground.write(connection, "t1"))
        with pytest.raises(Exception):  # noqa: B017
            await settled(ground.endings(connection)[0]())

        with pytest.raises(PermanentError):
            await transaction.keep()
        await settled(ground.write(await transaction.begin_delivery(), "t2"))
        await transaction.keep()
        await transaction.commit([claim(2)], [b""], [])
        await transaction.end()

        assert ground.entries() == ["t2"]

    async def test_a_connection_is_good_for_one_delivery(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        first = await transaction.begin_delivery()
        await settled(ground.write(first, "t1"))
        await transaction.keep()
        second = await transaction.begin_delivery()

        with pytest.raises(PermanentError):
            await settled(ground.write(first, "late"))
        await settled(ground.write(second, "t2"))
        await transaction.undo(ValueError("the handler's"))
        with pytest.raises(PermanentError):
            await settled(ground.write(second, "later"))
        await transaction.commit([claim(1)], [b""], [])
        await transaction.end()
        with pytest.raises(PermanentError):
            await settled(ground.read(first))

        assert ground.entries() == ["t1"]

    async def test_a_handler_sees_what_those_before_it_wrote(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        await settled(ground.write(await transaction.begin_delivery(), "t1"))
        await transaction.keep()
        seen = await settled(ground.read(await transaction.begin_delivery()))
        await transaction.keep()
        await transaction.end()

        assert seen == ["t1"]

    async def test_an_error_of_the_database_that_is_the_handlers_own_is_no_loss(
        self, ground: Ground, store: TransactionalStore, transactions: Transactions
    ) -> None:
        transaction = await transactions.begin(quiet_s=QUIET_S)
        await settled(ground.write(await transaction.begin_delivery(), "t1"))
        await transaction.keep()
        connection = await transaction.begin_delivery()
        with pytest.raises(Exception) as caught:
            await settled(ground.fail(connection))
        await transaction.undo(caught.value)
        await transaction.commit([claim(1)], [b""], [])
        await transaction.end()

        assert ground.entries() == ["t1"]

    def test_members_with_the_same_events_do_each_once(self, ground: Ground) -> None:
        """Two members, each with all of the events, in bursts and singly where a burst is lost."""
        events = list(range(40))
        problems: list[BaseException] = []

        async def handled(transactions: Transactions, numbers: list[int]) -> None:
            transaction = await transactions.begin(quiet_s=QUIET_S)
            try:
                found = await transaction.look_up([claim(number) for number in numbers])
                new = [number for number in numbers if claim(number) not in found]
                for number in new:
                    await settled(ground.write(await transaction.begin_delivery(), f"t{number:03}"))
                    await transaction.keep()
                if new:
                    await transaction.commit([claim(number) for number in new], [b""] * len(new), [row(number) for number in new])
            finally:
                await transaction.end()

        async def member(store: TransactionalStore, seed: int) -> None:
            transactions = store.transactions(ground.connection)
            assert transactions is not None
            chance, left = random.Random(seed), list(events)
            while left:
                size = chance.randrange(1, 9)
                taken, left = left[:size], left[size:]
                try:
                    await handled(transactions, taken)
                except TransactionLostError:
                    for number in taken:
                        await until_it_goes(lambda number=number: handled(transactions, [number]))  # type: ignore[misc]
            await transactions.close()

        async def until_it_goes(attempt: Callable[[], Coroutine[Any, Any, None]]) -> None:
            while True:
                try:
                    return await attempt()
                except TransactionLostError:
                    await asyncio.sleep(0.01)

        def run(seed: int) -> None:
            try:
                store = ground.store()
                store.open(GROUP)
                asyncio.run(member(store, seed))
                store.close()
            except BaseException as problem:  # noqa: BLE001 - told by the test
                problems.append(problem)

        threads = [threading.Thread(target=run, args=[seed]) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert not problems
        assert ground.entries() == [f"t{number:03}" for number in events]
        outbox = ground.store().outbox(GROUP)
        assert sorted(stored.event_id for stored in outbox.due(range(16), 100)) == sorted(f"e{number}" for number in events)
        outbox.close()

    async def test_a_blocking_one_never_suspends(self, ground: Ground, store: TransactionalStore, transactions: Transactions) -> None:
        if not transactions.blocking:
            return

        async def walk() -> None:
            transaction = await transactions.begin(quiet_s=QUIET_S)
            await transaction.look_up([claim(1)])
            ground.write(await transaction.begin_delivery(), "t1")
            await transaction.keep()
            ground.write(await transaction.begin_delivery(), "t2")
            await transaction.undo(ValueError("the handler's"))
            await transaction.commit([claim(1)], [b""], [row(1)])
            await transaction.end()

        await asyncio.to_thread(run_now, walk())

        assert ground.entries() == ["t1"]

    async def test_an_error_of_the_store_says_what_it_was_doing(self, ground: Ground) -> None:
        store = ground.store()
        transactions = store.transactions(ground.connection)
        assert transactions is not None

        with pytest.raises(ChoreoError) as caught:
            await self._begun_and_looked_up(transactions)

        assert isinstance(caught.value, StoreError)
        assert not caught.value.retriable, "it was never opened"

    async def _begun_and_looked_up(self, transactions: Transactions) -> None:
        transaction: Transaction | None = None
        try:
            transaction = await transactions.begin(quiet_s=QUIET_S)
            await transaction.look_up([claim(1)])
        finally:
            if transaction is not None:
                await transaction.end()
            await transactions.close()
