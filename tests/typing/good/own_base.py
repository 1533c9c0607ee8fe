"""A team's own base of handlers, generic in the event and fixed in the connection."""

from abc import abstractmethod
from typing import Generic, TypeVar

from psycopg import AsyncConnection
from psycopg.rows import DictRow

from choreo.core.retry import RetryPolicy
from choreo.envelope import Envelope
from choreo.events import Event, EventLike
from choreo.handler import Context, Emits, Handler

P = TypeVar("P", bound=EventLike)


class ShopHandler(Handler[P, AsyncConnection], Generic[P]):
    retry = RetryPolicy(max_attempts=5)

    async def audit(self, event: Envelope[P], context: Context[AsyncConnection]) -> None:
        await context.transaction.execute("insert into audit values (%s, %s)", (context.event_id, event.type))


class Guarded(ShopHandler[P], Generic[P]):
    @abstractmethod
    async def allowed(self, payload: P) -> bool: ...

    async def handle(self, event: Envelope[P], context: Context[AsyncConnection]) -> Emits:
        return await self.react(event.payload) if await self.allowed(event.payload) else None

    @abstractmethod
    async def react(self, payload: P) -> Emits: ...


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class OrderSeen(Event, type="order.seen", topic="orders", key="order_id"):
    order_id: str


class Pay(ShopHandler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context[AsyncConnection]) -> OrderSeen:
        await self.audit(event, context)
        return OrderSeen(order_id=event.payload.order_id)


class See(Guarded[OrderPlaced]):
    emits = (OrderSeen,)

    async def allowed(self, payload: OrderPlaced) -> bool:
        return payload.order_id != ""

    async def react(self, payload: OrderPlaced) -> OrderSeen:
        return OrderSeen(order_id=payload.order_id)


class WithRows(Handler[OrderPlaced, AsyncConnection[DictRow]]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context[AsyncConnection[DictRow]]) -> None:
        found = await (await context.transaction.execute("select 1 as one")).fetchone()
        print(found["one"] if found else None)
