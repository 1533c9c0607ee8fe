"""What librdkafka's in-process cluster can do and Python can't ask for: through ctypes, for tests alone (TRAPS 23).

The functions are exported by confluent-kafka's own librdkafka, without a promise to stay.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import confluent_kafka

from choreo.kafka.embedded import HOST

_POINTER = ctypes.sizeof(ctypes.c_void_p)


class MockCluster:
    """The cluster of `embedded://` in this process; starts it."""

    def __init__(self) -> None:
        client = HOST.cluster().client
        # A client object is a Python object's head (two words) and then librdkafka's handle.
        handle = ctypes.c_void_p.from_address(id(client) + 2 * _POINTER)
        self._library = _librdkafka()
        self._library.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_handle_mock_cluster(handle))
        assert self._cluster.value, "the client has no mock cluster"

    def create_topic(self, name: str, partitions: int) -> None:
        """Makes a topic with so many partitions."""
        code = self._library.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1)
        assert code == 0, f"creating {name}: error {code}"

    def hurry(self) -> None:
        """Members hear of each other ten times as fast as by default."""
        self._library.rd_kafka_mock_set_group_consumer_heartbeat_interval_ms(self._cluster, 300)


def _librdkafka() -> ctypes.CDLL:
    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    (library,) = folder.glob("librdkafka*")
    return ctypes.CDLL(str(library))
