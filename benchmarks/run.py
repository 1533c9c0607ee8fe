"""choreo against a hand-written loop: same broker, same topic, same machine, one run. ``make bench``.

Each contender runs in a process of its own, several rounds in turn, and the median counts: the machine is noisy, so read
the ratios. Prints a table and writes benchmarks/results.json. A broker is started unless CHOREO_TEST_BOOTSTRAP names one.
``--quick`` is a tenth of it, to see that it works.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from rich.console import Console
from rich.table import Table

from benchmarks.databases import CONNINFO
from benchmarks.events import KEYS, fill, headers, value
from tests.support.kafka_cluster import KafkaCluster
from tests.support.kafka_node import STEADY_JVM
from tests.support.postgres import PostgresServer

RESULTS = Path(__file__).parent / "results.json"
PARTITIONS = 6
CONTENDERS = (
    *("raw", "choreo", "choreo-no-map", "raw-emit", "choreo-emit", "choreo-sync", "choreo-traced-1", "choreo-traced-100"),
    *("choreo-claims", "choreo-claims-pg", "choreo-tx-sqlite", "choreo-tx-postgres"),
    *("choreo-kafka", "choreo-kafka-emit"),
)
SINGLY = ("choreo-tx-sqlite-1", "choreo-tx-postgres-1")
"""One transaction an event. They have fewer events, for each waits for the disk."""
TX_SHARE, SINGLY_SHARE = 10, 100
RATES = (200, 2000)
RELAYED_PER_S = 50
"""The hop through the outbox is measured where a database with a disk keeps up."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--quick", action="store_true", help="a tenth of the events, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="contenders and/or 'hop', 'rss', separated by commas")
    asked = parser.parse_args()
    count, backlog, rounds = (30_000, 100_000, 1) if asked.quick else (300_000, 1_000_000, asked.rounds)
    only = set(filter(None, asked.only.split(",")))
    with _kafka() as bootstrap, PostgresServer(["shared_buffers=128MB"]) as postgres:
        os.environ[CONNINFO] = postgres.conninfo(postgres.new_database())
        results = _measure(bootstrap, count, backlog, rounds, 3.0 if asked.quick else 10.0, only)
    _show(results)
    if not asked.quick and not only:
        RESULTS.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")
    return 0


@contextmanager
def _kafka() -> Iterator[str]:
    given = os.environ.get("CHOREO_TEST_BOOTSTRAP")
    if given:
        yield given
        return
    with KafkaCluster(1, jvm=STEADY_JVM) as cluster:
        yield cluster.bootstrap


def _measure(bootstrap: str, count: int, backlog: int, rounds: int, hop_s: float, only: set[str]) -> dict[str, float]:
    tag = uuid.uuid4().hex[:6]
    topics = {"plain": f"bench-in-{tag}", "1": f"bench-traced-1-{tag}", "100": f"bench-traced-100-{tag}"}
    _topics(bootstrap, [*topics.values(), "bench-out"])
    print(f"filling {backlog:,} events of {len(value(1))} bytes", file=sys.stderr)
    fill(bootstrap, topics["plain"], backlog)
    fill(bootstrap, topics["1"], count, sampled_every=100)
    fill(bootstrap, topics["100"], count, sampled_every=1)
    results: dict[str, float] = {}
    rates: dict[str, list[float]] = {}
    for number in range(rounds):
        for name in (*CONTENDERS, *SINGLY):
            if only and name not in only:
                continue
            base, _, share = name.partition("-traced-")
            events = count // (SINGLY_SHARE if name in SINGLY else TX_SHARE if "-tx-" in name else 1)
            found = _contend(f"{base}-traced" if share else name, bootstrap, topics[share or "plain"], events)
            rates.setdefault(name, []).append(found["rate"])
            print(f"round {number + 1}  {name:18s} {found['rate']:10,.0f}/s  {found['rss_mb']:.0f} MB", file=sys.stderr)
    results |= {name.replace("-", "_") + "_per_s": round(statistics.median(found)) for name, found in rates.items()}
    results |= _ratios(rates)
    if not only or "rss" in only:
        results["rss_mb"] = round(_contend("choreo", bootstrap, topics["plain"], backlog)["rss_mb"], 1)
    if not only or "hop" in only:
        for rate in RATES:
            suffix = "" if rate == RATES[0] else f"_{rate}"
            for who in ("raw", "choreo"):
                p50, p99 = _hops(bootstrap, who, rate, hop_s, rounds)
                prefix = "raw_hop" if who == "raw" else "hop"
                results[f"{prefix}_p50_ms{suffix}"], results[f"{prefix}_p99_ms{suffix}"] = round(p50, 2), round(p99, 2)
        for who in ("sqlite", "postgres"):
            # From the event on the one topic to its child on the other: handled, committed, relayed.
            p50, p99 = _hops(bootstrap, who, RELAYED_PER_S, hop_s, rounds)
            results[f"relay_{who}_p50_ms"], results[f"relay_{who}_p99_ms"] = round(p50, 2), round(p99, 2)
        p50, p99 = _hops(bootstrap, "kafka", RATES[0], hop_s, rounds)
        results["hop_kafka_p50_ms"], results["hop_kafka_p99_ms"] = round(p50, 2), round(p99, 2)
    return results


def _ratios(rates: dict[str, list[float]]) -> dict[str, float]:
    """Round by round against the raw loop of the same round; the median of those."""
    pairs = {
        "consume_ratio": ("choreo", "raw"),
        "emit_ratio": ("choreo-emit", "raw-emit"),
        "sync_ratio": ("choreo-sync", "raw"),
        "claims_ratio": ("choreo-claims", "raw"),
        "claims_pg_ratio": ("choreo-claims-pg", "raw"),
        "kafka_ratio": ("choreo-kafka", "raw"),
        "kafka_emit_ratio": ("choreo-kafka-emit", "raw-emit"),
        "map_ratio": ("choreo", "choreo-no-map"),
        "tx_sqlite_gain": ("choreo-tx-sqlite", "choreo-tx-sqlite-1"),
        "tx_postgres_gain": ("choreo-tx-postgres", "choreo-tx-postgres-1"),
        "traced_1_ratio": ("choreo-traced-1", "raw"),
        "traced_100_ratio": ("choreo-traced-100", "raw"),
    }
    return {
        name: round(statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True)), 3)
        for name, (ours, theirs) in pairs.items()
        if ours in rates and theirs in rates
    }


def _contend(name: str, bootstrap: str, topic: str, count: int) -> dict[str, float]:
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.contender", name, bootstrap, topic, str(count)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
        env={**os.environ, "BENCH_OUT": "bench-out"},
    )
    found: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return found


def _hops(bootstrap: str, who: str, rate: int, for_s: float, rounds: int) -> tuple[float, float]:
    """In -> handled -> out, in milliseconds: the medians over the rounds of p50 and p99."""
    found = [_hop(bootstrap, who, rate, for_s) for _ in range(rounds)]
    return statistics.median(p50 for p50, _ in found), statistics.median(p99 for _, p99 in found)


def _hop(bootstrap: str, who: str, rate: int, for_s: float) -> tuple[float, float]:
    tag = uuid.uuid4().hex[:6]
    into, out = f"hop-in-{tag}", f"hop-out-{tag}"
    _topics(bootstrap, [into, out])
    warm_s, lead_s = 4.0, 2.0
    until = time.time() + warm_s + lead_s + for_s + 2.0
    contender = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.contender", f"hop-{who}", bootstrap, into, str(until)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "BENCH_OUT": out},
    )
    sent: list[int] = []
    came: dict[int, int] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(bootstrap, out, came, over))
    watcher.start()
    try:
        time.sleep(warm_s)
        _send(bootstrap, into, rate, lead_s + for_s, sent)
        deadline = time.time() + 3.0
        while len(came) < len(sent) and time.time() < deadline:
            time.sleep(0.05)
    finally:
        over.set()
        watcher.join()
        contender.wait(timeout=60)
    counted = range(int(rate * lead_s), len(sent))
    hops = sorted((came[number] - sent[number]) / 1e6 for number in counted if number in came)
    if len(hops) < len(counted):
        raise RuntimeError(f"hop-{who} at {rate}/s: {len(counted) - len(hops)} of {len(counted)} events did not come out")
    return hops[len(hops) // 2], hops[int(len(hops) * 0.99)]


def _send(bootstrap: str, topic: str, rate: int, for_s: float, sent: list[int]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0, "partitioner": "murmur2_random"})
    began = time.perf_counter()
    for number in range(int(rate * for_s)):
        ahead_s = began + number / rate - time.perf_counter()
        if ahead_s > 0:
            time.sleep(ahead_s)
        sent.append(time.time_ns())
        # The key carries the number: it comes out of both contenders as it went in.
        producer.produce(topic, value(number, str(number)), b"%d" % number, headers=headers(number))
        producer.poll(0)
    producer.flush(10)


def _watch(bootstrap: str, topic: str, came: dict[int, int], over: threading.Event) -> None:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": f"watch-{uuid.uuid4()}", "auto.offset.reset": "earliest", "fetch.wait.max.ms": 100}
    )
    consumer.subscribe([topic])
    while not over.is_set():
        message = consumer.poll(0.05)
        if message is not None and message.error() is None:
            came[int(message.key() or b"-1")] = time.time_ns()
    consumer.close()


def _topics(bootstrap: str, names: list[str]) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    there = admin.list_topics(timeout=10).topics
    missing = [NewTopic(name, PARTITIONS, 1) for name in names if name not in there]
    for future in admin.create_topics(missing).values() if missing else ():
        future.result(timeout=20)


def _show(results: dict[str, float]) -> None:
    table = Table("figure", "value", title=f"200-byte JSON events, 3 headers, {PARTITIONS} partitions, {KEYS} keys; medians")
    for name, found in results.items():
        table.add_row(name, f"{found:,.0f}" if name.endswith("_per_s") else f"{found:g}")
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
