"""How does one bulk call serve many handlers? They wait together, are flushed together, and each gets its own answer.

There are no batch handlers: each event keeps its own attempts, retry and letter, also when it shared a call with others.
"""

from __future__ import annotations

import asyncio
import inspect
from asyncio import AbstractEventLoop, Future, TimerHandle
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from typing import Any, Generic, NamedTuple, TypeVar, overload

from choreo.errors import ConfigurationError, PermanentError, TransientError, told

Item = TypeVar("Item")
Result = TypeVar("Result")
Written = TypeVar("Written")

MOST_ITEMS = 100_000
MOST_WAIT_S = 60.0


class _Waiter(NamedTuple, Generic[Item, Result]):
    item: Item
    answer: Future[Result]


class Batcher(Generic[Item, Result]):
    """Collects what is added, and calls `flush` with a list of it: when `max_items` have come together, or when the first has
    waited for `max_wait_s` seconds.

    `flush` is an ``async def``, or a plain function, which runs on a thread. It returns a list of results in the order of its
    items, or None: then None is everybody's result. What it raises is raised for each that waits for that call. Calls may
    overlap, and none belongs to one event: log lines in them carry no flow. Owner: the event loop that `add` is called on.
    May be made at import. Raises ConfigurationError.
    """

    @overload
    def __init__(
        self: Batcher[Written, None],
        flush: Callable[[list[Written]], Awaitable[None] | None],
        *,
        max_items: int = 500,
        max_wait_s: float = 0.05,
    ) -> None: ...
    @overload
    def __init__(
        self,
        flush: Callable[[list[Item]], Awaitable[Sequence[Result]] | Sequence[Result]],
        *,
        max_items: int = 500,
        max_wait_s: float = 0.05,
    ) -> None: ...
    def __init__(self, flush: Callable[[list[Any]], Any], *, max_items: int = 500, max_wait_s: float = 0.05) -> None:
        if not 1 <= max_items <= MOST_ITEMS:
            raise ConfigurationError(f"Batcher: max_items={max_items}; use 1 to {MOST_ITEMS}")
        if not 0 <= max_wait_s <= MOST_WAIT_S:
            raise ConfigurationError(f"Batcher: max_wait_s={max_wait_s}; use 0 to {MOST_WAIT_S:g}")
        self._flush = flush
        self._max_items = max_items
        self._max_wait_s = max_wait_s
        # A call is made for many: it must not run as if it were a part of whichever event came first.
        self._context = copy_context()
        self._loop: AbstractEventLoop | None = None
        self._waiting: list[_Waiter[Item, Result]] = []
        self._timer: TimerHandle | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def add(self, item: Item) -> Result:
        """The item's own result, once the call it went with has ended. Raises what that call raised, and PermanentError when it
        didn't answer for each item. One who is cancelled while waiting leaves alone, and the call goes on."""
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # Whoever waited on another loop has gone with it.
            self._loop, self._waiting, self._timer = loop, [], None
        answer: Future[Result] = loop.create_future()
        self._waiting.append(_Waiter(item, answer))
        if len(self._waiting) >= self._max_items:
            self._begin()
        elif self._timer is None:
            self._timer = loop.call_later(self._max_wait_s, self._begin, context=self._context.copy())
        return await answer

    def _begin(self) -> None:
        assert self._loop is not None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # A handler that was cancelled meanwhile runs again, and adds its item again.
        waiting, self._waiting = [waiter for waiter in self._waiting if not waiter.answer.done()], []
        if waiting:
            call = self._loop.create_task(self._call(waiting), context=self._context.copy())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, waiting: Sequence[_Waiter[Item, Result]]) -> None:
        try:
            results = await self._results([waiter.item for waiter in waiting])
        except (asyncio.CancelledError, KeyboardInterrupt):
            for waiter in waiting:
                waiter.answer.cancel()
            raise
        except BaseException as error:  # noqa: BLE001 - it is for those who wait: each raises it in its own handler
            for waiter in waiting:
                if not waiter.answer.done():
                    waiter.answer.set_exception(_raisable(error))
            return
        for waiter, result in zip(waiting, results, strict=True):
            if not waiter.answer.done():
                waiter.answer.set_result(result)

    async def _results(self, items: list[Item]) -> Sequence[Any]:
        """One for each item."""
        expected = len(items)
        if inspect.iscoroutinefunction(self._flush):
            results = await self._flush(items)
        else:
            results = await asyncio.to_thread(_called, self._flush, items)
            if inspect.isawaitable(results):
                results = await results
        if results is None:
            return [None] * expected
        if not isinstance(results, list | tuple):
            raise PermanentError(f"{self._name()} returned {type(results).__name__}; return a list with a result for each item, or None")
        if len(results) != expected:
            raise PermanentError(
                f"{self._name()} was given {expected} items and returned {len(results)} results; return one for each, in order, or None"
            )
        return results

    def _name(self) -> str:
        return f"Batcher: {getattr(self._flush, '__qualname__', type(self._flush).__qualname__)}"


def _called(flush: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    try:
        return flush(items)
    except StopIteration as error:
        # A future can't hold one: whoever waited would wait for ever.
        raise _raisable(error) from error


def _raisable(error: BaseException) -> Exception:
    """The error as a handler may raise it: one that would end the process ends an attempt."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    made = TransientError(f"flush raised {type(error).__qualname__}: {told(error)}")
    made.__cause__ = error
    return made
