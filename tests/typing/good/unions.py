"""Several types of one topic, taken apart with `match`; null values among them."""

from typing import assert_never, assert_type

from choreo.envelope import Envelope
from choreo.events import Event, Tombstone
from choreo.handler import Context, Handler


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int


class OrderAmended(Event, type="order.amended", topic="orders", key="order_id"):
    order_id: str
    by_cents: int


class Total(Handler[OrderPlaced | OrderAmended]):
    async def handle(self, event: Envelope[OrderPlaced | OrderAmended], context: Context) -> None:
        match event.payload:
            case OrderPlaced(total_cents=cents):
                print(cents + 1)
            case OrderAmended() as amended:
                print(amended.by_cents + 1)
            case _ as never:
                assert_never(never)


class Mirror(Handler[OrderPlaced | Tombstone[OrderPlaced]]):
    def handle(self, event: Envelope[OrderPlaced | Tombstone[OrderPlaced]], context: Context) -> None:
        payload = event.payload
        if isinstance(payload, Tombstone):
            assert_type(payload.key, str)
        else:
            assert_type(payload.order_id, str)


class Forget(Handler[Tombstone[OrderPlaced]]):
    async def handle(self, event: Envelope[Tombstone[OrderPlaced]], context: Context) -> Tombstone[OrderAmended]:
        return Tombstone(of=OrderAmended, key=event.payload.key)


Either = OrderPlaced | OrderAmended


class ByAlias(Handler[Either]):
    async def handle(self, event: Envelope[Either], context: Context) -> None:
        print(event.payload.order_id)


async def a_narrower_envelope_will_do(placed: Envelope[OrderPlaced], context: Context) -> None:
    await Total().handle(placed, context)
