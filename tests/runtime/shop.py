"""The shop of the runtime's tests: its events, handlers that do what a test tells them, and its service on the memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

import orjson

from choreo.core.retry import RetryPolicy
from choreo.envelope import ID, Envelope
from choreo.events import Event
from choreo.handler import Context, Handler
from choreo.record import Outgoing, TopicPartition
from choreo.runtime.worker import Plan, Worker
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.storage.memory import MemoryStore
from choreo.store import Claim, Store
from choreo.testing import MemoryBroker

DEADLINE_S = 5.0
SHOP = "shop"
P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
ONCE = RetryPolicy(max_attempts=1)
TWICE = RetryPolicy(max_attempts=2, base_delay_s=0.0)


class Placed(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class Paid(Event, type="order.paid", topic="answers", key="order_id"):
    order_id: str


class Refused(Event, type="order.refused", topic="answers", key="order_id"):
    order_id: str


# ---- what handles ---------------------------------------------------------------------------------------------------------

Act = Callable[[Context], Awaitable[None]]
PlainAct = Callable[[Context], None]


async def nothing(context: Context) -> None:
    """Does nothing."""


def plainly_nothing(context: Context) -> None:
    """Does nothing."""


class Book(Handler[Placed]):
    """Keeps the ids of the events that it is called for, then does what it was told; `done` are those it did to the end."""

    def __init__(self, act: Act = nothing, *, retry: RetryPolicy = ONCE, timeout_s: float = 60.0, ordered: bool = True) -> None:
        self.calls: list[str] = []
        self.done: list[str] = []
        self.retry, self.timeout_s, self.ordered = retry, timeout_s, ordered
        self._act = act

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.calls.append(context.event_id)
        await self._act(context)
        self.done.append(context.event_id)


class File(Handler[Placed]):
    """`Book`, as a plain ``def``."""

    def __init__(self, act: PlainAct = plainly_nothing, *, retry: RetryPolicy = ONCE, timeout_s: float = 60.0) -> None:
        self.calls: list[str] = []
        self.retry, self.timeout_s = retry, timeout_s
        self._act = act

    def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.calls.append(context.event_id)
        self._act(context)


# ---- where it runs --------------------------------------------------------------------------------------------------------


def shop_broker(*, partitions: int = 1) -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic("orders", partitions=partitions)
    for topic in ("answers", f"{SHOP}.dlq", f"{SHOP}.letters", f"{SHOP}.replay"):
        broker.create_topic(topic)
    return broker


def place(broker: MemoryBroker, *event_ids: str, key: str | None = None, partition: int | None = None, value: bytes | None = None) -> None:
    """Writes an order a piece, under its own id as its key where no other is given."""
    for event_id in event_ids:
        broker.write(Outgoing("orders", (key or event_id).encode(), value or placed(event_id), [(ID, event_id.encode())], partition))


def placed(order_id: str) -> bytes:
    return orjson.dumps({"type": "order.placed", "timestamp": "2026-11-22T22:36:07Z", "payload": {"order_id": order_id}})


def numbered(count: int) -> list[str]:
    return [f"e{number}" for number in range(count)]


class _Shop(Service):
    """`revoke_s` is no setting of a service."""

    revoke_s = 8.0

    def plan(self, settings: ServiceSettings) -> Plan:
        return replace(super().plan(settings), revoke_s=self.revoke_s)


def shop(
    broker: MemoryBroker,
    *handlers: Handler[Placed, Any],
    store: Store | None = None,
    concurrency: int = 256,
    threads: int = 32,
    drain_s: float = 1.0,
    revoke_s: float = 8.0,
    accept_lost_offsets: bool = False,
) -> Service:
    """The service; its claims in `store`."""
    settings = ServiceSettings(
        broker=broker, concurrency=concurrency, threads=threads, drain_s=drain_s, accept_lost_offsets=accept_lost_offsets
    )
    service = _Shop(SHOP, handlers=handlers, publishes=[Paid, Refused], store=store or MemoryStore(), settings=settings)
    service.revoke_s = revoke_s
    return service


class GuardedStore(MemoryStore):
    """Calls `guard` with each look-up, in the store's thread, before it answers."""

    def __init__(self, guard: Callable[[Collection[Claim]], None], *, shared_with: MemoryStore | None = None) -> None:
        super().__init__(shared_with=shared_with)
        self._guard = guard

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        self._guard(claims)
        return super().lookup(claims)


# ---- looking --------------------------------------------------------------------------------------------------------------


def committed(broker: MemoryBroker, partition: TopicPartition = P0) -> int | None:
    return broker.committed(SHOP).get(partition)


def answers(broker: MemoryBroker) -> list[str]:
    """The types of the events that were emitted."""
    return [orjson.loads(record.value or b"")["type"] for record in broker.records("answers")]


async def becomes(condition: Callable[[], object], what: str, *workers: Worker) -> None:
    """Waits until it is so; raises what one of `workers` failed with meanwhile."""
    ends_at = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        for worker in workers:
            if worker.failure.done():
                worker.failure.result()
        assert asyncio.get_running_loop().time() < ends_at, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.001)


async def has_failed(worker: Worker) -> BaseException | None:
    """What the worker failed with, when it has."""
    await becomes(worker.failure.done, "the worker has failed")
    return worker.failure.exception()
