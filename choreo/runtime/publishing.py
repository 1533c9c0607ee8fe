"""Publishing from code that is no handler: an async and a plain publisher, over one kind of producer and with the same rules.

Unlike a worker's sends they don't wait for ever: whoever publishes has a caller of its own who waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest
from types import TracebackType
from typing import Any, NamedTuple

from choreo.broker import Broker, Producer, Report
from choreo.envelope import derived_id, new_id
from choreo.errors import BrokerError, ConfigurationError
from choreo.handler import Emit, EmitItem
from choreo.record import Outgoing
from choreo.runtime.emitting import Emitter
from choreo.runtime.sends import Sends, by_key
from choreo.store import OutboxRow
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
        self._async = AsyncPublisher(self, self._make_broker().producer())
        return self._async

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._async is not None:
            await self._async.close()

    def __enter__(self) -> Publisher:
        self._plain = Publisher(self, self._make_broker().producer())
        return self._plain

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._plain is not None:
            self._plain.close()

    def records(self, events: Sequence[EmitItem], event_id: str | None) -> tuple[Published, list[Outgoing]]:
        """One flow: the first event's id is the flow's, and the others' derive from it: who publishes the same again under that id
        makes the same events. A given `event_id` is the first's."""
        if not events:
            raise ConfigurationError("publish() without an event")
        first = event_id or new_id()
        trace = current_traceparent()
        made: list[Outgoing] = []
        for number, event in enumerate(events):
            self._check(event)
            own = first if number == 0 else derived_id(first, number)
            made.append(self._emitter.root(event, event_id=own, flow_id=first, traceparent=trace, source=f"{self._service}/publish"))
        return Published(first, first), made

    def row(self, event: EmitItem, event_id: str | None) -> tuple[Published, OutboxRow]:
        """One event, a flow of its own, as a row of an outbox. Raises ConfigurationError for one that is not declared."""
        self._check(event)
        own = event_id or new_id()
        source = f"{self._service}/outbox"
        row = self._emitter.root_row(event, event_id=own, flow_id=own, traceparent=current_traceparent(), source=source)
        return Published(own, own), row

    def _check(self, event: Any) -> None:
        inner = event.event if isinstance(event, Emit) else event
        cls = getattr(inner, "of", type(inner))
        if self._allowed is not None and cls not in self._allowed:
            raise ConfigurationError(
                f"service {self._service} does not declare that it publishes {cls.__name__}; add it to Service(publishes=[...])"
            )


class AsyncPublisher:
    """Owner: the event loop that entered it."""

    def __init__(self, publishing: Publishing, producer: Producer) -> None:
        self._publishing = publishing
        self._sends = Sends(producer, Counters(), patient=False)
        self._closed = False

    async def publish(self, *events: EmitItem, event_id: str | None = None) -> Published:
        """Writes the events, those of one key in order; returns when all in-sync replicas have them.

        Raises BrokerError for what can't be written: at once when Kafka refuses it (too large, no right to), after 10 s for a topic
        that isn't there, after 30 s when nothing was acknowledged (``delivery.timeout.ms``). Where its `retriable` is true the
        event may or may not be there: publish it again with the event id that the error names. The same when the publisher is
        closed meanwhile. Raises ConfigurationError for an event that isn't declared.
        """
        published, records = self._publishing.records(events, event_id)
        if self._closed:
            raise _closed(records)
        try:
            await self._sends.acknowledged(records)
        except BrokerError as error:
            if not error.retriable:
                raise
            raise _with_id(error, published) from error
        return published

    async def close(self) -> None:
        """Takes no more; waits up to FLUSH_S for what is under way, while the loop goes on. Whoever publishes still gets an error then."""
        self._closed = True
        try:
            await self._sends.drain(FLUSH_S)
        finally:
            self._sends.close(0)


class Publisher:
    """Owner: the thread that entered it."""

    def __init__(self, publishing: Publishing, producer: Producer) -> None:
        self._publishing = publishing
        self._producer = producer
        self._closed = False

    def publish(self, *events: EmitItem, event_id: str | None = None) -> Published:
        """As `AsyncPublisher.publish`, blocking: the same order, the same errors after the same time."""
        published, records = self._publishing.records(events, event_id)
        if self._closed:
            raise _closed(records)
        try:
            for together in zip_longest(*by_key(records)):
                self._write([record for record in together if record is not None])
        except BrokerError as error:
            if not error.retriable:
                raise
            raise _with_id(error, published) from error
        return published

    def _write(self, records: Sequence[Outgoing]) -> None:
        """Records of different keys; returns when all are acknowledged."""
        reports: list[Report] = []
        for record in records:
            self._send(record, reports)
        while len(reports) < len(records):
            self._producer.poll(0.1)
        for report in reports:
            if report.error is not None:
                raise report.error

    def _send(self, record: Outgoing, reports: list[Report]) -> None:
        while True:
            try:
                self._producer.send(record, reports.append)
            except BufferError:
                self._producer.poll(0.1)
            else:
                return

    def close(self) -> None:
        """Waits up to FLUSH_S for what is under way, and blocks."""
        self._closed = True
        self._producer.close(FLUSH_S)


def _closed(records: Sequence[Outgoing]) -> BrokerError:
    return BrokerError(f"writing to {records[0].topic}: this publisher is closed; publish within its block", code="_STATE", retriable=False)


def _with_id(error: BrokerError, published: Published) -> BrokerError:
    """It is unknown whether the event was written: the same error, which says under which id to publish it again."""
    text = f"{error}; unknown whether it was written: publish it again with event_id={published.event_id!r}"
    return BrokerError(text, code=error.code, retriable=True, fatal=error.fatal)
