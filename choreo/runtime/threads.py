"""Where do plain `def` functions of handlers run? `handle` on a fixed set of threads that take deliveries from a queue and give
outcomes back; `recover`, which is rare, each on a thread of its own.

The loop hands over and takes back in bulk: one wake-up serves everything that has come meanwhile. Each attempt runs in
a copy of an empty context, so that context variables set in one handler are not seen by the next.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from typing import TypeVar

from choreo.core.partition import Delivery
from choreo.runtime.delivery import Outcome, Wiring, deliver_on_thread

_R = TypeVar("_R")


class Threads:
    """Owner: the event loop; the threads touch the queue and `_ended` only, and ask `partition.may_start`. What concluding an
    outcome raises goes to `failed`."""

    def __init__(
        self, count: int, wiring: Wiring, ended: Callable[[Delivery, Outcome | None], None], failed: Callable[[BaseException], None]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._wiring = wiring
        self._call = ended
        self._failed = failed
        self._todo: SimpleQueue[Delivery | None] = SimpleQueue()
        self._ended: deque[tuple[Delivery, Outcome | None]] = deque()
        self._told = False
        self._count = count
        self._threads: list[threading.Thread] = []
        self.running: dict[int, tuple[Delivery, float]] = {}
        """By thread: what it runs and since when (monotonic seconds)."""

    def put(self, delivery: Delivery) -> None:
        """Runs it on the next free thread; the outcome comes to `ended` on the loop, None when it was revoked before."""
        if not self._threads:
            self._start()
        self._todo.put(delivery)

    def _start(self) -> None:
        for number in range(self._count):
            thread = threading.Thread(target=self._run, args=(number,), name=f"choreo-handler-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, number: int) -> None:
        while (delivery := self._todo.get()) is not None:
            outcome: Outcome | None = None
            if delivery.partition.may_start(delivery):
                self.running[number] = (delivery, time.monotonic())
                outcome = Context().run(deliver_on_thread, delivery, self._wiring)
                self.running.pop(number, None)
            self._ended.append((delivery, outcome))
            if not self._told:
                self._told = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:
                    return  # the loop is closed: the worker has stopped, this outcome is late

    def _collect(self) -> None:
        self._told = False
        ended = self._ended
        try:
            while ended:
                self._call(*ended.popleft())
        except Exception as error:  # noqa: BLE001 - a callback of the loop has no caller: whoever runs the worker is told
            self._failed(error)

    def close(self) -> None:
        """Tells the threads to end after what they run; doesn't wait for them."""
        for _ in self._threads:
            self._todo.put(None)


class Asides:
    """Runs a plain function on a daemon thread of its own and waits for it, at most `most` at once: one that never returns holds
    neither the loop's executor nor the end of the process. Owner: the event loop."""

    def __init__(self, most: int) -> None:
        self._places = asyncio.Semaphore(most)

    async def run(self, function: Callable[[], _R]) -> _R:
        """Its answer. Cancelled, it goes on, and its place is free when it has ended."""
        await self._places.acquire()
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Callable[[], _R]] = loop.create_future()

        def end(answer: Callable[[], _R]) -> None:
            self._places.release()
            if not ended.done():
                ended.set_result(answer)

        def aside() -> None:
            answer = _kept(function)
            try:
                loop.call_soon_threadsafe(end, answer)
            except RuntimeError:
                return  # the loop is closed: nobody waits any more

        threading.Thread(target=aside, name="choreo-aside", daemon=True).start()
        return (await ended)()


def _kept(function: Callable[[], _R]) -> Callable[[], _R]:
    """Calls it now; a function that gives its answer, or raises what it raised, later."""
    try:
        made = function()
    except BaseException as error:  # noqa: BLE001 - handed to whoever waits
        problem = error

        def raises() -> _R:
            raise problem

        return raises
    return lambda: made
