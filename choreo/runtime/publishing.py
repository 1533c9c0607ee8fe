"""Publishing from code that is no handler: an async and a plain publisher over the same producer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from choreo.broker import Broker, Report
from choreo.envelope import derived_id, new_id
from choreo.errors import BrokerError, ConfigurationError
from choreo.events import EventLike
from choreo.handler import Emit
from choreo.record import Outgoing
from choreo.runtime.emitting import Emitter
from choreo.runtime.sends import Sends
from choreo.telemetry.counters import Counters
from choreo.telemetry.tracing import current_traceparent

FLUSH_S = 30.0


class Published(NamedTuple):
    """The id of the (first) event, and of the flow that all of one call share."""

    event_id: str
    flow_id: str


class Publishing:
    """``async with service.publisher() as p: await p.publish(event)``, or with a plain ``with`` the same, blocking."""

    def __init__(self, service: str, emitter: Emitter, make_broker: Callable[[], Broker], allowed: frozenset[type] | None) -> None:
        self._service = service
        self._emitter = emitter
        self._make_broker = make_broker
        self._allowed = allowed
        self._async: AsyncPublisher | None = None
        self._plain: Publisher | None = None

    async def __aenter__(self) -> AsyncPublisher:
        self._async = AsyncPublisher(self, Sends(self._make_broker().producer(), Counters()))
        return self._async

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._async is not None:
            self._async.close()

    def __enter__(self) -> Publisher:
        self._plain = Publisher(self, self._make_broker())
        return self._plain

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._plain is not None:
            self._plain.close()

    def records(self, events: Sequence[EventLike | Emit[Any]], event_id: str | None) -> tuple[Published, list[Outgoing]]:
        """One flow: the first event's id is the flow's. A given `event_id` names the first; the others' derive from it."""
        if not events:
            raise ConfigurationError("publish() without an event")
        first = event_id or new_id()
        trace = current_traceparent()
        made: list[Outgoing] = []
        for number, event in enumerate(events):
            self._check(event)
            own = first if number == 0 else derived_id(first, number) if event_id else new_id()
            made.append(self._emitter.root(event, event_id=own, flow_id=first, traceparent=trace, source=f"{self._service}/publish"))
        return Published(first, first), made

    def _check(self, event: Any) -> None:
        inner = event.event if isinstance(event, Emit) else event
        cls = getattr(inner, "of", type(inner))
        if self._allowed is not None and cls not in self._allowed:
            raise ConfigurationError(
                f"service {self._service} does not declare that it publishes {cls.__name__}; add it to Service(publishes=[...])"
            )


class AsyncPublisher:
    """Owner: the event loop that entered it."""

    def __init__(self, publishing: Publishing, sends: Sends) -> None:
        self._publishing = publishing
        self._sends = sends

    async def publish(self, *events: EventLike | Emit[Any], event_id: str | None = None) -> Published:
        """Writes the events; returns when all in-sync replicas have them. Waits while Kafka is away. Raises BrokerError for an
        event that can never be written (too large), ConfigurationError for one that isn't declared."""
        published, records = self._publishing.records(events, event_id)
        acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def then(error: BrokerError | None, _: Sequence[Report]) -> None:
            if acknowledged.done():
                return
            if error is None:
                acknowledged.set_result(None)
            else:
                acknowledged.set_exception(error)

        self._sends.send(records, then)
        await acknowledged
        return published

    def close(self) -> None:
        self._sends.close(FLUSH_S)


class Publisher:
    """Owner: the thread that entered it."""

    def __init__(self, publishing: Publishing, broker: Broker) -> None:
        self._publishing = publishing
        self._producer = broker.producer()

    def publish(self, *events: EventLike | Emit[Any], event_id: str | None = None) -> Published:
        """Writes the events; returns when all in-sync replicas have them. Raises BrokerError when one could not be written
        (then it may or may not be there: publish again with the same `event_id`), ConfigurationError for one that isn't declared."""
        published, records = self._publishing.records(events, event_id)
        reports: list[Report] = []
        for record in records:
            self._send(record, reports)
        while len(reports) < len(records):
            self._producer.poll(0.1)
        for report in reports:
            if report.error is not None:
                raise report.error
        return published

    def _send(self, record: Outgoing, reports: list[Report]) -> None:
        while True:
            try:
                self._producer.send(record, reports.append)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def close(self) -> None:
        self._producer.close(FLUSH_S)
