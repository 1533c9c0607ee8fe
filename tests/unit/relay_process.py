"""What is one process of a service, to its relay? An event loop by the world's clock, a way to the rows that may break, an end at any moment.

It has the real `OutboxRelay` and the real `Sends`. A stopped process (SIGSTOP) is one whose loop isn't run. Of a call of the outbox both halves
(it is done, it is answered) may come late.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any

from choreo.errors import StoreError
from choreo.runtime.outbox_relay import OutboxRelay
from choreo.runtime.sends import Sends
from choreo.storage.memory_outbox import MemoryOutbox
from choreo.store import OutboxState, StoredRow
from choreo.telemetry.counters import Counters
from tests.unit.relay_world import ASIDE_AFTER_S, Kafka, World

LEASE_S = 2.0


class Loop(asyncio.SelectorEventLoop):
    """Runs by the world's clock. What it would run on a thread is done, and answered, somewhat later."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._thread_free_s = 0.0
        super().__init__()

    def time(self) -> float:
        return self._world.now_s

    def once(self) -> None:
        """What is to be done by now, once."""
        self.call_soon(self.stop)
        self.run_forever()

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        answered: asyncio.Future[Any] = self.create_future()

        def do() -> None:
            if answered.cancelled() and self._world.dice.random() < 0.5:
                return  # it had not begun yet
            try:
                result, error = func(*args), None
            except StoreError as raised:
                result, error = None, raised
            self.call_later(self._delay_s(), answer, result, error)

        def answer(result: Any, error: StoreError | None) -> None:
            if answered.cancelled():
                return
            if error is None:
                answered.set_result(result)
            else:
                answered.set_exception(error)

        # One thread: what was asked first is done first, also when nobody waits for it any more.
        self._thread_free_s = max(self._thread_free_s + 1e-6, self.time() + self._delay_s())
        self.call_at(self._thread_free_s, do)
        return answered

    def _delay_s(self) -> float:
        return self._world.dice.choice((0.0, 0.0, 0.3, 1.0)) * self._world.weather.slow_s


class _Line:
    """A process's way to the outbox, which may break before or after what was asked is done."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process
        self._outbox = MemoryOutbox("shop", shared_with=world.rows)

    def _asked(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        world, broken = self._world, False
        if world.dice.random() < world.weather.store:
            world.sights["a call of the outbox that failed"] += 1
            broken = True
            if world.dice.random() < 0.5:
                raise StoreError("the database is away")
        answer = function(*args, **options)
        if broken:
            raise StoreError("the database gave no answer")
        return answer

    def lease(self, relay: str, lasts_s: float) -> Collection[int]:
        found: Collection[int] = self._asked(self._outbox.lease, relay, lasts_s)
        return found

    def due(self, shards: Collection[int], limit: int, *, beside: Collection[tuple[str, bytes | None]] = ()) -> Sequence[StoredRow]:
        found: Sequence[StoredRow] = self._asked(self._outbox.due, shards, limit, beside=beside)
        return found

    def published(self, seqs: Collection[int]) -> None:
        self._world.deleted(seqs)
        self._asked(self._outbox.published, seqs)

    def set_aside(self, seq: int, reason: str) -> None:
        self._world.set_aside(self._process.name, seq)
        self._asked(self._outbox.set_aside, seq, reason)

    def state(self) -> OutboxState:
        found: OutboxState = self._asked(self._outbox.state)
        return found

    def close(self) -> None:
        self._outbox.close()


MakeRelay = Callable[..., OutboxRelay]


class Process:
    """One process of the service, from its start to its end."""

    def __init__(self, world: World, make_relay: MakeRelay) -> None:
        self._world = world
        self.name = f"relay-{next(world.relays)}"
        self.loop = Loop(world)
        self.kafka = Kafka(world, self.name)
        self.stopped_until_s = 0.0
        self.trouble: list[BaseException] = []
        self._relay: OutboxRelay | None = None
        self._sends: Sends | None = None
        self.ended = False
        self.loop.set_exception_handler(self._unhandled)
        self._task = self.loop.create_task(self._live(make_relay))

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.trouble.append(context.get("exception") or RuntimeError(context["message"]))

    async def _live(self, make_relay: MakeRelay) -> None:
        counters = Counters()
        self._sends = Sends(self.kafka, counters, self.trouble.append)
        self._relay = make_relay(_Line(self._world, self), self._sends, counters, lease_s=LEASE_S, aside_after_s=ASIDE_AFTER_S)
        self._relay.name = self.name
        self._relay.started = self.loop.create_task(self._relay.run())
        await asyncio.wait({self._relay.started})
        if not self._relay.started.cancelled() and (error := self._relay.started.exception()) is not None:
            self.trouble.append(error)

    @property
    def stopped(self) -> bool:
        return self._world.now_s < self.stopped_until_s

    def go(self) -> None:
        self.kafka.go(stopped=self.stopped)
        if not self.stopped:
            self.loop.once()
        if self.trouble:
            raise self.trouble[0]

    def wake(self) -> None:
        if self._relay is not None:
            self._relay.wake()

    def leave(self) -> None:
        """Stops in peace: SIGTERM."""
        self._leaving = self.loop.create_task(self._leave())

    async def _leave(self) -> None:
        if self._relay is not None and self._sends is not None:
            await self._relay.close()
            self._sends.close(0)
        self.ended = True

    def die(self) -> None:
        """kill -9: nothing of it runs any more, and what it had asked for and was not done never is."""
        self.kafka.die()
        self.bury()

    def bury(self) -> None:
        self.loop.run_in_executor = lambda *_: self.loop.create_future()  # type: ignore[method-assign]
        if self._sends is not None:
            self._sends.close(0)
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop._scheduled.clear()  # type: ignore[attr-defined]
        for _ in range(5):
            self.loop.once()
        self.loop.close()
