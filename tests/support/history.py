"""What happened? The rows that a run leaves behind, from which the checker judges it.

Every `at_s` is `time.monotonic()`: on Linux one clock for all processes of the machine, and no test that moves the wall
clock moves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from choreo.record import Headers, Record, TopicPartition

Outcome: TypeAlias = Literal["ok", "fail", "unknown"]
EVERY_HANDLER = "*"


@dataclass(frozen=True, slots=True)
class Produced:
    """One event that somebody tried to write, with the bytes of its record.

    `ok`: acknowledged by all in-sync replicas at `offset`. `fail`: surely not written. `unknown`: nobody said; the log decides.
    """

    event_id: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    amount: int = 0
    outcome: Outcome = "ok"
    at_s: float = 0.0

    @property
    def place(self) -> TopicPartition:
        return TopicPartition(self.topic, self.partition)

    def __str__(self) -> str:
        return f"{self.place}@{self.offset} ({self.event_id})"


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of the ledger, in the order of its commits. `epoch`: the run of a forced replay, else ``""``."""

    handler: str
    event_id: str
    key: str
    amount: int
    running_sum: int
    at_s: float
    pid: int = 0
    epoch: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a handler; `ended_s` None when it never returned (killed, or still running)."""

    handler: str
    event_id: str
    pid: int
    began_s: float
    ended_s: float | None


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of a dead-letter topic: the bytes in it, and which record it says they came from.

    `handler` may be EVERY_HANDLER. `at_s` None: not known when.
    """

    handler: str
    event_id: str
    source: TopicPartition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """An event that was left out on purpose, with an audit of why. `handler` may be EVERY_HANDLER."""

    handler: str
    event_id: str
    why: str
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """The group's committed offset of a partition as somebody saw it; `at_s` is after the look, so the commit is no later."""

    partition: TopicPartition
    offset: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Recovery:
    """When the last fault was healed, when everything had caught up (None: never), and how long that might take."""

    healed_at_s: float
    caught_up_at_s: float | None
    deadline_s: float


@dataclass(frozen=True, slots=True)
class CleanStop:
    """Processes that ended by themselves, in time and with exit code 0; `at_s` is when the last one had gone."""

    at_s: float
    pids: frozenset[int]


@dataclass(frozen=True)
class History:
    """A whole run. `handlers` says which topics each handler takes; `log` is a last read of those topics, if there was one.

    `effects` is in ledger order, `commits` in the order they were seen. What is left out is not judged. `unordered` names
    handlers that asked for no order.
    """

    handlers: Mapping[str, frozenset[str]]
    produced: Sequence[Produced]
    effects: Sequence[Effect]
    letters: Sequence[Letter] = ()
    skips: Sequence[Skip] = ()
    commits: Sequence[Commit] = ()
    calls: Sequence[Call] = ()
    log: Sequence[Record] | None = None
    recovery: Recovery | None = None
    clean_stops: Sequence[CleanStop] = ()
    unordered: frozenset[str] = field(default_factory=frozenset)
