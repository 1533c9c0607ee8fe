"""What the tests on real Kafka share: the topics of a service of their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kafka.ground import Ground
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names

# Variables of the test run that choreo would take for misspelt settings.
NOT_SETTINGS = ("CHOREO_SEED", "CHOREO_FULL", "CHOREO_KAFKA_PORT")


@pytest.fixture
def effects() -> str:
    """Those of services without a store; a module whose tests hold for `kafka`, too, asks for both (BOTH_EFFECTS)."""
    return "offsets"


@pytest.fixture
def ground(kafka: KafkaAccess, names: Names, monkeypatch: pytest.MonkeyPatch, effects: str) -> Iterator[Ground]:
    """The topics of the service `payments`, of this test alone."""
    for variable in NOT_SETTINGS:
        monkeypatch.delenv(variable, raising=False)
    made = Ground(kafka, names, effects=effects)
    yield made
    made.delete()


@pytest.fixture
def ground_of_each_protocol(ground: Ground, group_protocol: str) -> Ground:
    """The same; a test that asks for it runs once with each of the group protocols."""
    ground.protocol = group_protocol
    return ground
