"""What are this test's topics and groups called? Names that no other test has, nor another run (TRAPS 44)."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping

from tests.support.kafka_access import KafkaAccess

MAX_PREFIX_CHARS = 60


class Names:
    """Names that begin with the test's own: ``names.topic("orders")`` is the same each time within a test, and in no other."""

    def __init__(self, test: str) -> None:
        readable = re.sub(r"[^a-z0-9]+", "-", test.lower().removeprefix("test_")).strip("-")
        self.prefix = f"{readable[:MAX_PREFIX_CHARS].rstrip('-')}-{uuid.uuid4().hex[:8]}"

    def topic(self, name: str = "orders") -> str:
        return f"{self.prefix}.{name}"

    def group(self, name: str = "payments") -> str:
        return f"{self.prefix}.{name}"


class MakeTopic:
    """Makes topics of one test on one cluster: ``make_topic("orders", partitions=6, cleanup_policy="compact")``.

    Config names are written with underscores. Returns the topic's full name, when each partition of it serves.
    """

    def __init__(self, kafka: KafkaAccess, names: Names) -> None:
        self._kafka = kafka
        self._names = names
        self._made: list[str] = []

    def __call__(self, name: str = "orders", *, partitions: int = 1, **config: str | int) -> str:
        topic = self._kafka.create_topic(self._names.topic(name), partitions=partitions, config=_dotted(config))
        self._made.append(topic)
        return topic

    def delete_all(self) -> None:
        """Deletes what it made."""
        self._kafka.delete_topics(self._made)
        self._made.clear()


def _dotted(config: Mapping[str, str | int]) -> dict[str, str]:
    return {name.replace("_", "."): str(value) for name, value in config.items()}
