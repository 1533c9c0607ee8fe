"""Is the demo's shop open, and has it come to rest? The four services in this process, and the topics they speak through."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from choreo.broker import Broker, LogReader
from choreo.flows.search import ServiceTopics
from choreo.flows.tree import FlowEvent, Handled
from choreo.letter import letters_topic, replay_topic
from choreo.operations.topics import Needs, Wishes, apply_topics, declare, plan_topics
from choreo.record import Outgoing, TopicPartition
from choreo.runtime.reading import rename
from choreo.runtime.worker import Worker
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.storage.sqlite import SqliteStore
from choreo.store import Claim
from services_example.orders.service import orders
from services_example.payments.service import payments
from services_example.scenario import Books, read_books
from services_example.shipping.service import shipping
from services_example.stock.service import stock

VISIBLE_S = 20.0


@dataclass(frozen=True, slots=True)
class Running:
    """One of the services, at work."""

    service: Service
    worker: Worker


class Shop:
    """The four services, running. Owner: the event loop; `_reader` is used by one thread at a time."""

    def __init__(self, folder: Path, broker: Broker, names: Callable[[str], str], running: Sequence[Running]) -> None:
        self.broker = broker
        self.names = names
        self.running = running
        self._folder = folder
        self._reader: LogReader = broker.reader()

    @property
    def orders(self) -> Service:
        return self.running[0].service

    def event_topics(self) -> list[str]:
        """The broker's names of the topics that events stand in."""
        return list(dict.fromkeys(self.names(topic) for one in self.running for topic in one.service.consumed_topics()))

    def service_topics(self) -> list[ServiceTopics]:
        services = [one.service.name for one in self.running]
        return [ServiceTopics(service=s, letters=self.names(letters_topic(s)), replay=self.names(replay_topic(s))) for s in services]

    def counters(self) -> Mapping[str, int]:
        """The counters of all four workers together."""
        return sum((Counter(one.worker.counters.as_dict()) for one in self.running), Counter())

    async def books(self) -> Books:
        """What the services have written down."""
        return await asyncio.to_thread(read_books, self._folder)

    async def write(self, record: Outgoing) -> None:
        """Writes a record as it is, as a producer would that knows nothing of choreo."""

        def send() -> None:
            producer = self.broker.producer()
            producer.send(record, lambda _: None)
            producer.close(10.0)

        await asyncio.to_thread(send)

    async def going_on(self) -> str:
        """What still goes on; empty when all events have been handled by everybody. Raises what stopped a worker."""
        for one in self.running:
            if one.worker.failure.done():
                one.worker.failure.result()
        # In one go: when nothing is under way anywhere, nobody writes any more, and the ends read after this stay.
        under_way = sum(one.worker.engine.in_flight() for one in self.running)
        reached = [{p: state.offsets.committable() for p, state in one.worker.engine.partitions.items()} for one in self.running]
        if under_way:
            return f"{under_way} events are under way"
        ends = await asyncio.to_thread(self._ends)
        behind = [
            f"{one.service.name} has read {have.get(partition)} of {end} in {partition}"
            for one, have in zip(self.running, reached, strict=True)
            for topic in one.service.consumed_topics()
            for partition, end in ends[self.names(topic)].items()
            if end and have.get(partition) != end
        ]
        return "; ".join(behind[:3])

    def _ends(self) -> dict[str, dict[TopicPartition, int]]:
        """By topic, where each partition ends; 0 for one that is empty."""
        return {
            topic: {p: end if end > first else 0 for p, (first, end) in self._reader.ends(topic).items()} for topic in self.event_topics()
        }

    def handled(self, events: Mapping[str, FlowEvent]) -> list[Handled]:
        """Which handlers have succeeded with these events, as the services' claims know. Blocks."""
        found: list[Handled] = []
        for one in self.running:
            service = one.service
            asked = [
                Claim(spec.name, event.event_id)
                for spec in service.specs
                for event in events.values()
                if event.type in {payload.__event__.type for payload in spec.payloads}
            ]
            store = claims_of(service.name, self._folder)
            store.open(one.worker.plan.group)
            try:
                found += [Handled(service.name, claim.handler, claim.event_id) for claim in asked if claim in store.lookup(asked)]
            finally:
                store.close()
        return found

    def close(self) -> None:
        self._reader.close()


def claims_of(service: str, folder: Path) -> SqliteStore:
    return SqliteStore(folder / "claims" / f"{service}.db")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Shop]:
    """The shop, until the block ends: then what is under way comes to its end. Raises ChoreoError."""
    services = [make(folder) for make in (orders, payments, stock, shipping)]
    for service in services:
        service.store = claims_of(service.name, folder)
    settings = services[0].resolve().settings
    names = rename(settings.topic_prefix, settings.topic_names)
    async with AsyncExitStack() as stack:
        await asyncio.to_thread(_make_topics, services, settings, names)
        running = [Running(service, await stack.enter_async_context(service.worker())) for service in services]
        shop = Shop(folder, services[0].broker(settings), names, running)
        stack.callback(shop.close)
        yield shop


def _make_topics(services: Sequence[Service], settings: ServiceSettings, names: Callable[[str], str]) -> None:
    """As ``choreo topics apply`` does for each service; an embedded Kafka makes them with its first client. Blocks."""
    cluster = services[0].broker(settings).cluster()
    try:
        actual, brokers = cluster.topics(), cluster.brokers()
        declared = {topic.name: topic for service in services for topic in declare(_needs(service, names), Wishes(), actual, brokers)}
        missing = [topic for name, topic in declared.items() if name not in actual]
        apply_topics(cluster, plan_topics(missing, actual, {}), lambda _: None)
        # A topic is made by the controller; the brokers hear of it a moment later.
        deadline = time.monotonic() + VISIBLE_S
        while missing and not declared.keys() <= cluster.topics().keys() and time.monotonic() < deadline:
            time.sleep(0.1)
    finally:
        cluster.close()


def _needs(service: Service, names: Callable[[str], str]) -> Needs:
    dlq, letters, replay = service.own_topics()
    return Needs(consumed=service.consumed_topics(), emitted=service.emitted_topics(), dlq=dlq, letters=letters, replay=replay, names=names)
