"""One contender, once, in a process of its own: prints one line of JSON.

``python -m benchmarks.contender NAME BOOTSTRAP TOPIC COUNT`` with NAME of RAW and CHOREO below, or
``... hop-raw|hop-choreo|hop-kafka|hop-sqlite|hop-postgres BOOTSTRAP TOPIC UNTIL`` for the latency series.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import choreo.core.partition
from benchmarks import databases, raw
from benchmarks.events import Count, CountOnThread, OrderPlaced, See
from choreo import Handler, KafkaSettings, Service, ServiceSettings, SqliteStore
from choreo.broker import TopicInfo
from choreo.core.offset_map import OffsetMap
from choreo.kafka.broker import KafkaBroker
from choreo.process import tune_process
from choreo.store import Store

HANDLERS: dict[str, Callable[[], Handler[OrderPlaced, Any]]] = {
    "choreo": Count,
    "choreo-sync": CountOnThread,
    "choreo-emit": See,
    "choreo-claims": Count,
    "choreo-traced": Count,
    "choreo-claims-pg": Count,
    "choreo-no-map": Count,
    "choreo-kafka": Count,
    "choreo-kafka-emit": See,
    "hop-choreo": See,
    "hop-kafka": See,
    **{f"choreo-tx-{kind}{one}": made for kind, made in databases.HANDLERS.items() for one in ("", "-1")},
    **{f"hop-{kind}": made for kind, made in databases.HANDLERS.items()},
}
"""``-1``: each delivery in a transaction of its own. ``no-map``: without the offset map in the commits."""


class _Nowhere(SpanExporter):
    """Takes spans and forgets them: the cost of making and batching them is measured, not a collector."""

    def export(self, spans: Any) -> SpanExportResult:
        _ = [span for span in spans if isinstance(span, ReadableSpan)]
        return SpanExportResult.SUCCESS


def service(name: str, bootstrap: str, topic: str, folder: str) -> Service:
    """The service of one contender, with a group and topics of its own."""
    unique = f"bench-{uuid.uuid4().hex[:12]}"
    cluster = KafkaBroker(KafkaSettings(bootstrap=bootstrap)).cluster()
    cluster.create([TopicInfo(f"{unique}.{suffix}", 1, 1) for suffix in ("dlq", "letters", "replay")])
    store = _store(name, Path(folder))
    return Service(
        unique,
        handlers=[HANDLERS[name]()],
        store=store,
        settings=ServiceSettings(
            kafka=KafkaSettings(bootstrap=bootstrap),
            effects=None if store is not None else "kafka" if "kafka" in name else "offsets",
            transactional_id=unique if "kafka" in name else None,
            topic_names={"bench-in": topic, "bench-out": os.environ.get("BENCH_OUT", "bench-out")},
        ),
    )


def _store(name: str, folder: Path) -> Store | None:
    singly = name.endswith("-1")
    if name == "choreo-claims":
        return SqliteStore(folder / "claims.db")
    if name == "choreo-claims-pg" or "postgres" in name:
        return databases.postgres(singly=singly)
    return databases.sqlite(folder, singly=singly) if "sqlite" in name else None


async def drain(name: str, bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """Events a second from the first handled to the last, and the peak memory of this process."""
    with tempfile.TemporaryDirectory() as folder:
        async with service(name, bootstrap, topic, folder).worker() as worker:
            began, first = 0.0, 0
            while worker.counters.handled < count:
                await asyncio.sleep(0.002)
                if worker.failure.done():
                    worker.failure.result()
                if not began and worker.counters.handled:
                    began, first = time.perf_counter(), worker.counters.handled
            took_s = time.perf_counter() - began
        return {"rate": (count - first) / took_s, "rss_mb": _peak_mb()}


def _no_map(found: OffsetMap, *, limit: int = 0) -> str:
    return ""


def _peak_mb() -> float:
    """The most memory this process had. ``ru_maxrss`` counts what its parent had before exec, too (getrusage(2))."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


async def hop(name: str, bootstrap: str, topic: str, until: float) -> None:
    """Runs the emitting service until the wall clock says `until`."""
    with tempfile.TemporaryDirectory() as folder:
        async with service(name, bootstrap, topic, folder).worker() as worker:
            while time.time() < until:
                await asyncio.sleep(0.05)
                if worker.failure.done():
                    worker.failure.result()


def main(name: str, bootstrap: str, topic: str, number: str) -> dict[str, float]:
    if name == "hop-raw":
        raw.hop(bootstrap, topic, os.environ["BENCH_OUT"], float(number))
        return {}
    if name in ("raw", "raw-emit"):
        rate = raw.run(bootstrap, topic, int(number), emit_to="bench-out" if name == "raw-emit" else None)
        return {"rate": rate, "rss_mb": _peak_mb()}
    tune_process()
    if name == "choreo-no-map":
        vars(choreo.core.partition)["write_map"] = _no_map
    if name == "choreo-traced":
        from opentelemetry import trace

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(_Nowhere()))
        trace.set_tracer_provider(provider)
    if name.startswith("hop-"):
        asyncio.run(hop(name, bootstrap, topic, float(number)))
        return {}
    return asyncio.run(drain(name, bootstrap, topic, int(number)))


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:5])))
