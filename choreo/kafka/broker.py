"""Makes the clients of one Kafka cluster; the `Broker` port. Refuses to be used after a fork (TRAPS 24)."""

from __future__ import annotations

import logging
import os
from typing import Literal

from choreo.errors import StateError
from choreo.kafka.cluster import KafkaCluster, KafkaLogReader
from choreo.kafka.consumer import KafkaConsumer
from choreo.kafka.producer import KafkaProducer
from choreo.kafka.settings import KafkaSettings

_log = logging.getLogger("choreo.kafka")


class KafkaBroker:
    """See `choreo.broker.Broker`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._pid = os.getpid()
        self._protocol: Literal["classic", "consumer"] | None = None

    def consumer(self, group: str) -> KafkaConsumer:
        self._check_process()
        return KafkaConsumer(self._settings.consumer(group, self.group_protocol()), _log)

    def producer(self) -> KafkaProducer:
        self._check_process()
        return KafkaProducer(self._settings.producer(), _log)

    def reader(self) -> KafkaLogReader:
        self._check_process()
        return KafkaLogReader(self._settings.reader(), _log)

    def cluster(self) -> KafkaCluster:
        self._check_process()
        return KafkaCluster(self._settings.common(), _log)

    def group_protocol(self) -> Literal["classic", "consumer"]:
        """``consumer`` (KIP-848) where the brokers offer it and nothing asks for the classic one."""
        if self._protocol is None:
            wanted = self._settings.group_protocol
            if wanted != "auto":
                self._protocol = wanted
            elif self._settings.needs_classic() or not self.cluster().offers_consumer_protocol():
                self._protocol = "classic"
            else:
                self._protocol = "consumer"
        return self._protocol

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise StateError(f"this process ({os.getpid()}) was forked from {self._pid} after Kafka clients were made; spawn it instead")
