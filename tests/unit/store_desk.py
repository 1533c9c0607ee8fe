"""The services that the tests of ``choreo store`` mean; DESK_DATABASE is the conninfo of their PostgreSQL."""

from __future__ import annotations

import os

from choreo import Context, Envelope, Event, Handler, MemoryStore, PostgresStore, Service, ServiceSettings, SqliteStore


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class Tell(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None: ...


def desk() -> Service:
    return Service("desk", handlers=[Tell()], store=PostgresStore(os.environ["DESK_DATABASE"]))


def by_default() -> Service:
    return Service("desk", handlers=[Tell()])


def in_memory() -> Service:
    return Service("desk", handlers=[Tell()], store=MemoryStore())


def without_claims() -> Service:
    return Service("desk", handlers=[Tell()], settings=ServiceSettings(effects="offsets"))


def with_outbox() -> Service:
    """Its store is the file OUTBOX_FILE."""
    return Service("desk", publishes=[OrderPlaced], store=SqliteStore(os.environ["OUTBOX_FILE"]))
