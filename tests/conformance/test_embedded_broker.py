"""Does the embedded Kafka do what the ports promise, within its limits? Each limit is named here and in choreo/kafka/embedded.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar
from uuid import uuid4

import pytest

from choreo.kafka.embedded import EmbeddedBroker
from choreo.kafka.settings import EMBEDDED, KafkaSettings
from choreo.testing.conformance import BrokerConformance, MakeTopic
from tests.support.mock_cluster import MockCluster

LIMITS: Mapping[str, str] = {
    "test_reading_begins_at_a_time_when_asked_so": "it finds no offsets by time; such a start is refused (ServiceSettings)",
    "test_a_record_that_is_too_large_is_refused_for_good": "it takes records of any size",
    "test_a_record_for_an_unknown_topic_is_refused_for_good": "it does not say so: the record expires",
    "test_a_topic_that_was_made_is_there_and_cannot_be_made_again": "its topics have 4 partitions and no settings",
    "test_a_topic_says_for_how_long_its_records_are_kept": "its topics have no settings",
    "test_partitions_can_be_added": "its topics have 4 partitions",
    "test_a_topics_settings_are_set_beside_those_it_has": "its topics have no settings",
    "test_a_text_that_is_too_long_is_refused_with_its_offset": "it takes texts of any length",
    "test_a_topic_has_an_id_of_its_own": "its topics have no ids",
}


def test_each_limit_is_of_a_case() -> None:
    assert [name for name in LIMITS if not hasattr(BrokerConformance, name)] == []


class TestEmbeddedBroker(BrokerConformance):
    deadline_s: ClassVar[float] = 30.0

    @pytest.fixture
    def broker(self) -> EmbeddedBroker:
        MockCluster().hurry()
        return EmbeddedBroker(KafkaSettings(bootstrap=EMBEDDED))

    @pytest.fixture
    def topic(self) -> MakeTopic:
        cluster = MockCluster()

        def make(partitions: int) -> str:
            name = f"topic-{uuid4().hex[:12]}"
            cluster.create_topic(name, partitions)
            return name

        return make


for _beyond in LIMITS:
    setattr(TestEmbeddedBroker, _beyond, None)  # not a case of this suite
