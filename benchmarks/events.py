"""What the benchmark sends: 200-byte JSON events with three headers over 1,000 keys."""

from __future__ import annotations

import time

from confluent_kafka import Producer

from choreo import Context, Envelope, Event, Handler

KEYS = 1000
PAD = "x" * 70


class OrderPlaced(Event, type="order.placed", topic="bench-in", key="order_id"):
    order_id: str
    total_cents: int


class OrderSeen(Event, type="order.seen", topic="bench-out", key="order_id"):
    order_id: str


class Count(Handler[OrderPlaced]):
    """Does nothing but be called."""

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
        return None


class CountOnThread(Handler[OrderPlaced]):
    """The same on a worker thread."""

    def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
        return None


class See(Handler[OrderPlaced]):
    """Emits one event for each."""

    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderSeen:
        return OrderSeen(order_id=event.payload.order_id)


def value(number: int, order_id: str | None = None) -> bytes:
    """About 200 bytes."""
    order_id = f"o-{number % KEYS:04d}" if order_id is None else order_id
    return (
        f'{{"type":"order.placed","timestamp":"2026-11-22T22:37:07.000000Z","payload":'
        f'{{"order_id":"{order_id}","total_cents":{number},"note":"{PAD}"}}}}'
    ).encode()


def headers(number: int, *, sampled: bool | None = None) -> list[tuple[str, str | bytes | None]]:
    """Id, flow and content type; a traceparent in place of the content type where tracing is measured."""
    event_id = b"0198c2d4-7b1e-7c3a-8000-%012d" % number
    third = ("content-type", b"application/json")
    if sampled is not None:
        third = ("traceparent", b"00-%032x-%016x-%02d" % (number + 1, number + 1, sampled))
    return [("choreo-id", event_id), ("choreo-correlation-id", event_id), third]


def fill(bootstrap: str, topic: str, count: int, *, sampled_every: int = 0) -> None:
    """Writes `count` events; with `sampled_every` n each n-th trace is sampled, the others are not."""
    producer = Producer(
        {"bootstrap.servers": bootstrap, "linger.ms": 20, "partitioner": "murmur2_random", "queue.buffering.max.messages": 500_000}
    )
    for number in range(count):
        sampled = number % sampled_every == 0 if sampled_every else None
        while True:
            try:
                producer.produce(topic, value(number), b"o-%04d" % (number % KEYS), headers=headers(number, sampled=sampled))
                break
            except BufferError:
                producer.poll(0.1)
        if number % 1000 == 0:
            producer.poll(0)
    deadline = time.monotonic() + 60
    while producer.flush(1.0) and time.monotonic() < deadline:
        pass
