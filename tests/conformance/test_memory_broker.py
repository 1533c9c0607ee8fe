"""Does the memory broker do what the ports promise?"""

from __future__ import annotations

from itertools import count
from typing import ClassVar

import pytest

from choreo.testing.conformance import BrokerConformance, MakeTopic
from choreo.testing.memory import MemoryBroker


class TestMemoryBroker(BrokerConformance):
    deadline_s: ClassVar[float] = 10.0

    @pytest.fixture
    def broker(self) -> MemoryBroker:
        return MemoryBroker()

    @pytest.fixture
    def topic(self, broker: MemoryBroker) -> MakeTopic:
        numbers = count(1)

        def make(partitions: int) -> str:
            name = f"topic-{next(numbers)}"
            broker.create_topic(name, partitions=partitions)
            return name

        return make
