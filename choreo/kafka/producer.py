"""The idempotent producer on real Kafka: the `Producer` port over confluent_kafka.

A fatal error (an idempotent producer that lost its sequence) leaves every outstanding send unknown: they are reported
as such, and a new client is built for what comes next (TRAPS 14). Callbacks only call the report they were given.

A broker refuses a batch as a whole when it is larger than the topic takes, and librdkafka's report doesn't say which record
is to blame: each is written once more, in a batch of its own, and what is refused alone is too large.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from weakref import WeakSet

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from choreo.broker import Report
from choreo.errors import BrokerError, StateError
from choreo.kafka.errors import broker_error
from choreo.record import Outgoing

_log = logging.getLogger("choreo.kafka")
_FAILED = (SystemError, KafkaException)
"""What a client raises that has failed for good (TRAPS 14)."""


class _Sent(msgspec.Struct, eq=False):
    """One send whose report is out; it is called once, whoever comes first."""

    out: set[_Sent]
    record: Outgoing
    report: Callable[[Report], None]
    write_alone: Callable[[_Sent], None]
    alone: bool = False

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        if self in self.out:
            if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE and not self.alone:
                self.write_alone(self)
                return
            self.out.discard(self)
            if error is None:
                offset = message.offset()
                self.report(Report(message.partition(), -1 if offset is None else offset, None))  # type: ignore[arg-type]
            else:
                self.report(Report(-1, -1, broker_error(error, f"writing to {self.record.topic}")))


class KafkaProducer:
    """See `choreo.broker.Producer`. Owner: the thread that sends."""

    def __init__(self, properties: Mapping[str, Any], logger: logging.Logger) -> None:
        self._properties = dict(properties)
        self._logger = logger
        self._out: set[_Sent] = set()
        self._errors: deque[KafkaError] = deque()
        self._closed = False
        self._forked = False
        self._client = self._build()
        self._one_by_one: Producer | None = None
        _made.add(self)

    def _build(self, **properties: Any) -> Producer:
        return Producer({**self._properties, **properties, "error_cb": self._errors.append}, logger=self._logger)

    def send(self, record: Outgoing, report: Callable[[Report], None]) -> None:
        if self._closed:
            self._refuse()
        sent = _Sent(self._out, record, report, self._write_alone)
        try:
            self._produce(self._client, sent)
        except KafkaException as error:
            raise broker_error(error, f"writing to {record.topic}") from error
        self._out.add(sent)

    def _produce(self, client: Producer, sent: _Sent) -> None:
        record = sent.record
        headers: Any = record.headers if type(record.headers) is list else list(record.headers)
        if record.partition is None:
            client.produce(record.topic, record.value, record.key, headers=headers, on_delivery=sent.delivered)
        else:
            client.produce(record.topic, record.value, record.key, record.partition, headers=headers, on_delivery=sent.delivered)

    def _write_alone(self, sent: _Sent) -> None:
        """Its batch was too large; the order among such records stays, what else was sent meanwhile may overtake them."""
        sent.alone = True
        if self._one_by_one is None:
            self._one_by_one = self._build(**{"batch.num.messages": 1})
        try:
            self._produce(self._one_by_one, sent)
        except (KafkaException, BufferError) as error:
            self._out.discard(sent)
            problem = broker_error(error, f"writing to {sent.record.topic}") if isinstance(error, KafkaException) else None
            sent.report(Report(-1, -1, problem or BrokerError(f"writing to {sent.record.topic}: {error}", code="_QUEUE_FULL")))

    def _refuse(self) -> NoReturn:
        if self._forked:
            raise StateError(f"this process ({os.getpid()}) was forked after the producer was made; spawn it instead")
        raise BrokerError("the producer is closed", code="_STATE", retriable=False)

    def forked(self) -> None:
        """This process is a child: it has the client without its threads. Nothing would ever leave, not even at the end (TRAPS 24)."""
        self._closed = self._forked = True
        self._out.clear()

    def poll(self, timeout_s: float) -> int:
        before = len(self._out)
        try:
            self._client.poll(timeout_s)
            if self._one_by_one is not None:
                self._one_by_one.poll(0)
        except _FAILED as error:
            # The client's binding raises a fatal error here instead of calling error_cb.
            self._rebuild(_problem(error))
        if self._errors:
            self._look_at_errors()
        return before - len(self._out)

    def _look_at_errors(self) -> None:
        while self._errors:
            problem = broker_error(self._errors.popleft(), "producer")
            if problem.fatal:
                self._rebuild(problem)
                return
            _log.warning("%s", problem)

    def _rebuild(self, problem: BrokerError) -> None:
        _log.error("the producer failed for good (%s); building a new one, %d sends are unknown", problem, len(self._out))
        self._purge()
        self._errors.clear()
        self._client, self._one_by_one = self._build(), None
        # Who has no right to write gets this in place of an error of the topic; no new client helps.
        forbidden = problem.code.endswith("AUTHORIZATION_FAILED")
        self._report_unknown(f"producer failed: {problem}", problem.code if forbidden else "UNKNOWN", retriable=not forbidden)

    def _purge(self) -> None:
        self._client.purge()
        if self._one_by_one is not None:
            self._one_by_one.purge()

    def _report_unknown(self, why: str, code: str = "UNKNOWN", *, retriable: bool = True) -> None:
        unknown = list(self._out)
        self._out.clear()
        for sent in unknown:
            error = BrokerError(f"writing to {sent.record.topic}: unknown outcome: {why}", code=code, retriable=retriable)
            sent.report(Report(-1, -1, error))

    def flush(self, timeout_s: float) -> int:
        self._flush(timeout_s)
        if self._errors:
            self._look_at_errors()
        return len(self._out)

    def close(self, timeout_s: float) -> int:
        if self._closed:
            return 0
        self._flush(timeout_s)
        self._closed = True
        left = len(self._out)
        self._purge()
        if left:
            # Of what never left the local queue the reports say so.
            self.poll(0)
        self._report_unknown("closed before it was acknowledged")
        self._client.close()
        if self._one_by_one is not None:
            self._one_by_one.close()
        return left

    def _flush(self, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        try:
            self._client.flush(timeout_s)
            if self._one_by_one is not None:
                self._one_by_one.flush(max(0.0, until - time.monotonic()))
        except _FAILED as error:
            # A client that failed for good flushes nothing: what is out is unknown.
            self._rebuild(_problem(error))


def _problem(error: Exception) -> BrokerError:
    return broker_error(error, "producer") if isinstance(error, KafkaException) else BrokerError(f"librdkafka failed: {error}", fatal=True)


_made: WeakSet[KafkaProducer] = WeakSet()


def _tell_children() -> None:
    for producer in _made:
        producer.forked()


os.register_at_fork(after_in_child=_tell_children)
