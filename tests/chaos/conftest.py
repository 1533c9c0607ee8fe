"""What the chaos tests share: a scene on the broker of the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.scene import Scene
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names


@pytest.fixture
def scene(kafka: KafkaAccess, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    """A service of this test alone; each test that asks runs once with each group protocol."""
    made = Scene(kafka, names, group_protocol, tmp_path)
    yield made
    made.close()
