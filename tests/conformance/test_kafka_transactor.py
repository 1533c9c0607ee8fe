"""Real Kafka keeps the transactor port's contract: the suite that the memory broker passes, with members of both group protocols."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from choreo.broker import Broker
from choreo.kafka.broker import KafkaBroker
from choreo.kafka.settings import GroupProtocol, KafkaSettings
from choreo.testing.transactor_conformance import TransactorConformance
from tests.support.kafka_access import KafkaAccess
from tests.support.names import MakeTopic

pytestmark = pytest.mark.kafka


class TestKafkaTransactorWithTheConsumerProtocol(TransactorConformance):
    protocol: GroupProtocol = "consumer"

    @pytest.fixture
    def broker(self, kafka: KafkaAccess) -> Broker:
        return KafkaBroker(KafkaSettings(bootstrap=kafka.bootstrap, properties=dict(kafka.security), group_protocol=self.protocol))

    @pytest.fixture
    def topic(self, make_topic: MakeTopic) -> Callable[[int], str]:
        numbers = count(1)
        return lambda partitions: make_topic(f"topic-{next(numbers)}", partitions=partitions)


class TestKafkaTransactorWithTheClassicProtocol(TestKafkaTransactorWithTheConsumerProtocol):
    protocol: GroupProtocol = "classic"
