"""What had the group committed, and when? A thread that looks at the committed offsets all the time, for promise I4."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from confluent_kafka import KafkaException

from choreo.record import TopicPartition
from tests.support.history import Commit
from tests.support.kafka_access import KafkaAccess


class CommitWatch:
    """Looks every `every_s` until the block ends. `commits` has each change of an offset, in the order they were seen.

    A look that Kafka does not answer is left out and counted in `missed`; the look after it sees what came of it.
    """

    def __init__(self, kafka: KafkaAccess, group: str, topics: Sequence[str], *, every_s: float = 0.05) -> None:
        self.commits: list[Commit] = []
        self.missed = 0
        # A client of its own: the test's must not wait behind this one's requests.
        self._kafka = KafkaAccess(kafka.bootstrap, kafka.origin, kafka.security)
        self._group = group
        self._topics = list(topics)
        self._every_s = every_s
        self._ended = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="commit-watch")

    def __enter__(self) -> CommitWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> list[Commit]:
        """Looks once more, ends, and returns what was seen. Raises what the thread died of."""
        self._ended.set()
        self._thread.join()
        self._kafka.close()
        if self._failure is not None:
            raise self._failure
        return self.commits

    def _run(self) -> None:
        seen: dict[TopicPartition, int] = {}
        try:
            while not self._ended.wait(self._every_s):
                self._look(seen)
            self._look(seen)
        except BaseException as failure:
            self._failure = failure

    def _look(self, seen: dict[TopicPartition, int]) -> None:
        try:
            committed = self._kafka.committed(self._group, self._topics)
        except (KafkaException, TimeoutError):
            self.missed += 1
            return
        at_s = time.monotonic()
        for partition, offset in committed.items():
            if offset is not None and seen.get(partition) != offset:
                seen[partition] = offset
                self.commits.append(Commit(partition, offset, at_s))
