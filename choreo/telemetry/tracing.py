"""Which span does an attempt get? One PROCESS span an attempt, child of the producer's span; none for an unsampled trace.

Without an OpenTelemetry SDK, or where the producer's trace is not sampled, no span object is made: the trace ids travel
in `traceparent` all the same.
"""

from __future__ import annotations

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from choreo.envelope import Wire
from choreo.errors import told
from choreo.record import Record


class Attempt:
    """The span of one attempt, current while the handler runs. Owner: the task or thread that runs the handler."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span
        self._token = otel_context.attach(trace.set_span_in_context(span))

    @property
    def traceparent(self) -> str:
        return traceparent(self._span.get_span_context())

    def end(self, error: BaseException | None) -> None:
        """The attempt is over; how it failed, if it did."""
        otel_context.detach(self._token)
        if error is not None:
            self._span.set_attribute("error.type", type(error).__qualname__)
            self._span.set_status(Status(StatusCode.ERROR, told(error)[:200]))
        self._span.end()


class Tracing:
    """Makes spans where somebody will read them. `group` is the consumer group's name, prefix included. `on` is settled when
    the worker starts."""

    def __init__(self, group: str, provider: trace.TracerProvider | None = None) -> None:
        chosen = provider or trace.get_tracer_provider()
        self.on = not isinstance(chosen, trace.NoOpTracerProvider | trace.ProxyTracerProvider)
        self._tracer = chosen.get_tracer("choreo")
        self._group = group

    def attempt(self, wire: Wire, record: Record, handler: str, attempt: int) -> Attempt | None:
        """The span of this attempt; None when tracing is off or the producer's trace is not sampled."""
        if not self.on:
            return None
        parent = wire.traceparent
        if parent is not None and not int(parent[53:55], 16) & 1:
            return None
        context = None
        if parent is not None:
            remote = SpanContext(
                int(parent[3:35], 16), int(parent[36:52], 16), is_remote=True, trace_flags=TraceFlags(int(parent[53:55], 16))
            )
            context = trace.set_span_in_context(NonRecordingSpan(remote))
        span = self._tracer.start_span(
            f"process {record.topic}",
            context=context if context is not None else otel_context.Context(),
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.operation.name": "process",
                "messaging.destination.name": record.topic,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.kafka.offset": record.offset,
                "messaging.consumer.group.name": self._group,
                "messaging.message.id": wire.event_id,
                "messaging.message.conversation_id": wire.flow_id,
                "choreo.handler": handler,
                "choreo.attempt": attempt,
            },
        )
        return Attempt(span)


def current_traceparent() -> str | None:
    """The traceparent of the caller's current span; None when there is none."""
    found = trace.get_current_span().get_span_context()
    return traceparent(found) if found.is_valid else None


def traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
