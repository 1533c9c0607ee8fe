"""What can happen between the services? The example's own handlers under any interleaving, without a broker or a clock.

Kept as in the real thing: the order of a key within a topic, one delivery of a lane at a time, deterministic ids, claims
after emits, parking behind a letter. Left to chance: who runs next, failures before and after an effect, crashes between
effect, emits and claim, records that are written twice, the hour of the gateway's fix and of each replay.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, cast

import msgspec

from choreo import Event, Failure, Handler, TransientError, derived_id
from choreo.core.retry import GiveUp
from choreo.envelope import child_id
from choreo.errors import ChoreoError
from choreo.handler import HandlerSpec, describe
from choreo.testing import delivery
from services_example.orders.book import OrderBook
from services_example.orders.events import OrderPlaced
from services_example.orders.handlers import CancelOrder, CompleteOrder, TrackOrder
from services_example.payments.gateway import DemoGateway
from services_example.payments.handlers import ChargeCard, RefundPayment
from services_example.scenario import BUGGY_BRAND, Books
from services_example.shipping.desk import PackingDesk
from services_example.shipping.handlers import ShipOrder
from services_example.stock.handlers import ReserveStock
from services_example.stock.shelves import Shelves

NOW = datetime(2026, 11, 22, tzinfo=UTC)
MAX_STEPS = 20_000


@dataclass(frozen=True, slots=True)
class Shop:
    """The four services' state; a seeded bug is a subclass of one of them."""

    book: OrderBook
    gateway: DemoGateway
    shelves: Shelves
    desk: PackingDesk

    def books(self) -> Books:
        return Books(self.book.orders(), self.gateway.entries(), self.shelves.shelves(), self.shelves.movements(), self.desk.parcels())


@contextmanager
def shop(
    book: type[OrderBook] = OrderBook,
    gateway: type[DemoGateway] = DemoGateway,
    shelves: type[Shelves] = Shelves,
    desk: type[PackingDesk] = PackingDesk,
) -> Iterator[Shop]:
    """A shop in memory."""
    with ExitStack() as stack:
        memory = ":memory:"
        yield Shop(
            stack.enter_context(book(memory)),
            stack.enter_context(gateway(memory)),
            stack.enter_context(shelves(memory)),
            stack.enter_context(desk(memory)),
        )


@dataclass(frozen=True, slots=True)
class Weather:
    """How often things go wrong, per step; `claims` False: every claim is lost, so every duplicate runs again."""

    failure: float
    crash: float
    duplicate: float
    claims: bool = True


@dataclass(frozen=True, slots=True)
class Stored:
    """One record of a topic."""

    event_id: str
    event: Event


@dataclass(slots=True)
class Lane:
    """The records of one key of one topic, for one handler. `emitted` is what ran and is not settled yet."""

    service: str
    spec: HandlerSpec
    log: list[Stored]
    position: int = 0
    attempt: int = 1
    dead: bool = False
    emitted: list[Event] | None = None

    @property
    def ready(self) -> bool:
        return not self.dead and self.position < len(self.log)

    def advance(self) -> None:
        self.position, self.attempt, self.emitted = self.position + 1, 1, None


@dataclass(slots=True)
class Saga:
    """One run of the choreography; `run` ends when nothing is left to do but letters that no replay resolves."""

    shop: Shop
    orders: Sequence[OrderPlaced]
    dice: Random
    weather: Weather
    logs: defaultdict[tuple[str, str], list[Stored]] = field(default_factory=lambda: defaultdict(list))
    claims: set[tuple[str, str, str]] = field(default_factory=set)
    letters: int = 0
    unresolved: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Places the orders while everything else goes on; then the weather clears up and what is dead is replayed."""
        lanes = list(self._lanes())
        self._until_rest(lanes, list(self.orders))
        self.weather = Weather(0, 0, 0, claims=self.weather.claims)
        self.shop.gateway.support(BUGGY_BRAND)
        for _ in range(3):
            self._replay([lane for lane in lanes if lane.dead])
            self._until_rest(lanes, [])
        self.unresolved = [f"{lane.spec.name}: {lane.log[lane.position].event} stays a letter" for lane in lanes if lane.dead]

    def _until_rest(self, lanes: list[Lane], waiting: list[OrderPlaced]) -> None:
        for _ in range(MAX_STEPS):
            ready = [lane for lane in lanes if lane.ready]
            if waiting and (not ready or self._chance(0.2)):
                self._place(waiting.pop())
            elif ready:
                self._step(self.dice.choice(ready))
            else:
                return
            if self._chance(0.01):
                self.shop.gateway.support(BUGGY_BRAND)
            if self._chance(0.03):
                self._replay([lane for lane in lanes if lane.dead and self._chance(0.5)])
        raise AssertionError(f"still not at rest after {MAX_STEPS} steps")

    def violations(self) -> list[str]:
        """What may not be when all is over: a letter that no replay resolves, two events of one type in one order (two ids, or
        one id with two payloads)."""
        wrong = list(self.unresolved)
        for (topic, key), log in self.logs.items():
            by_type: defaultdict[str, list[Stored]] = defaultdict(list)
            for stored in log:
                by_type[stored.event.__event__.type].append(stored)
            wrong += [f"{topic}: {key}: two different {name}" for name, found in by_type.items() if len({*found}) > 1]
        return wrong

    def _lanes(self) -> Iterator[Lane]:
        handlers: dict[str, list[Handler[Any, Any]]] = {
            "orders": [TrackOrder(self.shop.book), CancelOrder(self.shop.book), CompleteOrder(self.shop.book)],
            "payments": [ChargeCard(self.shop.gateway), RefundPayment(self.shop.gateway)],
            "stock": [ReserveStock(self.shop.shelves)],
            "shipping": [ShipOrder(self.shop.desk)],
        }
        for service, of_service in handlers.items():
            for index, handler in enumerate(of_service):
                spec = describe(handler, index)
                for topic in spec.topics:
                    for order in self.orders:
                        yield Lane(service, spec, self.logs[topic, order.order_id])

    def _chance(self, probability: float) -> bool:
        return self.dice.random() < probability

    def _place(self, order: OrderPlaced) -> None:
        self._append(Stored(derived_id("checkout", order.order_id), order))

    def _append(self, stored: Stored) -> None:
        log = self.logs[stored.event.__event__.topic, getattr(stored.event, "order_id")]  # noqa: B009
        log.append(stored)
        if self._chance(self.weather.duplicate):
            log.append(self.dice.choice(log))

    def _replay(self, dead: Iterable[Lane]) -> None:
        for lane in dead:
            lane.dead, lane.attempt = False, 1

    def _step(self, lane: Lane) -> None:
        """Runs the head of a lane, or settles what ran; other lanes go on between the two."""
        stored = lane.log[lane.position]
        view = next((cls for cls in lane.spec.payloads if cls.__event__.type == stored.event.__event__.type), None)
        claim = (lane.service, lane.spec.name, stored.event_id)
        if lane.emitted is not None:
            self._settle(lane, stored, claim)
        elif view is None or claim in self.claims:
            lane.advance()
        else:
            self._attempt(lane, stored, msgspec.convert(msgspec.to_builtins(stored.event), cast("type[Event]", view)))

    def _attempt(self, lane: Lane, stored: Stored, payload: Event) -> None:
        event, context = delivery(payload, event_id=stored.event_id, attempt=lane.attempt)
        handler = lane.spec.handler
        try:
            if self._chance(self.weather.failure):
                raise TransientError("before the effect")
            emitted = _run(lambda: handler.handle(event, context))
            if self._chance(self.weather.failure):
                raise TransientError("after the effect")
        except ChoreoError as error:
            if not isinstance(lane.spec.retry.decide(error, attempt=lane.attempt, dice=0.0), GiveUp):
                lane.attempt += 1
                return
            failure = Failure(type(error).__name__, str(error), lane.attempt, False, NOW, NOW)
            try:
                emitted = _run(lambda: handler.recover(event, failure, context))
            except (ChoreoError, NotImplementedError):
                lane.dead = True
                self.letters += 1
                return
        if not self._chance(self.weather.crash):
            lane.emitted = emitted

    def _settle(self, lane: Lane, stored: Stored, claim: tuple[str, str, str]) -> None:
        """Emits, then claims, then goes on; a crash before the claim runs the event again."""
        for event in lane.emitted or ():
            spec = event.__event__
            event_id = child_id(stored.event_id, lane.service, lane.spec.name, "", spec.type, getattr(event, "order_id"), "0")  # noqa: B009
            self._append(Stored(event_id, event))
        if self._chance(self.weather.crash):
            lane.attempt, lane.emitted = 1, None
            return
        if self.weather.claims:
            self.claims.add(claim)
        lane.advance()


def _run(call: Callable[[], Any]) -> list[Event]:
    """Calls a handler, sync or async, and lists what it emits. Nothing in the example really waits."""
    answer = call()
    if isinstance(answer, Awaitable):
        waiting = answer.__await__()
        try:
            next(waiting)
        except StopIteration as done:
            answer = done.value
        else:
            raise AssertionError("a handler waited; the simulation can't")
    return [] if answer is None else [answer]
