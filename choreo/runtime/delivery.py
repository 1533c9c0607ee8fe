"""What happened when this event met this handler? One delivery's attempt, from claim to answer.

The other half of the story is `Worker.turn` in worker.py: it takes a delivery, calls `deliver`, and concludes.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from typing import Any, Literal, NoReturn, TypeAlias

import msgspec

from choreo import failpoint
from choreo.core.partition import Delivery
from choreo.errors import DecodeError, HandlerTimeoutError, PermanentError, TransientError, told
from choreo.handler import Context, Failure, HandlerSpec
from choreo.record import Outgoing
from choreo.runtime.claims import Claims, forced_run
from choreo.runtime.emitting import Emitter
from choreo.telemetry.logs import CURRENT
from choreo.telemetry.tracing import Tracing


class Done(msgspec.Struct, frozen=True, gc=False):
    """The handler succeeded and emitted nothing."""


class Duplicate(msgspec.Struct, frozen=True, gc=False):
    """It had succeeded before: the handler did not run. `payload`: the hash that stood beside its claim, where a burst found it."""

    payload: bytes = b""


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """The same claim is running in another lane: it begins again when that one ends."""


class Emitted(msgspec.Struct, frozen=True):
    """The handler succeeded; it is done when these are acknowledged."""

    records: list[Outgoing]


class Failed(msgspec.Struct, frozen=True):
    """The attempt failed."""

    error: Exception


Outcome: TypeAlias = Done | Duplicate | Waiting | Emitted | Failed

DONE = Done()
DUPLICATE = Duplicate()
WAITING = Waiting()


class Slot:
    """One task that calls handlers: what it runs, since when, and why it was cut short."""

    __slots__ = ("cut", "delivery", "since_s", "task")

    def __init__(self) -> None:
        self.delivery: Delivery | None = None
        self.since_s = 0.0
        self.cut: Literal["timeout", "revoked"] | None = None
        self.task: asyncio.Task[None] | None = None

    async def forget_cut(self) -> None:
        """Also when the handler swallowed the cancellation and answered, or cancelled itself: what follows is not to pay for it."""
        self.cut = None
        while self.task is not None and self.task.uncancel():
            pass
        try:
            await asyncio.sleep(0)  # before Python 3.13 what is still pending comes all the same
        except asyncio.CancelledError:
            pass


class Wiring(msgspec.Struct, frozen=True):
    """What a delivery needs beside itself. `claims` None: effects are `offsets`."""

    service: str
    specs: Mapping[int, HandlerSpec]
    emitter: Emitter
    claims: Claims | None
    tracing: Tracing


async def deliver(delivery: Delivery, wiring: Wiring) -> Outcome:
    """One attempt of an `async def` handler. Never raises but CancelledError."""
    event = delivery.event
    attempt = None
    problem: BaseException | None = None
    try:
        if type(event) is DecodeError:
            return Failed(event)  # not raised: see reading.py, `_as_value`
        if wiring.claims is not None:
            if not wiring.claims.is_fresh(delivery):
                await wiring.claims.look_up((delivery,))
            claimed = wiring.claims.begin(delivery)
            if claimed is not False:
                return DUPLICATE if claimed else WAITING
        spec = wiring.specs[delivery.route.index]
        context = context_of(delivery, spec, wiring.service)
        attempt = wiring.tracing.attempt(delivery.wire, delivery.record, spec.name, delivery.attempts) if wiring.tracing.on else None
        CURRENT.set(context)
        if failpoint.ACTIVE:
            failpoint.hit("before_handler")
        answer = await spec.handler.handle(event, context)  # type: ignore[misc]
        if failpoint.ACTIVE:
            failpoint.hit("after_handler")
        if answer is None:
            return DONE
        return answered(delivery, spec, answer, wiring, None if attempt is None else attempt.traceparent)
    except (asyncio.CancelledError, KeyboardInterrupt) as error:
        problem = error
        raise
    except BaseException as error:  # noqa: BLE001 - becomes a value
        problem = error
        return as_failed(error)
    finally:
        if attempt is not None:
            attempt.end(problem)


def deliver_on_thread(delivery: Delivery, wiring: Wiring) -> Outcome:
    """One attempt of a plain `def` handler, in a worker thread. Its claim was begun by the event loop."""
    spec = wiring.specs[delivery.route.index]
    attempt = None
    problem: BaseException | None = None
    try:
        context = context_of(delivery, spec, wiring.service)
        attempt = wiring.tracing.attempt(delivery.wire, delivery.record, spec.name, delivery.attempts) if wiring.tracing.on else None
        CURRENT.set(context)
        if failpoint.ACTIVE:
            failpoint.hit("before_handler")
        answer: Any = spec.handler.handle(delivery.event, context)
        if failpoint.ACTIVE:
            failpoint.hit("after_handler")
        if hasattr(answer, "__await__"):
            refuse_awaitable(spec, answer)
        return answered(delivery, spec, answer, wiring, None if attempt is None else attempt.traceparent)
    except BaseException as error:  # noqa: BLE001 - becomes a value: a thread that ended of SystemExit would take its event with it
        problem = error
        return as_failed(error)
    finally:
        if attempt is not None:
            attempt.end(problem)


def refuse_awaitable(spec: HandlerSpec, answer: Any) -> NoReturn:
    """A plain function's answer has to be awaited, and nobody could."""
    if hasattr(answer, "close"):
        answer.close()
    raise PermanentError(
        f"{spec.name}: handle is no coroutine function but returned an awaitable: a decorator hides its 'async def'; "
        "make the decorator's wrapper 'async def' too"
    )


def as_failed(error: BaseException) -> Failed:
    """What a handler raised, as an outcome; also what is no Exception."""
    if isinstance(error, Exception):
        return Failed(error)
    made = TransientError(f"it raised {type(error).__qualname__}: {told(error)}")
    made.__cause__ = error
    return Failed(made)


def answered(delivery: Delivery, spec: HandlerSpec, answer: object, wiring: Wiring, traceparent: str | None) -> Outcome:
    """A handler's answer as an outcome. Raises PermanentError for what may not be emitted."""
    if answer is None:
        return DONE
    records = wiring.emitter.outgoing(spec, delivery.wire, answer, run=forced_run(delivery), traceparent=traceparent)
    return Emitted(records) if records else DONE


Aside: TypeAlias = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a plain function on a thread and waits for it."""


async def recover(delivery: Delivery, failure: Failure, wiring: Wiring, aside: Aside) -> Outcome:
    """The handler's last resort: its final failure turned into emits, within `timeout_s`. Never raises but CancelledError.

    A plain `def recover` can't be cut short: its lane goes on without it, to the letter.
    """
    spec = wiring.specs[delivery.route.index]
    limit = asyncio.timeout(spec.timeout_s)
    try:
        context = context_of(delivery, spec, wiring.service)
        CURRENT.set(context)
        async with limit:
            if inspect.iscoroutinefunction(spec.handler.recover):
                answer: Any = await spec.handler.recover(delivery.event, failure, context)
            else:
                of_this = copy_context()
                answer = await aside(lambda: of_this.run(spec.handler.recover, delivery.event, failure, context))
        return answered(delivery, spec, answer, wiring, None)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - becomes a value
        if isinstance(error, TimeoutError) and limit.expired():
            return Failed(HandlerTimeoutError(f"recover did not end within timeout_s={spec.timeout_s:g}"))
        return as_failed(error)


def context_of(delivery: Delivery, spec: HandlerSpec, service: str, transaction: Any = None) -> Context[Any]:
    """What the handler may know about this delivery."""
    return Context(
        service,
        spec.name,
        delivery.attempts,
        spec.retry.max_attempts,
        delivery.run,
        transaction,
        delivery.record,
        delivery.wire,
        spec.identity,
    )
