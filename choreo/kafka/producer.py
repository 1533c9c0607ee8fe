"""The idempotent producer on real Kafka: the `Producer` port over confluent_kafka.

A fatal error (an idempotent producer that lost its sequence) leaves every outstanding send unknown: they are reported
as such, and a new client is built for what comes next (TRAPS 14). Callbacks only call the report they were given.
"""

from __future__ import annotations

import logging
import os
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


class _Sent(msgspec.Struct, eq=False):
    """One send whose report is out; it is called once, whoever comes first."""

    out: set[_Sent]
    record: Outgoing
    report: Callable[[Report], None]

    def delivered(self, error: KafkaError | None, message: Message) -> None:
        if self in self.out:
            self.out.discard(self)
            if error is None:
                self.report(Report(message.partition(), message.offset(), None))  # type: ignore[arg-type]
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
        _made.add(self)

    def _build(self) -> Producer:
        return Producer({**self._properties, "error_cb": self._errors.append}, logger=self._logger)

    def send(self, record: Outgoing, report: Callable[[Report], None]) -> None:
        if self._closed:
            self._refuse()
        sent = _Sent(self._out, record, report)
        headers = record.headers if type(record.headers) is list else list(record.headers)
        try:
            if record.partition is None:
                self._client.produce(record.topic, record.value, record.key, headers=headers, on_delivery=sent.delivered)
            else:
                self._client.produce(record.topic, record.value, record.key, record.partition, headers=headers, on_delivery=sent.delivered)
        except KafkaException as error:
            raise broker_error(error, f"writing to {record.topic}") from error
        self._out.add(sent)

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
        except SystemError as error:
            self._rebuild(f"librdkafka failed: {error}")
        if self._errors:
            self._look_at_errors()
        return before - len(self._out)

    def _look_at_errors(self) -> None:
        while self._errors:
            problem = broker_error(self._errors.popleft(), "producer")
            if problem.fatal:
                self._rebuild(str(problem))
                return
            _log.warning("%s", problem)

    def _rebuild(self, why: str) -> None:
        _log.error("the producer failed for good (%s); building a new one, %d sends are unknown", why, len(self._out))
        self._client.purge()
        self._errors.clear()
        self._client = self._build()
        self._report_unknown(f"producer failed: {why}")

    def _report_unknown(self, why: str) -> int:
        unknown = list(self._out)
        self._out.clear()
        for sent in unknown:
            sent.report(
                Report(-1, -1, BrokerError(f"writing to {sent.record.topic}: unknown outcome: {why}", code="UNKNOWN", retriable=True))
            )
        return len(unknown)

    def flush(self, timeout_s: float) -> int:
        self._client.flush(timeout_s)
        if self._errors:
            self._look_at_errors()
        return len(self._out)

    def close(self, timeout_s: float) -> int:
        if self._closed:
            return 0
        self._client.flush(timeout_s)
        self._closed = True
        if self._out:
            self._client.purge()
            self._client.poll(0)
        left = self._report_unknown("closed before it was acknowledged")
        self._client.close()
        return left


_made: WeakSet[KafkaProducer] = WeakSet()


def _tell_children() -> None:
    for producer in _made:
        producer.forked()


os.register_at_fork(after_in_child=_tell_children)
