"""Which span does an attempt get? Read with OpenTelemetry's own SDK, by an exporter in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from choreo import Context, Envelope, Event, Handler, MemoryStore, PermanentError, RetryPolicy, Service, ServiceSettings, TransientError
from choreo.envelope import TRACEPARENT, valid_traceparent
from choreo.record import Outgoing
from choreo.runtime.worker import Worker
from choreo.testing import MemoryBroker

DEADLINE_S = 20.0
PREFIX = "staging."
TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = f"00-{TRACE}-b7ad6b7169203331-01"
UNSAMPLED = f"00-{TRACE}-b7ad6b7169203331-00"


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class ChargeCard(Handler[OrderPlaced]):
    """Fails at first, and for ever for the order ``unknown``."""

    retry = RetryPolicy(max_attempts=2, base_delay_s=0.0)

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived:
        if event.payload.order_id == "unknown":
            raise PermanentError("the gateway does not know this card")
        if context.attempt == 1:
            raise TransientError("the gateway is busy")
        return PaymentReceived(order_id=event.payload.order_id)


class Book(Handler[PaymentReceived]):
    """A plain function, so that it runs on a thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.booked = asyncio.Event()
        self.current = ""

    def handle(self, event: Envelope[PaymentReceived], context: Context) -> None:
        self.current = f"{trace.get_current_span().get_span_context().span_id:016x}"
        self._loop.call_soon_threadsafe(self.booked.set)


class Traced:
    """Two handlers at work, on a broker that can be looked into."""

    def __init__(self, broker: MemoryBroker, service: Service, worker: Worker, book: Book) -> None:
        self.broker = broker
        self.service = service
        self.worker = worker
        self.book = book

    def write(self, order_id: str, traceparent: str | None) -> None:
        """Writes an order as a producer would that isn't ours."""
        headers = [] if traceparent is None else [(TRACEPARENT, traceparent.encode())]
        value = f'{{"type":"order.placed","timestamp":"2026-11-22T03:00:00Z","payload":{{"order_id":"{order_id}"}}}}'.encode()
        self.broker.write(Outgoing(f"{PREFIX}orders", order_id.encode(), value, headers))

    async def booked(self) -> str:
        """The traceparent of the payment that was emitted, once it has been handled."""
        async with asyncio.timeout(DEADLINE_S):
            await self.book.booked.wait()
        (record,) = self.broker.records(f"{PREFIX}payments")
        return str((dict(record.headers)[TRACEPARENT] or b"").decode())


@asynccontextmanager
async def at_work(provider: TracerProvider | None) -> AsyncIterator[Traced]:
    broker, book = MemoryBroker(), Book(asyncio.get_running_loop())
    settings = ServiceSettings(broker=broker, drain_s=2.0, topic_prefix=PREFIX)
    service = Service("payments", handlers=[ChargeCard(), book], publishes=[OrderPlaced], store=MemoryStore(), settings=settings)
    for topic in service.topics():
        broker.create_topic(PREFIX + topic)
    worker = Worker(replace(service.plan(settings), tracing=provider), broker)
    await worker.start()
    try:
        yield Traced(broker, service, worker, book)
    finally:
        await worker.stop()


class Spans:
    """The spans that have ended, and what makes them."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def of(self, handler: str) -> Sequence[ReadableSpan]:
        """Those of one handler, by attempt."""
        own = [span for span in self._exporter.get_finished_spans() if attributes(span).get("choreo.handler") == handler]
        return sorted(own, key=lambda span: attributes(span)["choreo.attempt"])

    def names(self) -> list[str]:
        return sorted(span.name for span in self._exporter.get_finished_spans())


@pytest.fixture
def spans() -> Iterator[Spans]:
    made = Spans()
    yield made
    made.provider.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def span_id(span: ReadableSpan) -> str:
    return f"{span.context.span_id:016x}"


def parent_id(span: ReadableSpan) -> str:
    return "" if span.parent is None else f"{span.parent.span_id:016x}"


async def test_every_attempt_is_a_span_of_its_own_below_the_producers(spans: Spans) -> None:
    async with at_work(spans.provider) as traced:
        traced.write("o-1", SAMPLED)
        await traced.booked()

    attempts = spans.of("charge-card")
    assert [(span.name, span.kind, attributes(span)["choreo.attempt"]) for span in attempts] == [
        ("process staging.orders", SpanKind.CONSUMER, 1),
        ("process staging.orders", SpanKind.CONSUMER, 2),
    ]
    assert {(f"{span.context.trace_id:032x}", parent_id(span)) for span in attempts} == {(TRACE, "b7ad6b7169203331")}
    assert len({span_id(span) for span in attempts}) == 2


async def test_a_failed_attempt_says_why_and_the_next_one_says_nothing(spans: Spans) -> None:
    async with at_work(spans.provider) as traced:
        traced.write("o-1", SAMPLED)
        await traced.booked()

    failed, succeeded = spans.of("charge-card")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "the gateway is busy")
    assert attributes(failed)["error.type"] == "TransientError"
    assert succeeded.status.status_code is StatusCode.UNSET
    assert "error.type" not in attributes(succeeded)


async def test_an_emitted_event_carries_the_span_of_the_attempt_that_emitted_it(spans: Spans) -> None:
    async with at_work(spans.provider) as traced:
        traced.write("o-1", SAMPLED)
        emitted = await traced.booked()

    _, second = spans.of("charge-card")
    (booked,) = spans.of("book")
    assert emitted == f"00-{TRACE}-{span_id(second)}-01"
    assert parent_id(booked) == span_id(second)


async def test_the_span_is_current_in_a_handler_on_a_thread(spans: Spans) -> None:
    async with at_work(spans.provider) as traced:
        traced.write("o-1", SAMPLED)
        await traced.booked()

    (booked,) = spans.of("book")
    assert traced.book.current == span_id(booked)


async def test_a_span_names_the_group_the_place_and_the_flow(spans: Spans) -> None:
    async with at_work(spans.provider) as traced, traced.service.publisher() as publisher:
        with spans.provider.get_tracer("shop").start_as_current_span("POST /orders"):
            published = await publisher.publish(OrderPlaced(order_id="o-1"))
        await traced.booked()

    actual = attributes(spans.of("charge-card")[0])
    assert actual == {
        "messaging.system": "kafka",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "staging.orders",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 0,
        "messaging.consumer.group.name": "staging.payments",
        "messaging.message.id": published.event_id,
        "messaging.message.conversation_id": published.flow_id,
        "choreo.handler": "charge-card",
        "choreo.attempt": 1,
        "error.type": "TransientError",
    }


async def test_a_publisher_continues_the_span_of_its_caller(spans: Spans) -> None:
    async with at_work(spans.provider) as traced, traced.service.publisher() as publisher:
        with spans.provider.get_tracer("shop").start_as_current_span("POST /orders") as request:
            await publisher.publish(OrderPlaced(order_id="o-1"))
        await traced.booked()

    assert {parent_id(span) for span in spans.of("charge-card")} == {f"{request.get_span_context().span_id:016x}"}
    assert spans.names() == ["POST /orders", "process staging.orders", "process staging.orders", "process staging.payments"]


async def test_an_event_without_a_trace_begins_one(spans: Spans) -> None:
    async with at_work(spans.provider) as traced:
        traced.write("o-1", None)
        emitted = await traced.booked()

    second = spans.of("charge-card")[1]
    assert parent_id(second) == ""
    assert emitted == f"00-{second.context.trace_id:032x}-{span_id(second)}-{second.context.trace_flags:02x}"


async def test_a_trace_that_is_not_sampled_costs_no_span_and_goes_on(spans: Spans) -> None:
    async with at_work(spans.provider) as traced:
        traced.write("o-1", UNSAMPLED)
        emitted = await traced.booked()

    assert spans.names() == []
    assert traced.book.current == f"{0:016x}"
    assert (emitted[:36], emitted[-3:]) == (f"00-{TRACE}-", "-00")
    assert emitted[36:52] != UNSAMPLED[36:52]


async def test_without_an_sdk_there_is_no_span_and_the_trace_goes_on() -> None:
    async with at_work(None) as traced:
        traced.write("o-1", SAMPLED)
        emitted = await traced.booked()

    assert traced.book.current == f"{0:016x}"
    assert valid_traceparent(emitted)
    assert (emitted[:36], emitted[-3:]) == (f"00-{TRACE}-", "-01")


async def test_an_event_that_dies_has_its_error_on_its_span(spans: Spans) -> None:
    async with at_work(spans.provider) as traced:
        traced.write("unknown", SAMPLED)
        traced.write("o-1", SAMPLED)
        await traced.booked()

    (died,) = [span for span in spans.of("charge-card") if attributes(span).get("error.type") == "PermanentError"]
    assert (died.status.status_code, died.status.description) == (StatusCode.ERROR, "the gateway does not know this card")
