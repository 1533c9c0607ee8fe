"""Events that are made wrongly, or changed."""

from dataclasses import dataclass

from choreo.events import DataclassEvent, Event
from choreo.pydantic import PydanticEvent


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int = 0


@dataclass(frozen=True)
class Stock(DataclassEvent, type="stock", topic="stock", key="sku"):
    sku: str


class Refund(PydanticEvent, type="refund", topic="payments", key="order_id"):
    order_id: str


class Priced(Event):
    total_cents: int


class Shipped(Priced, type="shipped", topic="orders", key=None):
    order_id: str


OrderPlaced()  # error
OrderPlaced(total_cents=3)  # error
OrderPlaced(order_id="o-1", total=3)  # error
OrderPlaced(order_id=7)  # error
OrderPlaced(order_id="o-1", total_cents="3")  # error
OrderPlaced(order_id="o-1", total_cents=None)  # error
OrderPlaced("o-1")  # error
Shipped(order_id="o-1")  # error
Shipped(3, "o-1")  # error

placed = OrderPlaced(order_id="o-1")
placed.order_id = "o-2"  # error
print(placed.total_cent)  # error
del placed.order_id  # pyright-error

Stock()  # error
Stock(sku=7)  # error
Stock("a").sku = "b"  # error

Refund()  # error
Refund(order_id=7)  # error
Refund(order_id="o-1", amount=3)  # error


class WrongTopic(Event, type="wrong", topic=3, key=None):  # pyright-error
    order_id: str


class WrongKey(DataclassEvent, type="wrong", topic="t", key=3):  # error
    order_id: str
