"""W25: a worker starts far behind: 300,000 records of 1 KB (a million with CHOREO_FULL=1)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer

from choreo.envelope import ID, new_id
from tests.chaos.scene import Scene, counts, full
from tests.support.kafka_access import KafkaAccess
from tests.support.producer import EVENT_TYPE, SETTINGS

pytestmark = [pytest.mark.kafka, pytest.mark.chaos, pytest.mark.long]

RECORDS = 1_000_000 if full() else 300_000
VALUE_BYTES = 1000
KEYS = 5_000
CATCH_UP_S = 600.0 if full() else 120.0
MOST_MIB = 250


@pytest.mark.timeout(2 * CATCH_UP_S)
def test_memory_stays_bounded_and_the_member_stays_in_the_group(scene: Scene) -> None:
    produce_bulk(scene.kafka, scene.orders)
    # Claims make it slower and not larger; the long version has them.
    worker = scene.worker(conduct=replace(scene.conduct(), ledger=None, store=scene.conduct().store if full() else None))

    worker.restart()
    scene.kafka.wait_for_no_lag(scene.group, [scene.orders], deadline_s=CATCH_UP_S)
    peak_mib = peak_rss_mib(worker.pid)
    scene.stop_cleanly(worker)

    print(f"peak RSS {peak_mib:.0f} MiB")
    assert peak_mib < MOST_MIB
    told = counts(worker)
    assert (told["handled"], told["rebalances"]) == (RECORDS, 2), "each once; assigned at the start, revoked at the end"


def produce_bulk(kafka: KafkaAccess, topic: str) -> None:
    values = [(f"k-{number}", value_of(f"k-{number}")) for number in range(KEYS)]
    producer = Producer(kafka.config({**SETTINGS, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000}))
    for number in range(RECORDS):
        key, value = values[number % KEYS]
        producer.produce(topic, value, key, headers=[(ID, new_id().encode())])
    assert producer.flush(CATCH_UP_S) == 0
    assert sum(end for _, end in kafka.ends(topic).values()) == RECORDS


def value_of(key: str) -> bytes:
    payload = {"key": key, "amount": 1, "padding": ""}
    event = {"type": EVENT_TYPE, "timestamp": "2026-11-22T03:00:00.000000Z", "payload": payload}
    payload["padding"] = "." * (VALUE_BYTES - len(orjson.dumps(event)))
    return orjson.dumps(event)


def peak_rss_mib(pid: int) -> float:
    """The most memory that the process has had at once."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024
