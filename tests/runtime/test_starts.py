"""What does a start do while Kafka answers only in part?"""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from choreo.errors import BrokerError
from choreo.record import TopicPartition
from choreo.runtime import preflight
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.storage.memory import MemoryStore
from choreo.testing import MemoryBroker
from choreo.testing.memory_consumer import MemoryReader
from tests.runtime.shop import SHOP, Book, becomes, place

LETTERS = f"{SHOP}.letters"


class Absent(MemoryBroker):
    """The leader of ``.letters`` is away for the first `times` looks."""

    times = 0
    error = BrokerError(f"topic {LETTERS}: _TIMED_OUT", code="_TIMED_OUT")

    def reader(self) -> MemoryReader:
        reader, ends = super().reader(), super().reader().ends

        def look(topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
            if topic == LETTERS and self.times > 0:
                self.times -= 1
                raise self.error
            return ends(topic)

        reader.ends = look  # type: ignore[method-assign]
        return reader


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Absent:
    monkeypatch.setattr(preflight, "RETRY_S", 0.01)
    made = Absent()
    made.create_topic("orders")
    for name in ("dlq", "letters", "replay"):
        made.create_topic(f"{SHOP}.{name}")
    return made


def shop(broker: MemoryBroker, book: Book, start_deadline_s: float) -> Service:
    settings = ServiceSettings(broker=broker, start_deadline_s=start_deadline_s, drain_s=1.0)
    return Service(SHOP, handlers=[book], store=MemoryStore(), settings=settings)


async def test_it_waits_for_the_leader_of_its_letters_and_begins(broker: Absent) -> None:
    book = Book()
    broker.times = 3
    place(broker, "e-1")

    async with shop(broker, book, start_deadline_s=5.0).worker() as worker:
        await becomes(lambda: worker.counters.handled == 1, "the event is handled", worker)

    assert (book.calls, broker.times) == (["e-1"], 0)


async def test_when_its_time_is_over_it_says_what_it_waited_for(broker: Absent) -> None:
    broker.times = 10**9

    with pytest.raises(BrokerError) as gave_up:
        async with shop(broker, Book(), start_deadline_s=0.1).worker():
            pass

    assert gave_up.value is broker.error
