"""What does a service show when it starts? Who it is, what it reacts to and emits, where it keeps things, what waits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from rich.text import Text

from choreo.broker import TopicInfo
from choreo.cli import screen
from choreo.cli.loading import Target
from choreo.events import EventLike
from choreo.handler import HandlerSpec
from choreo.runtime.lifeline import Ready
from choreo.service import Service, Started, choreo_version


def head(service: str, version: str, workers: int, pids: Sequence[int]) -> str:
    """``choreo 0.1.0  payments 2.3.1  4 workers  pid 4121 (4122 4123 4124 4125)``."""
    name = f"{service} {version}".rstrip()
    others = f" ({' '.join(map(str, pids))})" if pids else ""
    return f"choreo {choreo_version()}  {name}  {screen.many(workers, 'worker')}  pid {os.getpid()}{others}"


def show_start(target: Target, started: Started) -> None:
    """The lines below the head, but for the last one: `ready` waits for partitions."""
    service, settings = target.service, started.settings
    protocol = "" if started.protocol is None else f", protocol {started.protocol}"
    rows: list[tuple[str, str | Sequence[str]]] = [("kafka", f"{started.kafka}; group {started.worker.plan.group}{protocol}")]
    if service.specs:
        rows.append(("reacts to", _reactions(service, started.topics, target)))
    emitted = service.emitted_topics()
    if emitted:
        rows.append(("emits", _emits(service, target)))
    rows.append(("store", _store(service, settings.effects)))
    if service.specs:
        rows.append(("letters", _letters(target, started)))
    screen.show_facts(rows)


def as_json(target: Target, started: Started, ready: Ready) -> dict[str, object]:
    """The same facts for a program."""
    service, settings, history = target.service, started.settings, started.worker.history
    return {
        "service": service.name,
        "version": service.version,
        "pid": os.getpid(),
        "kafka": started.kafka,
        "group": started.worker.plan.group,
        "protocol": started.protocol,
        "reacts_to": [
            {"handler": spec.name, "topics": [target.names(topic) for topic in spec.topics], "types": spec.event_names()}
            for spec in service.specs
        ],
        "emits": sorted({cls.__event__.type for cls in _emitted(service)}),
        "store": _store(service, settings.effects),
        "letters": {"open": history.open_letters, "oldest": history.oldest_open_at},
        "ready": ready,
    }


def _reactions(service: Service, topics: Mapping[str, TopicInfo], target: Target) -> list[str]:
    rows: list[tuple[str, ...]] = []
    for spec in service.specs:
        for topic in spec.topics:
            found = topics.get(target.names(topic))
            types = [cls.__event__.type for cls in (*spec.payloads, *spec.tombstones) if cls.__event__.topic in (topic, "*")]
            row = (
                f"{target.names(topic)}[{found.partitions if found is not None else '?'}]",
                ", ".join(dict.fromkeys("any type" if name == "*" else name for name in types)),
                spec.name,
                "transaction" if spec.transaction is not None else target.settings.effects or service.effects(),
                _patience(spec),
            )
            rows.append(row)
    return screen.laid_out(rows, screen.out().width - screen.NAME_COLUMNS - screen.GAP, broken=(1, 4))


def _patience(spec: HandlerSpec) -> str:
    retry = spec.retry
    tries = f"{retry.max_attempts} x in {screen.duration(retry.worst_s())}" if retry.max_attempts > 1 else "1 x"
    parts = [tries, f"timeout {spec.timeout_s:g} s"]
    if spec.on_thread:
        parts.append("on threads")
    if not spec.ordered:
        parts.append("unordered")
    if spec.recovers:
        parts.append("recovers")
    return ", ".join(parts)


def _emits(service: Service, target: Target) -> str:
    by_topic: dict[str, list[str]] = {}
    for known in sorted({cls.__event__ for cls in _emitted(service)}, key=lambda known: known.type):
        by_topic.setdefault(known.topic, []).append(known.type)
    return "; ".join(f"{', '.join(types)} -> {target.names(topic)}" for topic, types in by_topic.items())


def _emitted(service: Service) -> list[type[EventLike]]:
    return [*(cls for spec in service.specs for cls in spec.emits or ()), *service.publishes]


def _store(service: Service, effects: str | None) -> str:
    if effects == "offsets":
        return "none (effects=offsets): what is under way in a crash runs again"
    if effects == "kafka":
        return "none (effects=kafka): what is emitted commits with the offsets; read it with isolation.level=read_committed"
    if service.store is not None:
        return f"{service.store.describe()}: each event once among members that share it"
    default = service.default_store().describe()
    return f"{default} (default): each event once on this host only; members on other hosts don't see it -> Service(..., store=PostgresStore(...))"


def _letters(target: Target, started: Started) -> str:
    history = started.worker.history
    if not history.open_letters:
        return "none open"
    age = ""
    if history.oldest_open_at is not None:
        age = f", oldest {screen.duration((datetime.now(UTC) - history.oldest_open_at).total_seconds())}"
    return f"{history.open_letters:,} open{age}   -> choreo dlq report {target.words}"


def ready_line(reports: Sequence[Ready], drain_s: float) -> Text:
    """``ready      in 1.4 s, 12 partitions. Ctrl-C drains up to 25 s, twice stops now; no event is lost``."""
    took_s, of = max(ready.took_s for ready in reports), max(ready.of for ready in reports)
    workers = len(reports)
    if not of:
        share = "no handlers: it publishes only"
    elif workers > 1:
        idle = f", {workers - of} of them idle" if workers > of else ""
        share = f"{screen.many(workers, 'worker')} for {screen.many(of, 'partition')}{idle}"
    elif not reports[0].partitions:
        share = f"none of {screen.many(of, 'partition')} yet: other members have them"
    else:
        rest = "" if reports[0].partitions >= of else f" of {of}, other members have the others"
        share = f"{screen.many(reports[0].partitions, 'partition')}{rest}"
    words = f"in {screen.duration(took_s)}, {share}. Ctrl-C drains up to {drain_s:g} s, twice stops now; no event is lost"
    return Text.assemble(("ready", "bold"), " " * 6, words)
