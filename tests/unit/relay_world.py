"""What do relays share, and what may they never do to it? Time, the rows, Kafka's log, and the rules for what is written to it.

All chance is drawn from one seed, so that a bad story can be told again.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random

from choreo.broker import Report
from choreo.envelope import ID
from choreo.errors import BrokerError
from choreo.record import Outgoing
from choreo.storage.memory_outbox import MemoryOutbox
from choreo.store import shard_of

ASIDE_AFTER_S = 3.0
STALE_S = 2.0
"""What a report said may be so old when the row is set aside for it."""
TOPICS = ("answers", "late")
PARTITIONS = 2
_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Violation(AssertionError):
    """A rule does not hold."""

    def __init__(self, rule: str, what: str) -> None:
        super().__init__(f"{rule}: {what}")
        self.rule = rule


@dataclass(slots=True)
class Weather:
    """How often things go wrong. `refused`: Kafka says no and has not written it; `unknown`: it says no, and has. `store`: a call of the
    outbox fails, before or after it was done. `slow_s`: how long each half of such a call takes at most."""

    refused: float = 0.0
    unknown: float = 0.0
    store: float = 0.0
    slow_s: float = 0.0


@dataclass(slots=True)
class _Sent:
    record: Outgoing
    report: Callable[[Report], None]


class World:
    """`rules` are those that end a story; how often another one is broken is counted."""

    def __init__(self, dice: Random, weather: Weather, rules: Collection[str]) -> None:
        self.dice = dice
        self.weather = weather
        self.now_s = 1_000.0
        self.relays = count(1)
        self.rows = MemoryOutbox("shop", clock=lambda: _EPOCH + timedelta(seconds=self.now_s))
        self.writers: defaultdict[str, list[str]] = defaultdict(list)
        """Who wrote each event to Kafka, one entry each time."""
        self.unknown: set[str] = set()
        self.missing = {"late"}
        self.refuses_huge = True
        self._mended_s = self.now_s
        self.sights: Counter[str] = Counter()
        self._rules = rules
        self._asked_aside: set[tuple[str, int]] = set()

    def mend(self, *, missing: Collection[str], refuses_huge: bool) -> None:
        self.missing, self.refuses_huge, self._mended_s = set(missing), refuses_huge, self.now_s

    def refusal(self, record: Outgoing) -> BrokerError | None:
        """What Kafka says to it for as long as nobody mends it."""
        if record.topic in self.missing:
            return BrokerError(f"{record.topic}: no such topic", code="UNKNOWN_TOPIC_OR_PART", retriable=False)
        if self.refuses_huge and record.value == b"huge":
            return BrokerError(f"{record.topic}: too large", code="MSG_SIZE_TOO_LARGE", retriable=False)
        return None

    def breaks(self, rule: str, what: str) -> None:
        """Raises it where the rule is one of those that are to be kept; else it is only counted."""
        if rule in self._rules:
            raise Violation(rule, what)
        self.sights[f"broken: {rule}"] += 1

    def begun(self, relay: str, record: Outgoing) -> None:
        """A relay gives a record to its producer."""
        shard = shard_of(record.topic, record.key, event_id(record))
        if (holder := self.rows.holder(shard)) != relay:
            self.breaks("lease", f"{relay} begins {event_id(record)} of shard {shard}, which {holder or 'nobody'} has")

    def written(self, relay: str, record: Outgoing) -> None:
        """Kafka writes a record."""
        this = event_id(record)
        writers = self.writers[this]
        if writers:
            self.sights["an event twice"] += 1
            if relay in writers and this not in self.unknown:
                self.breaks("twice", f"{relay} wrote {this} before, and knew it")
        elif record.key is not None:
            for row in self.rows.in_order():
                if (row.record.topic, row.record.key) != (record.topic, record.key):
                    continue
                if row.event_id == this:
                    break
                if not self.writers[row.event_id]:
                    self.breaks("order", f"{this} before {row.event_id} of the same key, by {relay}")
        writers.append(relay)

    def deleted(self, seqs: Collection[int]) -> None:
        for row in self.rows.in_order():
            if row.seq in seqs and not self.writers[row.event_id]:
                self.breaks("lost", f"{row.event_id} is deleted, and Kafka does not have it")

    def set_aside(self, relay: str, seq: int) -> None:
        """Judged when it is asked for first: the database may be away for long."""
        for row in self.rows.in_order():
            if row.seq == seq and (relay, seq) not in self._asked_aside:
                self._asked_aside.add((relay, seq))
                self.sights["set aside"] += 1
                if self.refusal(row.record) is None and self.now_s - self._mended_s > STALE_S:
                    self.breaks("aside", f"{relay} sets {row.event_id} aside, which Kafka would take")


def event_id(record: Outgoing) -> str:
    return (dict(record.headers)[ID] or b"").decode()


class Kafka:
    """A process's producer: idempotent, so the order of a partition is that of sends, but for those that fail."""

    def __init__(self, world: World, relay: str) -> None:
        self._world = world
        self._relay = relay
        self._local: defaultdict[tuple[str, int], deque[_Sent]] = defaultdict(deque)
        self._wire: defaultdict[tuple[str, int], deque[_Sent]] = defaultdict(deque)
        self._reports: list[tuple[float, _Sent, Report]] = []
        self._out = 0

    def send(self, record: Outgoing, report: Callable[[Report], None]) -> None:
        refusal = self._world.refusal(record)
        if refusal is not None and self._world.dice.random() < 0.5:
            raise refusal
        self._world.begun(self._relay, record)
        self._out += 1
        self._local[record.topic, sum(record.key or event_id(record).encode()) % PARTITIONS].append(_Sent(record, report))

    def go(self, *, stopped: bool) -> None:
        """Time passes: what is on the wire may arrive, also when its process stands still."""
        if not stopped:
            for partition, waiting in self._local.items():
                while waiting and self._world.dice.random() < 0.8:
                    self._wire[partition].append(waiting.popleft())
        for wire in self._wire.values():
            while wire and self._world.dice.random() < 0.5:
                self._arrive(wire.popleft())

    def _arrive(self, sent: _Sent) -> None:
        world, weather = self._world, self._world.weather
        error, roll = world.refusal(sent.record), world.dice.random()
        if error is None and roll < weather.refused + weather.unknown:
            error = BrokerError("no answer in time", code="_MSG_TIMED_OUT")
            if roll < weather.unknown:
                world.sights["an answer that was lost"] += 1
                world.written(self._relay, sent.record)
                world.unknown.add(event_id(sent.record))
        elif error is None:
            world.written(self._relay, sent.record)
        self._reports.append((world.now_s + world.dice.choice((0.0, 0.001, 0.03)), sent, Report(0, 0, error)))

    def die(self) -> None:
        """What is on the wire may still arrive, nobody hears of it; what is not on it is gone."""
        for wire in self._wire.values():
            while wire and self._world.dice.random() < 0.5:
                self._arrive(wire.popleft())
        self._local.clear()
        self._wire.clear()

    def poll(self, timeout_s: float) -> int:
        now = [report for report in self._reports if report[0] <= self._world.now_s]
        self._reports = [report for report in self._reports if report[0] > self._world.now_s]
        for _, sent, report in now:
            self._out -= 1
            sent.report(report)
        return len(now)

    def flush(self, timeout_s: float) -> int:
        return self._out

    def close(self, timeout_s: float) -> int:
        return self._out
