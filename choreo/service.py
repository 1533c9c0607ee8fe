"""One service: its handlers, what it publishes, its store, its settings. The one place that names adapters.

Making a Service opens nothing and reads no environment; `running`, `publisher` and ``choreo run`` do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from choreo.broker import Broker, TopicInfo
from choreo.codec import JsonCodec
from choreo.errors import ConfigurationError
from choreo.events import AnyEvent, EventLike, check_key, own_spec
from choreo.handler import Handler, HandlerSpec, describe
from choreo.kafka.broker import KafkaBroker
from choreo.kafka.embedded import EmbeddedBroker
from choreo.kafka.settings import EMBEDDED
from choreo.letter import dlq_topic, letters_topic, replay_topic
from choreo.runtime.claim_retention import DAY_S, needed_s, too_short
from choreo.runtime.emitting import Emitter
from choreo.runtime.lifeline import WORKER
from choreo.runtime.outbox import ServiceOutbox
from choreo.runtime.outbox_relay import OutboxRelay
from choreo.runtime.preflight import check_topics, patiently, wait_for_kafka
from choreo.runtime.publishing import Publishing
from choreo.runtime.reading import rename
from choreo.runtime.worker import Plan, Worker
from choreo.settings import Resolved, ServiceSettings, resolve
from choreo.storage.sqlite import SqliteStore
from choreo.store import Store, Transactional
from choreo.telemetry.logs import carry_step_on_log_records
from choreo.transactional_id import seat

_log = logging.getLogger("choreo.service")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,99}")

Resource = AbstractContextManager[Any] | AbstractAsyncContextManager[Any]


class Started(NamedTuple):
    """What a start found, for whoever shows it. `kafka` is one line, `protocol` the group's where there is one, `took_s` the
    seconds from nothing to joining the group."""

    worker: Worker
    settings: ServiceSettings
    kafka: str
    topics: Mapping[str, TopicInfo]
    took_s: float
    protocol: str | None


class Service:
    """A service, which is one consumer group with one dead-letter topic.

    `handlers` react, `publishes` names event types that code outside of handlers publishes. `store` keeps claims (default:
    a SQLite file ``.choreo/<name>.db``, good for one host). `resources` (context managers; a handler may be one) are entered
    in order before the first event and left in reverse after the drain. Raises ConfigurationError; does no I/O.
    """

    def __init__(
        self,
        name: str,
        *,
        handlers: Sequence[Handler[Any, Any]] = (),
        publishes: Sequence[type[EventLike]] = (),
        store: Store | None = None,
        resources: Sequence[Resource] = (),
        settings: ServiceSettings | None = None,
        version: str = "",
    ) -> None:
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"service name {name!r}: use lower-case letters, digits, '_' and '-', at most 100; it names the group and topics"
            )
        self.name = name
        self.version = version
        self.specs = tuple(describe(handler, index) for index, handler in enumerate(handlers))
        self.publishes = tuple(publishes)
        self.store = store
        self.resources = tuple(resources)
        self.settings = settings or ServiceSettings()
        self._codec = JsonCodec()
        self._relays: set[OutboxRelay] = set()
        self.outbox = ServiceOutbox(self.publisher, store, lambda: self._group(self.resolve().settings), self._added)
        """Events from code that is no handler, in its own transactions: ``service.outbox.add(connection, event)``."""
        self._check()

    # ---- what it is ---------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        self._check_effects(self.settings)
        names: dict[str, str] = {}
        for spec in self.specs:
            for written in (spec.name, *spec.aliases):
                if written in names:
                    raise ConfigurationError(
                        f"service {self.name}: two handlers are called {written!r}; names are stored, give each its own"
                    )
                names[written] = spec.name
            self._check_transaction(spec)
            if len(spec.topics) > 1:
                _log.warning(
                    "handler %s joins topics %s: events of two topics with the same key may run at the same time; lock its row "
                    "(select ... for update)",
                    spec.name,
                    ", ".join(spec.topics),
                )
        by_type: dict[str, type[EventLike]] = {}
        for cls in self.event_types():
            known = own_spec(cls)
            if known is None:
                raise ConfigurationError(f"service {self.name}: {cls.__name__} is no event type; it needs type=, topic=, key=")
            check_key(cls, known, known=_field_names(cls))
            other = by_type.setdefault(known.type, cls)
            if other.__event__.topic != known.topic:
                raise ConfigurationError(
                    f"service {self.name}: {known.type} is on topic {other.__event__.topic} in {other.__name__} and on {known.topic} in {cls.__name__}"
                )

    def _check_effects(self, settings: ServiceSettings) -> None:
        """Whether they go with the store and the handlers. Raises ConfigurationError."""
        if settings.effects not in ("offsets", "kafka"):
            return
        named = f'effects="{settings.effects}"'
        for spec in self.specs:
            if spec.transaction is not None:
                asks = f"handler {spec.name}: Handler[..., {spec.transaction.__name__}]"
                raise ConfigurationError(f"{asks} is handled in a transaction of its database; leave out {named}, or its second parameter")
        if self.store is not None:
            raise ConfigurationError(f"service {self.name}: {named} keeps no claims; leave out store=, or leave out effects=")

    def _check_transaction(self, spec: HandlerSpec) -> None:
        """Whether the store has connections of the kind that the handler asks for, and the handler is the kind of function they need."""
        if spec.transaction is None:
            return
        asks = f"handler {spec.name}: Handler[..., {spec.transaction.__name__}]"
        store: object = self.store
        made = store.transactions(spec.transaction) if isinstance(store, Transactional) else None
        if made is None:
            given = "no store was given" if self.store is None else f"{type(self.store).__name__} has none of that class"
            raise ConfigurationError(
                f"{asks} writes in a transaction of the service's database, and {given}: SqliteStore has sqlite3.Connection, PostgresStore "
                "has psycopg.Connection, and psycopg.AsyncConnection when it is given a conninfo"
            )
        if made.blocking is not spec.on_thread:
            wanted, why = ("def handle", "its connections block") if made.blocking else ("async def handle", "its connections are async")
            raise ConfigurationError(f"{asks}: {why}; write '{wanted}'")

    def event_types(self) -> list[type[EventLike]]:
        """Every event type the service knows: handled, emitted, published."""
        found: dict[type[EventLike], None] = {}
        for spec in self.specs:
            found.update(dict.fromkeys((*spec.payloads, *spec.tombstones, *(spec.emits or ()))))
        found.update(dict.fromkeys(self.publishes))
        found.pop(AnyEvent, None)
        return list(found)

    def consumed_topics(self) -> list[str]:
        """Logical names of the topics it subscribes to."""
        return list(dict.fromkeys(topic for spec in self.specs for topic in spec.topics))

    def emitted_topics(self) -> list[str]:
        """Logical names of the topics it writes events to."""
        emitted = [known for spec in self.specs for cls in sorted(spec.emits or (), key=lambda c: c.__name__) if (known := own_spec(cls))]
        return list(dict.fromkeys(known.topic for known in (*emitted, *(cls.__event__ for cls in self.publishes))))

    def own_topics(self) -> list[str]:
        """Logical names of choreo's own topics for it; none for a service that only publishes."""
        return [dlq_topic(self.name), letters_topic(self.name), replay_topic(self.name)] if self.specs else []

    def topics(self) -> list[str]:
        """Logical names of all topics it touches."""
        return list(dict.fromkeys((*self.consumed_topics(), *self.emitted_topics(), *self.own_topics())))

    def effects(self) -> str:
        return self.settings.effects or "claims"

    # ---- running it ---------------------------------------------------------------------------------------------------

    def resolve(self, flags: Mapping[str, Any] | None = None) -> Resolved:
        """The settings as they count in this process. Raises ConfigurationError."""
        return resolve(self.settings, os.environ, flags)

    def broker(self, settings: ServiceSettings) -> Broker:
        """The broker these settings name. Opens nothing."""
        if settings.broker is not None:
            return settings.broker
        if settings.kafka.bootstrap == EMBEDDED:
            names = rename(settings.topic_prefix, settings.topic_names)
            return EmbeddedBroker(settings.kafka, [names(topic) for topic in self.topics()])
        return KafkaBroker(settings.kafka)

    def plan(self, settings: ServiceSettings) -> Plan:
        """What a worker is to run, under these settings. Raises ConfigurationError where they don't go with the store."""
        self._check_effects(settings)
        store = (self.store or self.default_store()) if (settings.effects or "claims") == "claims" else None
        return Plan(
            service=self.name,
            group=self._group(settings),
            version=self.version,
            specs=self.specs,
            codec=self._codec,
            store=store,
            relays=store is not None and isinstance(store, Transactional) and self._writes_to_outbox(),
            names=rename(settings.topic_prefix, settings.topic_names),
            start=settings.start,
            accept_lost_offsets=settings.accept_lost_offsets,
            concurrency=settings.concurrency,
            threads=settings.threads,
            drain_s=settings.drain_s,
            strict=settings.strict,
        )

    def _group(self, settings: ServiceSettings) -> str:
        return settings.topic_prefix + self.name

    def _writes_to_outbox(self) -> bool:
        return self.store is not None and (bool(self.publishes) or any(spec.transaction is not None for spec in self.specs))

    def _added(self) -> None:
        """Somebody is about to commit an event in this process."""
        for relay in tuple(self._relays):
            relay.expect()

    def default_store(self) -> Store:
        """Claims in a file of this host. Topic prefixes share it: a claim is kept by the group, prefix included."""
        return SqliteStore(f".choreo/{self.name}.db")

    def publisher(self) -> Publishing:
        """For code that is no handler: ``async with`` (or plain ``with``) ``service.publisher() as p: await p.publish(event)``."""
        settings = self.resolve().settings
        emitter = Emitter(self.name, self._codec, rename(settings.topic_prefix, settings.topic_names))
        declared = {cls for spec in self.specs for cls in spec.emits or ()} | set(self.publishes)
        undeclared = any(spec.emits is None for spec in self.specs)
        return Publishing(self.name, emitter, lambda: self.broker(settings), None if undeclared else frozenset(declared))

    @asynccontextmanager
    async def running(self, *, consume: bool = True) -> AsyncIterator[None]:
        """Runs the service inside your own process: a FastAPI lifespan, a test. Raises what the start raises; a worker that
        fails later is logged and raised when the block ends."""
        async with self.worker(consume=consume) as worker:
            worker.failure.add_done_callback(_log_failure)
            yield
            if worker.failure.done():
                worker.failure.result()

    @asynccontextmanager
    async def worker(
        self,
        *,
        consume: bool = True,
        flags: Mapping[str, Any] | None = None,
        started: Callable[[Started], None] | None = None,
    ) -> AsyncIterator[Worker]:
        """Enters the resources, checks Kafka and the topics, starts a worker; drains it at the end."""
        began_s = time.monotonic()
        settings = self.resolve(flags).settings
        carry_step_on_log_records()
        async with AsyncExitStack() as stack:
            for resource in self.resources:
                if isinstance(resource, AbstractAsyncContextManager):
                    await stack.enter_async_context(resource)
                else:
                    stack.enter_context(resource)
            broker = self.broker(settings)
            plan = self.plan(settings)
            if settings.effects == "kafka":
                transactional_id = stack.enter_context(_transactional_id(plan.group, settings))
                chosen = settings.transactional_id is not None
                plan = dataclasses.replace(plan, transactional_id=transactional_id, own_transactional_id=chosen)
            until_s = asyncio.get_running_loop().time() + settings.start_deadline_s
            found, topics = await wait_for_kafka(broker, until_s)
            self._check_topics(topics, plan.names, consume=consume)
            plan = dataclasses.replace(plan, claims_retention_s=self._claims_retention_s(settings, topics, plan.names))
            protocol = await _group_protocol(broker) if consume and self.specs else None
            worker = Worker(plan, broker)
            relays = () if worker.relay is None else (worker.relay,)
            self._relays.update(relays)
            try:
                await patiently(lambda: worker.start(consume=consume), until_s)
                if started is not None:
                    started(Started(worker, settings, found, topics, time.monotonic() - began_s, protocol))
                yield worker
            finally:
                self._relays.difference_update(relays)
                worker.clean = await worker.stop()

    def _claims_retention_s(self, settings: ServiceSettings, topics: Mapping[str, TopicInfo], names: Callable[[str], str]) -> float:
        """For how long claims are kept. Raises ConfigurationError where that is too short, and an event could be handled twice."""
        consumed = [topics[names(topic)] for topic in self.consumed_topics() if names(topic) in topics]
        own = [topics[names(topic(self.name))] for topic in (dlq_topic, replay_topic) if names(topic(self.name)) in topics]
        if settings.claims_retention_s is None:
            return needed_s(consumed, own) + DAY_S
        wrong = too_short(settings.claims_retention_s, consumed, own)
        if wrong is not None:
            raise ConfigurationError(f"{self.name}: claims_retention_s: {wrong}")
        return settings.claims_retention_s

    def _check_topics(self, topics: Mapping[str, Any], names: Callable[[str], str], *, consume: bool) -> None:
        why = {names(topic): "emitted" for topic in self.emitted_topics()}
        if consume:
            why.update({names(topic): "choreo's own" for topic in self.own_topics()})
            why.update({names(topic): "handled" for topic in self.consumed_topics()})
        check_topics(topics, list(why), self.name, lambda name: why[name])

    async def run(self, *, flags: Mapping[str, Any] | None = None, started: Callable[[Started], None] | None = None) -> bool:
        """Runs until SIGTERM or SIGINT, then drains; a second signal stops at once. Whether everything came to its end.

        Raises ChoreoError when the service can't start or can't go on.
        """
        asked, begun = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        running = loop.create_task(self._run(asked, begun, flags, started))
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, asked, begun, running)
        try:
            return await running
        except asyncio.CancelledError:
            if not asked.is_set():
                raise
            return True  # asked to stop while it waited for Kafka: nothing had begun

    async def _run(
        self,
        asked: asyncio.Event,
        begun: asyncio.Event,
        flags: Mapping[str, Any] | None,
        started: Callable[[Started], None] | None,
    ) -> bool:
        async with self.worker(flags=flags, started=started) as worker:
            begun.set()
            waiting = asyncio.create_task(asked.wait())
            await asyncio.wait((waiting, worker.failure), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if worker.failure.done():
                worker.failure.result()
            _log.info("stopping: draining for up to %g s", worker.plan.drain_s)
        return worker.clean


def _stop(asked: asyncio.Event, begun: asyncio.Event, running: asyncio.Task[bool]) -> None:
    if asked.is_set():
        # Nothing is lost: what has not settled was not committed, and will be read again.
        os.write(2, b"choreo: stopped at once; events that were under way will come again\n")
        os._exit(130)
    asked.set()
    if not begun.is_set():
        running.cancel()


@runtime_checkable
class _HasProtocol(Protocol):
    """A broker whose groups may speak one of two protocols, as real Kafka's; no part of the port."""

    def group_protocol(self) -> str: ...


async def _group_protocol(broker: Broker) -> str | None:
    """Asks the brokers before a consumer does, which then knows it: what they don't offer is told before anything is read."""
    if not isinstance(broker, _HasProtocol):
        return None
    return await asyncio.get_running_loop().run_in_executor(None, broker.group_protocol)


@contextmanager
def _transactional_id(group: str, settings: ServiceSettings) -> Iterator[str]:
    """The id of this worker's transactions: what the settings say, numbered where ``choreo run`` has several workers, else its own."""
    number, _, workers = os.environ.get(WORKER, "").partition("/")
    if settings.transactional_id is not None:
        yield settings.transactional_id if workers in ("", "1") else f"{settings.transactional_id}-{number}"
    else:
        with seat(group, Path(".choreo")) as made:
            yield made


def _log_failure(failure: asyncio.Future[None]) -> None:
    if not failure.cancelled() and (error := failure.exception()) is not None:
        _log.error("the worker stopped: %s", error)


def _field_names(cls: Any) -> tuple[str, ...]:
    if dataclasses.is_dataclass(cls):
        return tuple(item.name for item in dataclasses.fields(cls))
    if hasattr(cls, "model_fields"):
        return tuple(cls.model_fields)
    return tuple(getattr(cls, "__struct_fields__", ()))


def choreo_version() -> str:
    """The installed version of choreo."""
    return metadata.version("choreo")
