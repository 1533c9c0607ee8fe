"""Does the memory broker's transactor do what the port promises?"""

from __future__ import annotations

from itertools import count
from typing import ClassVar

import pytest

from choreo.testing.conformance import MakeTopic
from choreo.testing.memory import MemoryBroker
from choreo.testing.transactor_conformance import TransactorConformance


class TestMemoryTransactor(TransactorConformance):
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
