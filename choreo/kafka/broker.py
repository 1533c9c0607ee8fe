"""Makes the clients of one Kafka cluster; the `Broker` port. Refuses to be used after a fork (TRAPS 24), or with properties
that librdkafka refuses: those are found when the first client is asked for, without a connection, before anything is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Literal

from confluent_kafka import Consumer, Producer

from choreo.errors import ConfigurationError, StateError
from choreo.kafka.cluster import KafkaCluster, KafkaLogReader
from choreo.kafka.consumer import KafkaConsumer
from choreo.kafka.errors import why_refused
from choreo.kafka.producer import KafkaProducer
from choreo.kafka.settings import KNOWN, KafkaSettings
from choreo.kafka.transactions import KafkaTransactor

Protocol = Literal["classic", "consumer"]

_log = logging.getLogger("choreo.kafka")
_silent = logging.getLogger("choreo.kafka.check")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


class KafkaBroker:
    """See `choreo.broker.Broker`. Its first use raises ConfigurationError where librdkafka refuses the properties."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._pid = os.getpid()
        self._protocol: Protocol | None = None
        self._checked = False

    def consumer(self, group: str) -> KafkaConsumer:
        self._check()
        return KafkaConsumer(self._settings.consumer(group, self.group_protocol()), _log)

    def producer(self) -> KafkaProducer:
        self._check()
        return KafkaProducer(self._settings.producer(), _log)

    def transactor(self, transactional_id: str) -> KafkaTransactor:
        self._check()
        properties = self._settings.transactor(transactional_id)
        said = why_refused(lambda: Producer(_without_brokers(properties), logger=_silent))
        if said is not None:
            raise ConfigurationError(f"Kafka properties of transactions: librdkafka says: {said}")
        return KafkaTransactor(properties, _log)

    def reader(self) -> KafkaLogReader:
        self._check()
        return KafkaLogReader(self._settings.reader(), _log)

    def cluster(self) -> KafkaCluster:
        self._check()
        return KafkaCluster(self._settings.common(), _log)

    def group_protocol(self) -> Protocol:
        """``consumer`` (KIP-848) where the brokers offer it and nothing asks for the classic one. Blocks the first time, and
        then raises ConfigurationError for properties that don't go with it."""
        if self._protocol is None:
            found = self._settings.settled_protocol()
            if found is None:
                found = "consumer" if self.cluster().offers_consumer_protocol() else "classic"
            _check_with(self._settings, found)
            self._protocol = found
        return self._protocol

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise StateError(f"this process ({os.getpid()}) was forked from {self._pid} after Kafka clients were made; spawn it instead")
        if not self._checked:
            _check_with(self._settings, self._settings.settled_protocol() or "consumer")
            self._checked = True


def _check_with(settings: KafkaSettings, protocol: Protocol) -> None:
    """Raises ConfigurationError naming the property, what librdkafka says of it, and what to do."""
    said = _refusal(settings, protocol)
    if said is None:
        return
    names = _to_blame(settings, protocol, said)
    what = f"Kafka propert{'ies' if len(names) > 1 else 'y'} {', '.join(names)}" if names else "Kafka properties"
    raise ConfigurationError(f"{what}: librdkafka says: {said}; {_advice(names, said)}")


def _refusal(settings: KafkaSettings, protocol: Protocol) -> str | None:
    """Builds a consumer and a producer that know no broker, less than a millisecond for both: what is said against them."""

    def consumer() -> None:
        Consumer(_without_brokers(settings.consumer("choreo-check", protocol)), logger=_silent).close()

    def producer() -> None:
        Producer(_without_brokers(settings.producer()), logger=_silent)

    return why_refused(consumer) or why_refused(producer)


def _without_brokers(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in properties.items() if name != "bootstrap.servers"}


def _to_blame(settings: KafkaSettings, protocol: Protocol, said: str) -> list[str]:
    """The properties without which librdkafka would not say this: it may use an older name (queue.buffering.max.ms for
    linger.ms), or none. One that it does name goes before the others."""

    def without(name: str) -> KafkaSettings:
        return replace(settings, properties={n: v for n, v in settings.properties.items() if n != name})

    guilty = [name for name in settings.properties if _refusal(without(name), protocol) != said]
    named = [name for name in guilty if f'"{name}"' in said or f"`{name}`" in said or said.startswith(f"{name} ")]
    return named[:1] or guilty


def _advice(names: list[str], said: str) -> str:
    if said.startswith("No such configuration property"):
        close = get_close_matches(names[0], KNOWN, n=1) if names else []
        return f"did you mean {close[0]!r}?" if close else "remove it, or see librdkafka's CONFIGURATION.md for its names"
    return f"correct {'them' if len(names) > 1 else 'it'}, or leave {'one of them' if len(names) > 1 else 'it'} out"
