"""The three kinds of payload, mixins, and keys that are properties."""

from dataclasses import dataclass, field, replace

import msgspec
from pydantic import Field

from choreo.envelope import Envelope
from choreo.events import AnyEvent, DataclassEvent, Event, EventLike, key_of
from choreo.handler import Context, Handler
from choreo.pydantic import PydanticEvent


class Priced(Event):
    total_cents: int = 0


class Transfer(Priced, type="transfer", topic="transfers", key="pair", version=2):
    source: str
    target: str
    tags: list[str] = msgspec.field(default_factory=list[str])

    @property
    def pair(self) -> str:
        return f"{self.source}>{self.target}"


class Renamed(Event, type="renamed", topic="t", key=None, rename="camel", forbid_unknown_fields=True):
    order_id: str = ""


@dataclass(frozen=True)
class Stock(DataclassEvent, type="stock", topic="stock", key="sku"):
    sku: str
    amounts: list[int] = field(default_factory=list[int])


@dataclass(frozen=True, slots=True)
class Slotted(DataclassEvent, type="slotted", topic="stock", key="sku"):
    sku: str


class Refund(PydanticEvent, type="refund", topic="payments", key="order_id", extra="forbid"):
    order_id: str
    amount: float = Field(default=0.0, ge=0)


def events() -> list[EventLike]:
    return [
        Transfer(source="a", target="b", total_cents=3),
        Renamed(order_id="o-1"),
        Stock("a"),
        Slotted(sku="a"),
        Refund(order_id="o-1", amount=3),
        AnyEvent(fields={"a": 1}),
    ]


def more() -> list[str | None]:
    changed = msgspec.structs.replace(Transfer(source="a", target="b"), target="c")
    return [key_of(event) for event in (*events(), changed, replace(Stock("a"), sku="b"))]


class All(Handler[Transfer | Stock | Slotted | Refund]):
    async def handle(self, event: Envelope[Transfer | Stock | Slotted | Refund], context: Context) -> Stock | Refund | None:
        match event.payload:
            case Transfer(source=source):
                return Stock(source)
            case Stock(sku=sku) | Slotted(sku=sku):
                return Refund(order_id=sku)
            case Refund(order_id=order_id):
                print(order_id.upper())
        return None


class Audit(Handler[AnyEvent]):
    topics = ("orders", "payments")

    async def handle(self, event: Envelope[AnyEvent], context: Context) -> None:
        total = event.payload.fields.get("total_cents")
        print(event.type, total if isinstance(total, int) else 0)
