"""What happened when these events met their handlers in one transaction? A burst's walk, from BEGIN to COMMIT.

Claims are looked up first and inserted last, with the rows of what was emitted; each handler writes behind a savepoint, so that one
that fails leaves the others' writes alone. Nothing is acted on before COMMIT was acknowledged: `run_burst` gives outcomes, and its
caller (bursts.py) concludes. One story for async handlers and for plain ones: for these the store's coroutines never suspend, and
`run_now` runs the whole of it on a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import msgspec

from choreo import failpoint
from choreo.core.burst_size import LIMIT_S
from choreo.core.partition import GONE, Delivery
from choreo.errors import HandlerTimeoutError, PermanentError, StateError, TransientError
from choreo.handler import Failure, HandlerSpec
from choreo.runtime.claims import claim_of, digest, forced_run
from choreo.runtime.delivery import DONE, Duplicate, Outcome, Slot, Wiring, as_failed, context_of, refuse_awaitable
from choreo.store import Claim, OutboxRow, Transaction, Transactions
from choreo.telemetry.logs import CURRENT

_R = TypeVar("_R")

QUIET_S = 5.0
"""How long a handler that shares a transaction may be silent in it; one that has it to itself may for its `timeout_s`."""


class Ran(msgspec.Struct):
    """What became of one delivery of a burst: None when it did not begin, and is to begin again. `took_s`: the handler's time."""

    outcome: Outcome | None = None
    rows: Sequence[OutboxRow] = ()
    took_s: float = 0.0


async def run_burst(
    deliveries: Sequence[Delivery], transactions: Transactions, wiring: Wiring, slot: Slot, failure: Failure | None = None
) -> list[Ran]:
    """Runs them one after the other, in one transaction, and commits it; what became of each. With a `failure` their `recover` is
    called. Raises StoreError: then nothing of it is there, or (TransactionLostError) nobody knows, and all of them are to run again;
    StateError when a handler got past the guard of its connection."""
    if failpoint.ACTIVE:
        failpoint.hit("before_store_tx")
    alone = len(deliveries) == 1
    transaction = await transactions.begin(quiet_s=wiring.specs[deliveries[0].route.index].timeout_s if alone else QUIET_S)
    try:
        claims = [claim_of(delivery) for delivery in deliveries]
        claimed = await transaction.look_up(claims)
        ran: list[Ran] = []
        began_s = time.monotonic()
        for delivery, claim in zip(deliveries, claims, strict=True):
            if claim in claimed:
                ran.append(Ran(Duplicate(claimed[claim])))
            elif _may_begin(delivery, failure) and not (ran and time.monotonic() - began_s > LIMIT_S):
                ran.append(await _run(delivery, transaction, wiring, slot, failure))
            else:
                ran.append(Ran())
        await _commit(transaction, deliveries, claims, ran)
    finally:
        slot.delivery = None
        await transaction.end()
    return ran


def _may_begin(delivery: Delivery, failure: Failure | None) -> bool:
    """What has failed for good runs already: only a partition that is gone keeps it from its `recover`."""
    partition = delivery.partition
    return partition.state is not GONE if failure is not None else partition.may_start(delivery)


async def _commit(transaction: Transaction, deliveries: Sequence[Delivery], claims: Sequence[Claim], ran: Sequence[Ran]) -> None:
    done = [number for number, one in enumerate(ran) if one.outcome is DONE]
    if not done:
        return
    rows = [row for one in ran for row in one.rows]
    await transaction.commit([claims[number] for number in done], [digest(deliveries[number].record.value) for number in done], rows)
    if failpoint.ACTIVE:
        failpoint.hit("after_store_commit")
        if rows:
            failpoint.hit("after_outbox_commit")


async def _run(delivery: Delivery, transaction: Transaction, wiring: Wiring, slot: Slot, failure: Failure | None) -> Ran:
    """One handler's attempt, behind a savepoint. Raises StoreError, and CancelledError when it was the burst that was cancelled."""
    spec = wiring.specs[delivery.route.index]
    connection = await transaction.begin_delivery()
    slot.since_s = time.monotonic()
    slot.delivery = delivery
    attempt = wiring.tracing.attempt(delivery.wire, delivery.record, spec.name, delivery.attempts) if wiring.tracing.on else None
    problem: BaseException | None = None
    rows: Sequence[OutboxRow] = ()
    try:
        try:
            rows = await _answered(delivery, spec, connection, wiring, failure, None if attempt is None else attempt.traceparent)
        except (asyncio.CancelledError, KeyboardInterrupt) as error:
            problem = _cut_short(error, spec, slot)
        except BaseException as error:  # noqa: BLE001 - becomes a value
            problem = error
        took_s = time.monotonic() - slot.since_s
        slot.delivery = None
        await _forget_cut(slot)
        if problem is None:
            try:
                await transaction.keep()
            except (TransientError, PermanentError) as error:
                problem = error
        else:
            await transaction.undo(problem)
    finally:
        if attempt is not None:
            attempt.end(problem)
    if problem is not None:
        return Ran(as_failed(problem), took_s=took_s)
    return Ran(DONE, rows, took_s)


async def _answered(
    delivery: Delivery, spec: HandlerSpec, connection: Any, wiring: Wiring, failure: Failure | None, traceparent: str | None
) -> Sequence[OutboxRow]:
    """The handler's answer as rows of the outbox. Raises what the handler raises, and PermanentError for what may not be emitted."""
    context = context_of(delivery, spec, wiring.service, connection)
    CURRENT.set(context)
    if failpoint.ACTIVE:
        failpoint.hit("before_handler")
    answer: Any = (
        spec.handler.handle(delivery.event, context) if failure is None else spec.handler.recover(delivery.event, failure, context)
    )
    if hasattr(answer, "__await__"):
        if spec.on_thread:
            refuse_awaitable(spec, answer)
        answer = await answer
    if failpoint.ACTIVE:
        failpoint.hit("after_handler")
    if answer is None:
        return ()
    return wiring.emitter.rows(spec, delivery.wire, answer, run=forced_run(delivery), traceparent=traceparent)


def _cut_short(error: BaseException, spec: HandlerSpec, slot: Slot) -> Exception:
    """Who cancelled it? The clock: the handler's failure. A revoke, or the worker's end: the burst's, raised on."""
    if isinstance(error, KeyboardInterrupt) or slot.cut == "revoked":
        raise error
    if slot.cut == "timeout":
        return HandlerTimeoutError(f"cancelled after timeout_s={spec.timeout_s:g}")
    if slot.task is not None and slot.task.cancelling():
        raise error
    return TransientError("handle raised CancelledError by itself")


async def _forget_cut(slot: Slot) -> None:
    if slot.cut == "revoked":
        raise asyncio.CancelledError  # the handler swallowed it, but it was the burst's
    if slot.cut is not None:
        await slot.forget_cut()


def run_now(coroutine: Coroutine[Any, Any, _R]) -> _R:
    """Runs a coroutine that never suspends to its end, here and now. Raises what it raises."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: _R = end.value
        return answer
    coroutine.close()
    raise StateError("a coroutine of a store whose connections block has suspended: nobody here could wake it")
