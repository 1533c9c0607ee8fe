"""Are the topics as this service needs them? A pure plan of declared against actual, and the hand that carries it out.

Nothing is ever taken away: partitions are not removed, retention is not shortened, replicas are not moved. Partitions of a
topic of events are added only when somebody asks, for then the order of a key does not hold across the change; ``.letters``
never gets more, because its records are found by the number of its partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from choreo.broker import Cluster, TopicInfo

Role = Literal["events", "dlq", "letters", "replay"]

PARTITIONS = 6
REPLICATION = 3
_DAY_MS = 86_400_000
_MIB = 1_048_576
DLQ_RETENTION_MS = 14 * _DAY_MS
REPLAY_RETENTION_MS = 90 * _DAY_MS
COMPACTION_LAG_MS = 7 * _DAY_MS
LETTER_BYTES = 2 * _MIB
HEADER_ROOM_BYTES = 1_000_000
"""A letter is its event and headers of up to about 10 KiB more: with this room every event that could be read can be a letter."""
_BROKERS_MAX_BYTES = 1_048_588
_FLOORS = ("retention.ms", "max.message.bytes", "min.compaction.lag.ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a service uses, by logical names; `names` gives the broker's. Without `dlq` it has no topics of choreo's own."""

    consumed: Sequence[str]
    emitted: Sequence[str]
    dlq: str | None
    letters: str | None
    replay: str | None
    names: Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the operator said of topics of events; None: nothing."""

    partitions: int | None = None
    replication: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """One topic as it should be. `config` holds least values (and the exact cleanup.policy); `asked`: somebody said how many
    partitions."""

    name: str
    role: Role
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Fine:
    """It is there, as it should be; `note` says what one may wonder about."""

    topic: Declared
    actual: TopicInfo
    note: str = ""


@dataclass(frozen=True, slots=True)
class Create:
    """It is not there."""

    topic: Declared


@dataclass(frozen=True, slots=True)
class Configure:
    """Some settings are less than they should be; `was` has the value of each, None where the topic doesn't say."""

    topic: Declared
    changes: Mapping[str, str]
    was: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Grow:
    """It is to get more partitions."""

    topic: Declared
    actual: int


@dataclass(frozen=True, slots=True)
class Differs:
    """It is not as it should be, and choreo does not change that: `advice` says who does."""

    topic: Declared
    what: str
    advice: str


Step: TypeAlias = Fine | Create | Configure | Grow | Differs


def declare(needs: Needs, wishes: Wishes, actual: Mapping[str, TopicInfo], brokers: int) -> list[Declared]:
    """What a service's topics should be on a cluster of `brokers` brokers."""
    replication = wishes.replication or min(REPLICATION, brokers)
    partitions = wishes.partitions or PARTITIONS
    # Two of three replicas must have an event before it counts, else the loss of one disk loses it.
    safe = {"min.insync.replicas": "2"} if replication >= 3 else {}
    events = [
        Declared(name=name, role="events", partitions=partitions, replication=replication, config=safe, asked=wishes.partitions is not None)
        for name in dict.fromkeys(needs.names(topic) for topic in (*needs.consumed, *needs.emitted))
    ]
    consumed = {needs.names(topic) for topic in needs.consumed}
    widest = max((_width(topic, actual) for topic in events if topic.name in consumed), default=PARTITIONS)
    largest = max((_max_bytes(actual.get(name)) for name in consumed), default=0)
    own: list[tuple[str | None, Role, int, Mapping[str, str]]] = [
        (needs.dlq, "dlq", widest, dlq_config(largest)),
        (needs.letters, "letters", widest, LETTERS_CONFIG),
        (needs.replay, "replay", 1, REPLAY_CONFIG),
    ]
    return events + [
        Declared(name=needs.names(logical), role=role, partitions=count, replication=replication, config={**config, **safe})
        for logical, role, count, config in own
        if logical is not None
    ]


LETTERS_CONFIG: Mapping[str, str] = {
    "cleanup.policy": "compact",
    "min.compaction.lag.ms": str(COMPACTION_LAG_MS),
    # A state holds the key, as base64.
    "max.message.bytes": str(LETTER_BYTES),
}
REPLAY_CONFIG: Mapping[str, str] = {"cleanup.policy": "delete", "retention.ms": str(REPLAY_RETENTION_MS)}


def dlq_config(largest_source_bytes: int) -> dict[str, str]:
    """Room for the largest event of its sources with the headers of a letter."""
    return {
        "cleanup.policy": "delete",
        "retention.ms": str(DLQ_RETENTION_MS),
        "max.message.bytes": str(max(LETTER_BYTES, largest_source_bytes + HEADER_ROOM_BYTES)),
    }


def _width(topic: Declared, actual: Mapping[str, TopicInfo]) -> int:
    found = actual.get(topic.name)
    if found is None:
        return topic.partitions
    return max(found.partitions, topic.partitions) if topic.asked else found.partitions


def _max_bytes(info: TopicInfo | None) -> int:
    said = None if info is None else info.config.get("max.message.bytes")
    return int(said) if said is not None and said.isdecimal() else _BROKERS_MAX_BYTES


# ---- the plan -------------------------------------------------------------------------------------------------------


def plan_topics(declared: Sequence[Declared], actual: Mapping[str, TopicInfo], open_letters: Mapping[str, int]) -> list[Step]:
    """What is to be done about each topic. `open_letters`: how many letters of each topic of the broker are open."""
    steps: list[Step] = []
    for topic in declared:
        found = actual.get(topic.name)
        if found is None:
            steps.append(Create(topic))
            continue
        problems = [step for step in (_partitions(topic, found, open_letters), _replicas(topic, found), _settings(topic, found)) if step]
        steps += problems or [Fine(topic, found, _note(topic, found))]
    return steps


def _partitions(topic: Declared, found: TopicInfo, open_letters: Mapping[str, int]) -> Step | None:
    if topic.role != "events" or not topic.asked or topic.partitions <= found.partitions:
        return None
    waiting = open_letters.get(topic.name, 0)
    if waiting:
        return Differs(
            topic,
            f"{found.partitions} partitions, {topic.partitions} asked for, and {waiting} letters of it are open",
            "their keys would move to other partitions; replay the letters first",
        )
    return Grow(topic, found.partitions)


def _replicas(topic: Declared, found: TopicInfo) -> Step | None:
    if found.replication >= topic.replication:
        return None
    return Differs(
        topic,
        f"replication {found.replication}, should be {topic.replication}",
        f"use kafka-reassign-partitions.sh, or say --replication {found.replication}",
    )


def _settings(topic: Declared, found: TopicInfo) -> Step | None:
    changes = {
        name: wanted
        for name, wanted in topic.config.items()
        if (name == "cleanup.policy" and _other_policy(found, wanted)) or (name in _FLOORS and _below(found.config.get(name), wanted))
    }
    return Configure(topic, changes, {name: found.config.get(name) for name in changes}) if changes else None


def _other_policy(found: TopicInfo, wanted: str) -> bool:
    # Kafka's own default, where neither topic nor broker says anything.
    return found.config.get("cleanup.policy", "delete") != wanted


def _below(value: str | None, wanted: str) -> bool:
    if value is None:
        return True
    number = int(value) if value.lstrip("-").isdecimal() else 0
    return 0 <= number < int(wanted)  # -1: without limit


def _note(topic: Declared, found: TopicInfo) -> str:
    if topic.asked and found.partitions > topic.partitions:
        return f"{topic.partitions} asked for; partitions are never taken away"
    return ""


def to_do(steps: Sequence[Step]) -> list[Create | Configure | Grow]:
    """The steps that `apply_topics` carries out."""
    return [step for step in steps if isinstance(step, Create | Configure | Grow)]


def apply_topics(cluster: Cluster, steps: Sequence[Step], done: Callable[[Step], None]) -> None:
    """Carries the steps out, one after the other, and tells `done` of each. Raises BrokerError at the first that fails; those
    before it are done, and a new plan shows what is left."""
    for step in to_do(steps):
        match step:
            case Create(topic):
                cluster.create([TopicInfo(topic.name, topic.partitions, topic.replication, topic.config)])
            case Configure(topic, changes, _):
                cluster.configure(topic.name, changes)
            case Grow(topic, _):
                cluster.add_partitions(topic.name, topic.partitions)
        done(step)
