"""A worker script: a plain group member that polls, commits nothing, and says READY with its first record.

Arguments: bootstrap, group, protocol, topic.
"""

from __future__ import annotations

import sys

from confluent_kafka import Consumer

from tests.support.kafka_access import KafkaAccess, group_settings
from tests.support.process import READY


def main() -> None:
    bootstrap, group, protocol, topic = sys.argv[1:]
    consumer = Consumer(KafkaAccess(bootstrap, "given").config(group_settings(group, protocol, session_ms=1500)))
    consumer.subscribe([topic])
    while True:
        message = consumer.poll(0.1)
        if message is not None and message.error() is None:
            print(READY)


if __name__ == "__main__":
    main()
