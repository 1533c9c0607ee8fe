"""The hand-written loop that choreo is measured against: as fast as confluent_kafka goes while nothing is lost.

It consumes in batches, decodes with orjson, and commits each batch; when it emits, a batch's offsets are committed only
after its last emit was acknowledged, without ever stopping for it.
"""

from __future__ import annotations

import time
import uuid
from collections import deque

import orjson
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

_CONSUMER = {
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "queued.min.messages": 2000,
    "queued.max.messages.kbytes": 8192,
    "fetch.queue.backoff.ms": 10,
    "fetch.wait.max.ms": 100,
    "socket.nagle.disable": True,
}


class _Batch:
    """Offsets that may be committed when `left` emits are acknowledged."""

    def __init__(self, offsets: dict[tuple[str, int], int], size: int, *, emits: bool) -> None:
        self.offsets = offsets
        self.size = size
        self.left = size if emits else 0

    def report(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            raise RuntimeError(str(error))
        self.left -= 1


def run(
    bootstrap: str, topic: str, count: int, *, emit_to: str | None = None, linger_ms: float = 5.0, group_protocol: str = "consumer"
) -> float:
    """Events a second, from the first record to the last."""
    consumer = Consumer({**_CONSUMER, "bootstrap.servers": bootstrap, "group.id": f"raw-{uuid.uuid4()}", "group.protocol": group_protocol})
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": linger_ms}
    )
    consumer.subscribe([topic])
    done, began = 0, 0.0
    open_batches: deque[_Batch] = deque()
    while done < count:
        first = consumer.poll(0.05)
        if first is not None:
            began = began or time.perf_counter()
            messages = [first, *consumer.consume(499, 0)]
            offsets: dict[tuple[str, int], int] = {}
            batch = _Batch(offsets, len(messages), emits=emit_to is not None)
            for message in messages:
                event = orjson.loads(message.value() or b"")
                message.headers()
                offsets[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
                if emit_to:
                    _emit(producer, emit_to, event, message, batch)
            open_batches.append(batch)
        producer.poll(0)
        done += _commit_acknowledged(consumer, open_batches)
        if first is None and open_batches:
            producer.poll(0.001)
    took_s = time.perf_counter() - began
    consumer.close()
    return count / took_s


def _commit_acknowledged(consumer: Consumer, open_batches: deque[_Batch]) -> int:
    """Commits what has all its emits acknowledged, in order; how many events that were."""
    done, offsets = 0, dict[tuple[str, int], int]()
    while open_batches and not open_batches[0].left:
        settled = open_batches.popleft()
        offsets.update(settled.offsets)
        done += settled.size
    if offsets:
        consumer.store_offsets(offsets=[TopicPartition(t, p, o) for (t, p), o in offsets.items()])
        consumer.commit(asynchronous=True)
    return done


def _emit(producer: Producer, topic: str, event: dict[str, dict[str, str]], message: Message, batch: _Batch) -> None:
    value = orjson.dumps(
        {"type": "order.seen", "timestamp": "2026-11-22T22:37:07.000000Z", "payload": {"order_id": event["payload"]["order_id"]}}
    )
    while True:
        try:
            producer.produce(topic, value, message.key(), headers=message.headers(), on_delivery=batch.report)
            return
        except BufferError:
            producer.poll(0.01)


def hop(bootstrap: str, topic: str, emit_to: str, until: float) -> None:
    """Handles and emits as they come, for the latency series, until the wall clock says `until`."""
    consumer = Consumer({**_CONSUMER, "bootstrap.servers": bootstrap, "group.id": f"raw-{uuid.uuid4()}", "group.protocol": "consumer"})
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "partitioner": "murmur2_random",
            "linger.ms": 0,
            "socket.nagle.disable": True,
        }
    )
    consumer.subscribe([topic])
    open_batches: deque[_Batch] = deque()
    commit_at = 0.0
    while time.time() < until:
        first = consumer.poll(0.001 if open_batches else 0.05)
        if first is not None:
            messages = [first, *consumer.consume(499, 0)]
            offsets: dict[tuple[str, int], int] = {}
            batch = _Batch(offsets, len(messages), emits=True)
            for message in messages:
                event = orjson.loads(message.value() or b"")
                offsets[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
                _emit(producer, emit_to, event, message, batch)
            open_batches.append(batch)
        producer.poll(0)
        if time.monotonic() >= commit_at:
            # A commit for each small batch would be thousands of requests a second, and the hops stand behind them.
            commit_at = time.monotonic() + 0.1
            _commit_acknowledged(consumer, open_batches)
    consumer.close()
