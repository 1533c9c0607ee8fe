"""Where do plain `def` handlers run? A fixed set of threads that take deliveries from a queue and give outcomes back.

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

from choreo.core.engine import Delivery
from choreo.runtime.delivery import Outcome, Wiring, deliver_on_thread


class Threads:
    """Owner: the event loop; the threads touch the queue and `_ended` only, and ask `partition.may_start`."""

    def __init__(self, count: int, wiring: Wiring, ended: Callable[[Delivery, Outcome | None], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._wiring = wiring
        self._call = ended
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
        while ended:
            self._call(*ended.popleft())

    def close(self) -> None:
        """Tells the threads to end after what they run; doesn't wait for them."""
        for _ in self._threads:
            self._todo.put(None)
