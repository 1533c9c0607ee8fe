"""What was sent? Events of choreo's wire format written straight through confluent_kafka, and what Kafka said of each."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from types import TracebackType

import orjson
from confluent_kafka import KafkaError, Message, Producer

from choreo.envelope import CONTENT_TYPE, ID, JSON, header_text, new_id
from choreo.record import Headers, Record
from tests.support.history import Outcome, Produced
from tests.support.kafka_access import KafkaAccess

EVENT_TYPE = "test.booked"
FLUSH_S = 60.0

SETTINGS = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random", "linger.ms": 2, "message.max.bytes": 2_000_000}

# Errors that say that the record never left this process, or that the broker refused it: it is not in the log.
SURELY_NOT_WRITTEN = frozenset(
    {
        KafkaError._PURGE_QUEUE,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
    }
)


def event_value(key: str | None, amount: int, *, event_type: str = EVENT_TYPE, number: int = 0) -> bytes:
    """An envelope: ``{"type": ..., "timestamp": ..., "payload": {"key": ..., "amount": ..., "number": ...}}``."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return orjson.dumps({"type": event_type, "timestamp": now, "payload": {"key": key, "amount": amount, "number": number}})


def produced_from_log(records: Iterable[Record]) -> list[Produced]:
    """Records of a topic as acknowledged events, for topics that choreo wrote itself; the amount is the payload's."""
    found = []
    for record in records:
        payload = orjson.loads(record.value or b"{}").get("payload", {})
        event_id = header_text(dict(record.headers).get(ID)) or f"{record.origin}"
        found.append(
            Produced(
                event_id, record.topic, record.partition, record.offset, record.key, record.value, record.headers, payload.get("amount", 0)
            )
        )
    return found


class TestProducer:
    """Writes records one after the other and keeps what became of each. Used by one thread; a context manager that flushes.

    The order of the log is, for each partition, the order of the calls.
    """

    __test__ = False

    def __init__(self, kafka: KafkaAccess) -> None:
        self._producer = Producer(kafka.config(SETTINGS))
        self._sent: list[Produced] = []

    def __enter__(self) -> TestProducer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.flush()

    def event(self, topic: str, key: str | None, amount: int, *, event_type: str = EVENT_TYPE, event_id: str | None = None) -> str:
        """Sends one event with a new id, or the one given; returns the id."""
        event_id = event_id or new_id()
        value = event_value(key, amount, event_type=event_type, number=len(self._sent))
        headers = [(ID, event_id.encode()), (CONTENT_TYPE, JSON.encode())]
        self.raw(topic, None if key is None else key.encode(), value, headers, event_id=event_id, amount=amount)
        return event_id

    def raw(
        self, topic: str, key: bytes | None, value: bytes | None, headers: Headers = (), *, event_id: str = "", amount: int = 0
    ) -> None:
        """Sends bytes as they are. Waits while the local queue is full."""
        number = len(self._sent)
        self._sent.append(Produced(event_id, topic, -1, -1, key, value, tuple(headers), amount, "unknown", time.monotonic()))

        def report(error: KafkaError | None, message: Message) -> None:
            self._settle(number, error, message)

        while True:
            try:
                self._producer.produce(topic, value, key, headers=list(headers), on_delivery=report)
            except BufferError:
                self._producer.poll(0.1)
                continue
            self._producer.poll(0)
            return

    def flush(self, deadline_s: float = FLUSH_S) -> list[Produced]:
        """Everything sent so far, with what Kafka said; what it has not answered within the deadline is `unknown`."""
        self._producer.flush(deadline_s)
        return list(self._sent)

    def poll(self, timeout_s: float) -> None:
        """Hears reports."""
        self._producer.poll(timeout_s)

    def _settle(self, number: int, error: KafkaError | None, message: Message) -> None:
        sent = self._sent[number]
        outcome: Outcome = "ok" if error is None else "fail" if error.code() in SURELY_NOT_WRITTEN else "unknown"
        partition, offset = message.partition(), message.offset()
        if outcome == "ok" and offset is None:
            # A retry found it written already, and Kafka doesn't say where: the log decides.
            outcome = "unknown"
        if outcome != "ok" or partition is None or offset is None:
            partition, offset = -1, -1
        self._sent[number] = Produced(
            sent.event_id, sent.topic, partition, offset, sent.key, sent.value, sent.headers, sent.amount, outcome, sent.at_s
        )


def produce_events(
    kafka: KafkaAccess, topic: str, events: Iterable[tuple[str | None, int]], *, event_type: str = EVENT_TYPE
) -> list[Produced]:
    """Writes (key, amount) events as fast as it goes and returns them, acknowledged, in the order they were sent.

    Raises AssertionError when one was not acknowledged: for a Kafka that is not being broken.
    """
    with TestProducer(kafka) as producer:
        for key, amount in events:
            producer.event(topic, key, amount, event_type=event_type)
        produced = producer.flush()
    refused = [event for event in produced if event.outcome != "ok"]
    assert not refused, f"{len(refused)} of {len(produced)} events were not acknowledged, the first: {refused[0]}"
    return produced


def random_events(count: int, *, keys: int, seed: int) -> list[tuple[str | None, int]]:
    """`count` (key, amount) of `keys` keys ``k-0``, ``k-1``, ...; the same seed, the same events."""
    chance = random.Random(seed)
    return [(f"k-{chance.randrange(keys)}", chance.randint(1, 1000)) for _ in range(count)]


class Load:
    """Events at a steady rate from a thread of its own, through whatever happens to Kafka, until `stop`.

    >>> with Load(kafka, topic, keys=20, rate_per_s=200, seed=seed) as load:
    ...     nemesis.run(30)
    >>> load.produced
    """

    def __init__(self, kafka: KafkaAccess, topic: str, *, keys: int, rate_per_s: float, seed: int) -> None:
        self.produced: Sequence[Produced] = ()
        """What became of each event; complete after `stop`."""
        self._kafka = kafka
        self._topic = topic
        self._keys = keys
        self._rate_per_s = rate_per_s
        self._chance = random.Random(seed)
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> Sequence[Produced]:
        """Sends no more, waits for what is out, and returns everything. Raises what the thread died of."""
        self._ended.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self.produced

    def _run(self) -> None:
        try:
            with TestProducer(self._kafka) as producer:
                self._send(producer)
                self.produced = producer.flush()
        except BaseException as failure:
            self._failure = failure

    def _send(self, producer: TestProducer) -> None:
        began_at, sent = time.monotonic(), 0
        while not self._ended.is_set():
            due = int((time.monotonic() - began_at) * self._rate_per_s)
            while sent < due and not self._ended.is_set():
                producer.event(self._topic, f"k-{self._chance.randrange(self._keys)}", self._chance.randint(1, 1000))
                sent += 1
            producer.poll(0.005)
