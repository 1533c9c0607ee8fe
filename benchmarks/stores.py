"""How many claims a second: look a batch up, then claim it, as a worker does. ``python -m benchmarks.stores``

On a PostgreSQL of its own (fsync on, 127.0.0.1) and on SQLite (WAL, synchronous=FULL) in the same folder's file system, with
claims in the tables before. Each figure is the median of the rounds.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from choreo import PostgresStore, SqliteStore
from choreo.store import Claim, Store
from tests.support.postgres import PostgresServer

BEFORE = 200_000
A_ROUND = 40_000
ROUNDS = 5
HANDLER = "charge-card"


def rates(store: Store, batch: int) -> tuple[float, float, float]:
    """Claims a second: looked up, claimed, both one after the other."""
    found: list[tuple[float, float, float]] = []
    for _ in range(ROUNDS):
        look_s = claim_s = 0.0
        for _ in range(A_ROUND // batch):
            claims = [Claim(HANDLER, str(uuid.uuid4())) for _ in range(batch)]
            payloads = [os.urandom(16) for _ in claims]
            at_s = time.perf_counter()
            store.lookup(claims)
            looked_s = time.perf_counter()
            store.claim(claims, payloads)
            look_s += looked_s - at_s
            claim_s += time.perf_counter() - looked_s
        found.append((A_ROUND / look_s, A_ROUND / claim_s, A_ROUND / (look_s + claim_s)))
    look, claim, both = zip(*found, strict=True)
    return statistics.median(look), statistics.median(claim), statistics.median(both)


def cleaning(store: Store) -> tuple[float, float]:
    """Milliseconds a step of 1,000: the median and the worst, deleting all there is."""
    steps = []
    while True:
        at_s = time.perf_counter()
        deleted = store.delete_older(0.0, 1_000)
        steps.append((time.perf_counter() - at_s) * 1000)
        if deleted < 1_000:
            return statistics.median(steps), max(steps)


def measure(name: str, make: Callable[[], Store]) -> None:
    store = make()
    store.open("payments")
    for _ in range(BEFORE // 2_000):
        store.claim([Claim(HANDLER, str(uuid.uuid4())) for _ in range(2_000)], [os.urandom(16) for _ in range(2_000)])
    for batch in (1, 500, 2_000):
        look, claim, both = rates(store, batch) if batch > 1 else _one_by_one(store)
        print(f"{name:12} batches of {batch:5,}: {look:9,.0f} looked up/s  {claim:9,.0f} claimed/s  {both:9,.0f} both/s", flush=True)
    median_ms, worst_ms = cleaning(store)
    print(f"{name:12} cleaning, 1,000 a step: {median_ms:.1f} ms a step, the worst {worst_ms:.1f} ms", flush=True)
    store.close()


def _one_by_one(store: Store) -> tuple[float, float, float]:
    look_s, claim_s = [], []
    for _ in range(500):
        claim = Claim(HANDLER, str(uuid.uuid4()))
        at_s = time.perf_counter()
        store.lookup([claim])
        looked_s = time.perf_counter()
        store.claim([claim], [b"x" * 16])
        look_s.append(looked_s - at_s)
        claim_s.append(time.perf_counter() - looked_s)
    median_look_s, median_claim_s = statistics.median(look_s), statistics.median(claim_s)
    return 1 / median_look_s, 1 / median_claim_s, 1 / (median_look_s + median_claim_s)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, PostgresServer(["shared_buffers=128MB"]) as server:
        conninfo = server.conninfo(server.new_database())
        PostgresStore(conninfo).apply_schema()
        measure("SQLite", lambda: SqliteStore(Path(folder) / "claims.db"))
        measure("PostgreSQL", lambda: PostgresStore(conninfo))


if __name__ == "__main__":
    main()
