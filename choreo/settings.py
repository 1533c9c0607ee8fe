"""What is set, and by whom? Flag > environment > code > default, each value with its origin.

Environment: CHOREO_BOOTSTRAP, CHOREO_GROUP_PROTOCOL, CHOREO_KAFKA_PROPERTIES (``name=value`` a line, or a JSON object),
CHOREO_TOPIC_PREFIX, CHOREO_START, CHOREO_EFFECTS, CHOREO_CONCURRENCY, CHOREO_THREADS, CHOREO_DRAIN_S, CHOREO_STRICT,
CHOREO_START_DEADLINE_S, CHOREO_ACCEPT_LOST_OFFSETS. Each may be given as ``NAME_FILE``, a file that holds the value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import orjson

from choreo.broker import Broker
from choreo.errors import ConfigurationError, did_you_mean
from choreo.kafka.settings import EMBEDDED, KafkaSettings, masked

StartPolicy = Literal["earliest", "latest", "refuse"] | datetime
Effects = Literal["offsets", "claims", "kafka"]


_NOT_HERE = {
    "transaction": "is what a handler asks for by its type, Handler[SomeEvent, AsyncConnection]; leave effects= out",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """How a service runs; checked when made, before anything is opened.

    `start`: where a group that never ran begins: ``earliest`` (default: nothing is skipped), ``latest``, ``refuse``, or an
    aware datetime. `effects`: ``claims`` (default), ``offsets`` or ``kafka``. `transactional_id`: with ``kafka``, for each
    worker its own; None: one that is kept in ``.choreo/``. `concurrency`: async handlers under way at once.
    `threads`: for plain ``def`` handlers. `drain_s`: how long a stop may take. `strict`: events without a handler are
    dead-lettered instead of skipped. `topic_names` maps logical topics to the broker's; `topic_prefix` stands before all of
    them, the group and choreo's own topics. `start_deadline_s`: how long to wait for Kafka at the start.
    `claims_retention_s`: how old claims are deleted; None: when no event of theirs can come again, and a day later.
    `broker`: another implementation of the broker port (choreo.testing.MemoryBroker) in place of Kafka.
    """

    kafka: KafkaSettings = KafkaSettings()
    start: StartPolicy = "earliest"
    effects: Effects | None = None
    transactional_id: str | None = None
    concurrency: int = 256
    threads: int = 32
    drain_s: float = 25.0
    strict: bool = False
    topic_names: Mapping[str, str] = field(default_factory=dict)
    topic_prefix: str = ""
    start_deadline_s: float = 60.0
    accept_lost_offsets: bool = False
    claims_retention_s: float | None = None
    broker: Broker | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.start, datetime):
            if self.start.tzinfo is None:
                raise ConfigurationError(f"start={self.start.isoformat()} has no time zone; use datetime(..., tzinfo=UTC)")
            if self.kafka.bootstrap == EMBEDDED:
                raise ConfigurationError(f"start={self.start.isoformat()}: {EMBEDDED} can't find offsets by time; use earliest or latest")
        elif self.start not in ("earliest", "latest", "refuse"):
            raise ConfigurationError(f"start={self.start!r}; use earliest, latest, refuse, or a time such as 2026-11-22T03:00:00Z")
        if str(self.effects) in _NOT_HERE:
            raise ConfigurationError(f"effects={self.effects!r} {_NOT_HERE[str(self.effects)]}")
        if self.effects not in (None, "offsets", "claims", "kafka"):
            raise ConfigurationError(f"effects={self.effects!r}; use claims, offsets or kafka")
        if self.effects == "kafka" and self.kafka.bootstrap == EMBEDDED and self.broker is None:
            raise ConfigurationError(f'effects="kafka": {EMBEDDED} keeps no offsets of transactions; run a Kafka: make kafka')
        if self.transactional_id is not None and (not self.transactional_id or self.effects != "kafka"):
            raise ConfigurationError(
                f'transactional_id={self.transactional_id!r}: is for effects="kafka"; leave it out, or name the effects'
            )
        if self.claims_retention_s is not None and not self.claims_retention_s > 0:
            raise ConfigurationError(f"claims_retention_s={self.claims_retention_s}; use seconds above 0, or leave it out")
        for name, least, most in (
            ("concurrency", 1, 10_000),
            ("threads", 1, 1_000),
            ("drain_s", 0, 3_600),
            ("start_deadline_s", 0, 86_400),
        ):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ConfigurationError(f"{name}={value}; use {least} to {most}")


@dataclass(frozen=True, slots=True)
class Setting:
    """One value as it counts, and where it came from; secrets are masked."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """The settings as they count, each with its origin."""

    settings: ServiceSettings
    origins: list[Setting]


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("use true or false")


def _start(text: str) -> StartPolicy:
    if text in ("earliest", "latest", "refuse"):
        return text  # type: ignore[return-value]
    return datetime.fromisoformat(text)


def _properties(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        found = orjson.loads(text)
        if not isinstance(found, dict):
            raise ValueError("use a JSON object")
        return found
    pairs = [line.strip() for line in text.replace(";", "\n").splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for pair in pairs:
        if "=" not in pair:
            raise ValueError(f"{pair!r} is no name=value")
    return {name.strip(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "bootstrap": str,
    "group_protocol": str,
    "kafka_properties": _properties,
    "topic_prefix": str,
    "start": _start,
    "effects": str,
    "transactional_id": str,
    "concurrency": int,
    "threads": int,
    "drain_s": float,
    "strict": _flag,
    "start_deadline_s": float,
    "accept_lost_offsets": _flag,
    "claims_retention_s": float,
}
_OTHERS = frozenset(
    {
        "CHOREO_FAILPOINT",
        "CHOREO_TEST_BOOTSTRAP",
        "CHOREO_FULL",
        "CHOREO_SEED",
        "CHOREO_KAFKA_JARS",
        "CHOREO_KAFKA_PORT",  # docker-compose.kafka.yml's, exported by whoever changes its port
        "CHOREO_WORKER",
        "CHOREO_STATUS",
    }
)


def resolve(code: ServiceSettings, environ: Mapping[str, str], flags: Mapping[str, Any] | None = None) -> Resolved:
    """Lays flags over the environment over the code's settings. Raises ConfigurationError naming what is wrong and where."""
    given: dict[str, tuple[Any, str]] = {}
    for name, value in _from_environment(environ):
        given[name] = (value, f"environment CHOREO_{name.upper()}")
    for name, value in (flags or {}).items():
        if value is not None:
            given[name] = (value, f"flag --{name.replace('_', '-')}")
    kafka = _kafka(code.kafka, given)
    others = {name: value for name, (value, _) in given.items() if name not in ("bootstrap", "group_protocol", "kafka_properties")}
    return Resolved(settings := replace(code, kafka=kafka, **others), _origins(settings, code, given))


def _from_environment(environ: Mapping[str, str]) -> list[tuple[str, Any]]:
    found = []
    for variable in sorted(environ):
        if not variable.startswith("CHOREO_") or variable in _OTHERS:
            continue
        text = environ[variable]
        name = variable.removeprefix("CHOREO_").lower()
        if name.endswith("_file") and name not in _PARSERS:
            name = name.removesuffix("_file")
            try:
                text = Path(text).read_text().rstrip("\n")
            except OSError as error:
                raise ConfigurationError(f"{variable}={text}: can't be read: {error.strerror}") from error
        parse = _PARSERS.get(name)
        if parse is None:
            raise ConfigurationError(
                f"{variable} is no setting of choreo{did_you_mean(variable, [f'CHOREO_{n.upper()}' for n in _PARSERS])}"
            )
        try:
            found.append((name, parse(text)))
        except ValueError as error:
            raise ConfigurationError(f"{variable}={masked(variable, text)}: {error}") from error
    return found


def _kafka(code: KafkaSettings, given: Mapping[str, tuple[Any, str]]) -> KafkaSettings:
    properties = {**code.properties, **given["kafka_properties"][0]} if "kafka_properties" in given else code.properties
    return KafkaSettings(
        bootstrap=given["bootstrap"][0] if "bootstrap" in given else code.bootstrap,
        properties=properties,
        group_protocol=given["group_protocol"][0] if "group_protocol" in given else code.group_protocol,
    )


def _origins(settings: ServiceSettings, code: ServiceSettings, given: Mapping[str, tuple[Any, str]]) -> list[Setting]:
    default = ServiceSettings()
    shown: list[Setting] = []

    def add(name: str, value: object, in_code: object, by_default: object) -> None:
        origin = given[name][1] if name in given else "code" if in_code != by_default else "default"
        shown.append(Setting(name, "" if value is None else str(value), origin))

    add("bootstrap", settings.kafka.bootstrap, code.kafka.bootstrap, default.kafka.bootstrap)
    add("group_protocol", settings.kafka.group_protocol, code.kafka.group_protocol, default.kafka.group_protocol)
    for name, value in sorted(settings.kafka.properties.items()):
        from_outside = "kafka_properties" in given and name in given["kafka_properties"][0]
        shown.append(Setting(f"kafka {name}", masked(name, value), given["kafka_properties"][1] if from_outside else "code"))
    for item in fields(ServiceSettings):
        if item.name not in ("kafka", "broker"):
            add(item.name, getattr(settings, item.name), getattr(code, item.name), getattr(default, item.name))
    return shown
