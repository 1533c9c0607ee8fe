"""What happens in the demo, and did it end well? 200 orders with the faults planned among them, and the verdict.

The orders are in orders.jsonl; they were made once, with a seed. Their cards and articles carry most of the faults (see
DemoGateway and Shelves), so the services know nothing of a plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from choreo import Service, derived_id
from services_example.database import shop_file
from services_example.orders.book import Order, OrderBook, Status
from services_example.orders.events import OrderPlaced
from services_example.payments.gateway import DemoGateway, Entry
from services_example.shipping.desk import PackingDesk
from services_example.stock.shelves import Movement, Shelf, Shelves

ORDERS = Path(__file__).with_name("orders.jsonl")
BUGGY_BRAND = "diners"


@dataclass(frozen=True, slots=True)
class Undecodable:
    """A record that no service can read; to be produced as it is, without headers."""

    topic: str
    key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong on purpose, by order. Not every scarce order is cancelled: the first of them get the last lamps."""

    answer_lost: tuple[str, ...]
    gateway_bug: tuple[str, ...]
    over_limit: tuple[str, ...]
    scarce: tuple[str, ...]
    published_twice: tuple[str, ...]
    undecodable: tuple[Undecodable, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """The orders to place, in order, and the faults among them."""

    orders: tuple[OrderPlaced, ...]
    faults: Faults

    def publications(self) -> Iterator[tuple[OrderPlaced, str]]:
        """Each order with the id of its event. An order that is published twice is one event, as its id says."""
        for order in self.orders:
            for _ in range(2 if order.order_id in self.faults.published_twice else 1):
                yield order, derived_id("checkout", order.order_id)


def plan(path: Path = ORDERS) -> Plan:
    """Reads the orders of the demo."""
    orders = tuple(msgspec.json.decode(line, type=OrderPlaced) for line in path.read_bytes().splitlines())
    faults = Faults(
        answer_lost=tuple(order.order_id for order in orders if order.card_token.endswith("_0408")),
        gateway_bug=tuple(order.order_id for order in orders if f"_{BUGGY_BRAND}_" in order.card_token),
        over_limit=tuple(order.order_id for order in orders if order.total_cents > DemoGateway.LIMIT_CENTS),
        scarce=tuple(order.order_id for order in orders if order.sku == "lamp"),
        published_twice=(orders[2].order_id,),
        undecodable=(Undecodable("orders", b"o-broken", b'{"type": "order.placed", "timestamp": "2026-11-22T0'),),
    )
    return Plan(orders, faults)


async def place(service: Service, plan: Plan) -> None:
    """Publishes the plan's orders as `service`, which is orders."""
    async with service.publisher() as publisher:
        for order, event_id in plan.publications():
            await publisher.publish(order, event_id=event_id)


def mend_gateway(data: Path | None = None) -> None:
    """The gateway's people deploy their fix; dead-lettered charges can be replayed now."""
    with DemoGateway(shop_file("gateway.db", data)) as gateway:
        gateway.support(BUGGY_BRAND)


@dataclass(frozen=True, slots=True)
class Books:
    """What the four services have written down."""

    orders: Sequence[Order]
    entries: Sequence[Entry]
    shelves: Sequence[Shelf]
    movements: Sequence[Movement]
    parcels: Sequence[str]


def read_books(data: Path | None = None) -> Books:
    """Opens the services' files beside them. Works while they run; then the books may be ahead of each other."""
    with ExitStack() as files:
        book = files.enter_context(OrderBook(shop_file("orders.db", data)))
        gateway = files.enter_context(DemoGateway(shop_file("gateway.db", data)))
        shelves = files.enter_context(Shelves(shop_file("stock.db", data)))
        desk = files.enter_context(PackingDesk(shop_file("shipping.db", data)))
        return Books(book.orders(), gateway.entries(), shelves.shelves(), shelves.movements(), desk.parcels())


def unfinished(placed: Sequence[OrderPlaced], books: Books) -> list[str]:
    """The orders that are neither shipped nor cancelled yet."""
    final = {order.order_id for order in books.orders if order.status in (Status.SHIPPED, Status.CANCELLED)}
    return [order.order_id for order in placed if order.order_id not in final]


def verdict(placed: Sequence[OrderPlaced], books: Books) -> list[str]:
    """What is wrong with the end of the story; empty when all is well.

    Every order is shipped or cancelled, no effect happened twice, and money, goods and parcels agree with it.
    """
    wrong = [f"{order_id}: neither shipped nor cancelled" for order_id in unfinished(placed, books)]
    status = {order.order_id: order.status for order in books.orders}
    cents, taken = _by_order(books)
    for order in placed:
        shipped = status.get(order.order_id) is Status.SHIPPED
        wrong += _money(order, cents[order.order_id], shipped=shipped)
        wrong += _goods(order, taken[order.order_id], shipped=shipped)
        if (parcels := books.parcels.count(order.order_id)) != shipped:
            wrong.append(f"{order.order_id}: {parcels} parcels, expected {shipped:d}")
    for unknown in sorted({*status, *cents, *taken, *books.parcels} - {order.order_id for order in placed}):
        wrong.append(f"{unknown}: nobody placed it")
    for shelf in books.shelves:
        gone = sum(movement.taken for movement in books.movements if movement.sku == shelf.sku)
        if shelf.opening - gone != shelf.on_hand or shelf.on_hand < 0:
            wrong.append(f"{shelf.sku}: {shelf.on_hand} on hand, expected {shelf.opening} - {gone}")
    return wrong


def _by_order(books: Books) -> tuple[defaultdict[str, list[int]], defaultdict[str, list[int]]]:
    cents: defaultdict[str, list[int]] = defaultdict(list)
    taken: defaultdict[str, list[int]] = defaultdict(list)
    for entry in books.entries:
        cents[entry.reference].append(entry.cents)
    for movement in books.movements:
        taken[movement.order_id].append(movement.taken)
    return cents, taken


def _money(order: OrderPlaced, cents: list[int], *, shipped: bool) -> Iterator[str]:
    """Charged once at most and given back once at most; kept when shipped, and only then."""
    allowed = [[order.total_cents]] if shipped else [[], [order.total_cents, -order.total_cents]]
    if cents not in allowed:
        yield f"{order.order_id}: {'shipped' if shipped else 'not shipped'}, and the card says {cents} cents"


def _goods(order: OrderPlaced, taken: list[int], *, shipped: bool) -> Iterator[str]:
    """The same for the shelf."""
    allowed = [[order.quantity]] if shipped else [[], [order.quantity, -order.quantity]]
    if taken not in allowed:
        yield f"{order.order_id}: {'shipped' if shipped else 'not shipped'}, and the shelf says {taken} taken"
