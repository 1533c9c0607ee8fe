"""What does one member do with its engine? The runtime in small: it receives, runs, claims, settles, and lets go.

What happened is written down in a `Ledger`, which raises `Violation` as soon as it should not have.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from random import Random

from choreo.core.engine import Engine
from choreo.core.offset_map import NO_TOPIC_ID, Ignored, OffsetMap, left_of, read_map
from choreo.core.partition import THREADS, Delivery, Partition
from choreo.core.retry import GiveUp
from choreo.errors import PermanentError
from choreo.record import Committed, Record, TopicPartition
from tests.properties.engine_model import QUEUES, Violation, make_routes

BOUND = 6


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the log; two with one id are duplicates."""

    offset: int
    id: str
    key: bytes | None
    routes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Weather:
    """How often things go wrong, for each step. `claims` False: effects are `offsets`, nothing remembers successes. `maps`: the
    topic has an id, so offset maps are written."""

    failure: float
    rebalance: float
    loss: float
    crash: float
    hurry: float
    claims: bool
    maps: bool


TOPIC_ID = b"topic-number-001"
NUMBERS = [route.number for route in make_routes()]


class Ledger:
    """What was written, done and committed, by all members together; and the rules for it."""

    def __init__(self, logs: dict[TopicPartition, list[Event]], *, claims: bool) -> None:
        self.logs = logs
        self.by_claims = claims
        self.committed = dict.fromkeys(logs, 0)
        self.maps: dict[TopicPartition, OffsetMap | None] = dict.fromkeys(logs)
        self.claims: set[str] = set()
        self.settled: set[tuple[TopicPartition, int, int]] = set()
        self.effects: Counter[str] = Counter()
        self.excused: set[str] = set()
        self.sights: Counter[str] = Counter()
        self._latest: defaultdict[tuple[TopicPartition, int, bytes | None], int] = defaultdict(lambda: -1)

    def name(self, delivery: Delivery) -> str:
        """What may happen once: a success of a handler with an event id, or with a record when nothing is claimed."""
        return f"{delivery.route.name} {delivery.wire if self.by_claims else delivery.record.origin}"

    def effect(self, delivery: Delivery, *, owned: bool) -> None:
        """The handler did its work. `owned`: its partition is still the member's, in the eyes of the group."""
        name, offset = self.name(delivery), delivery.record.offset
        if not owned:
            self.excused.add(name)
            self.sights["an effect of a zombie"] += 1
        self.effects[name] += 1
        if self.effects[name] > 1:
            self.sights["an effect twice"] += 1
            self.check("twice", name in self.excused, f"{name}, and nothing ended abruptly while it ran")
        elif delivery.lane is not None:
            key = (delivery.partition.id, delivery.route.index, delivery.record.key)
            dead_before = self._triple(delivery) in self.settled
            self.check("order", not owned or dead_before or offset > self._latest[key], f"{name} after {self._latest[key]}")
            self._latest[key] = max(self._latest[key], offset)

    def settle(self, delivery: Delivery) -> None:
        self.settled.add(self._triple(delivery))

    def commit(self, partition: TopicPartition, committed: Committed) -> None:
        offset = committed.offset
        self.check("back", offset >= self.committed[partition], f"{partition}: {offset} after {self.committed[partition]}")
        for event in self.logs[partition]:
            if self.committed[partition] <= event.offset < offset:
                left = [route for route in event.routes if (partition, event.offset, route) not in self.settled]
                self.check("commit", not left, f"{partition}: {offset}, and {event} is not settled")
        self.committed[partition] = offset
        found = read_map(committed.metadata, topic_id=TOPIC_ID, offset=offset)
        self.check("map", not isinstance(found, Ignored), f"{partition}: {found}")
        self.maps[partition] = found if isinstance(found, OffsetMap) else None
        for event in self.logs[partition]:
            wrong = [r for r in event.routes if self.finished(partition, event, r) and (partition, event.offset, r) not in self.settled]
            self.check("map", not wrong, f"{partition}: {event} is said to be finished, and is not settled")
            if event.offset >= offset and any(self.finished(partition, event, route) for route in event.routes):
                self.sights["finished above the committed offset"] += 1

    def finished(self, partition: TopicPartition, event: Event, route: int) -> bool:
        """Whether what is committed says so."""
        found = self.maps[partition]
        if event.offset < self.committed[partition]:
            return True
        if found is None:
            return False
        return left_of(found, event.offset, NUMBERS[route]) is None

    def excuse_the_uncommitted(self, partition: TopicPartition) -> None:
        """An abrupt end: without claims, what was done beyond the committed offset is done again."""
        if not self.by_claims:
            names = [route.name for route in make_routes()]
            beyond = [(e, route) for e in self.logs[partition] for route in e.routes if not self.finished(partition, e, route)]
            self.excused.update(f"{names[route]} {partition}@{event.offset}" for event, route in beyond)

    def check(self, rule: str, holds: bool, text: str) -> None:
        if not holds:
            raise Violation(rule, text)

    def _triple(self, delivery: Delivery) -> tuple[TopicPartition, int, int]:
        return delivery.partition.id, delivery.record.offset, delivery.route.index


class Stage(Enum):
    """How far an attempt is."""

    ON_THREAD = "it waits for a thread"
    RUNS = "its handler runs"
    DONE = "its effect is there, its claim is not"
    DYING = "its letter is not acknowledged yet"


@dataclass(eq=False)
class Work:
    """One delivery that has begun."""

    delivery: Delivery
    stage: Stage


@dataclass
class Member:
    """One process. `owns` asks the group whether an assignment still counts."""

    ledger: Ledger
    engine: Engine
    dice: Random
    owns: Callable[[Member, Partition], bool]
    maps: bool = True
    now_s: float = 0.0
    works: list[Work] = field(default_factory=list)
    positions: dict[Partition, int] = field(default_factory=dict)
    started: dict[Partition, int] = field(default_factory=dict)
    done: defaultdict[Partition, set[tuple[int, int]]] = field(default_factory=lambda: defaultdict(set))
    """What settled here: offsets and handlers."""
    orders: deque[dict[Partition, Committed]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._routes = make_routes()
        self._recent: set[str] = set()
        self._running: dict[str, tuple[Delivery, list[Delivery]]] = {}

    # ---- partitions -------------------------------------------------------------------------------------------------

    def assign(self, partition: TopicPartition) -> Partition:
        state = self.engine.assign(
            partition,
            start=self.ledger.committed[partition],
            topic_id=TOPIC_ID if self.maps else NO_TOPIC_ID,
            restored=self.ledger.maps[partition],
        )
        if state.restored is not None and state.restored.unfinished:
            self.ledger.sights["a map that is read"] += 1
        self.positions[state] = self.ledger.committed[partition]
        self.started[state] = -1
        return state

    def cut_short(self, state: Partition) -> None:
        """Coroutines are cancelled; what runs on a thread goes on."""
        for work in [w for w in self.works if w.delivery.partition is state]:
            if work.stage is Stage.RUNS and work.delivery.route.queue != THREADS:
                self._release(work)
                self.ledger.sights["cut short"] += 1

    def forget(self, state: Partition) -> Committed | None:
        """What to commit."""
        offset = self.engine.forget([state]).get(state.id)
        del self.positions[state]
        self.excuse_the_unclaimed(state)
        return offset

    def excuse_the_unclaimed(self, state: Partition) -> None:
        """An abrupt end: what had its effect and not its claim may have it again."""
        done = [work.delivery for work in self.works if work.delivery.partition is state and work.stage is Stage.DONE]
        self.ledger.excused.update(map(self.ledger.name, done))

    # ---- steps ------------------------------------------------------------------------------------------------------

    def receive(self, most: int = 4) -> bool:
        """A batch of one partition; whether there was one that fits."""
        states = [state for state in self.positions if self.engine.partitions.get(state.id) is state]
        if not states:
            return False
        state = self.dice.choice(states)
        events = [event for event in self.ledger.logs[state.id] if event.offset >= self.positions[state]][: self.dice.randint(1, most)]
        if not events or not self.engine.has_room(state, len(events)):
            return False
        for event in events:
            self.positions[state] = event.offset + 1
            self.engine.receive(state, event.offset, [self._delivery(state, event, route) for route in event.routes])
        self.ledger.check("bound", state.in_flight <= BOUND, f"{state.id}: {state.in_flight} in flight")
        return True

    def start(self) -> bool:
        """The next delivery begins; whether there was one."""
        delivery = next(filter(None, map(self.engine.take, self.dice.sample(QUEUES, len(QUEUES)))), None)
        if delivery is None:
            return False
        state = delivery.partition
        self.started[state] = max(self.started[state], delivery.record.offset)
        if delivery.route.queue == THREADS:
            self.works.append(Work(delivery, Stage.ON_THREAD))
        else:
            self._begin(Work(delivery, Stage.RUNS))
        return True

    def advance(self, failure: float) -> bool:
        """Something that has begun comes one step further; whether there was anything."""
        if not self.works:
            return False
        work = self.dice.choice(self.works)
        match work.stage:
            case Stage.ON_THREAD if work.delivery.partition.may_start(work.delivery):
                self.works.remove(work)
                self._begin(work)
            case Stage.ON_THREAD:
                self._release(work)
            case Stage.RUNS if self.dice.random() < failure:
                self._fail(work)
            case Stage.RUNS:
                self.ledger.effect(work.delivery, owned=self.owns(self, work.delivery.partition))
                work.stage = Stage.DONE
            case Stage.DONE | Stage.DYING:
                self._end(work)
        return True

    def tick(self, seconds: float) -> None:
        self.now_s += seconds
        self.engine.tick(self.now_s)

    def commit(self) -> None:
        """Orders a commit; the group hears of it later."""
        offsets = {self.engine.partitions[partition]: offset for partition, offset in self.engine.commits(also_maps=True).items()}
        if offsets:
            self.orders.append(offsets)

    def die(self) -> None:
        """The process ends, and all that it knew."""
        for work in self.works:
            self.ledger.sights[f"a crash while {work.stage.value}"] += 1
            self.excuse_the_unclaimed(work.delivery.partition)

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _delivery(self, state: Partition, event: Event, number: int) -> Delivery:
        route = self._routes[number]
        record = Record(state.id.topic, state.id.partition, event.offset, 0, event.key, b"")
        lane = (number, event.key) if event.key is not None and route.ordered else None
        made = Delivery(state, route, record, event.id, None, lane)
        made.note = self.ledger.by_claims and self.ledger.name(made) in self.ledger.claims
        return made

    def _begin(self, work: Work) -> None:
        name = self.ledger.name(work.delivery)
        if self.ledger.by_claims:
            if work.delivery.note or name in self._recent:
                self.ledger.sights["a duplicate"] += 1
                self._settle(work.delivery)
                return
            if name in self._running:
                self.ledger.sights["a duplicate that waits"] += 1
                self._running[name][1].append(work.delivery)
                return
            self._running[name] = (work.delivery, [])
        work.stage = Stage.RUNS
        self.works.append(work)

    def _fail(self, work: Work) -> None:
        self._end_claim(work.delivery)
        error = PermanentError("no") if self.dice.random() < 0.2 else OSError("reset")
        decision = self.engine.fail(work.delivery, error, now_s=self.now_s, dice=self.dice.random())
        if isinstance(decision, GiveUp):
            work.stage = Stage.DYING
        else:
            self.works.remove(work)
            self.ledger.sights["a late failure" if decision is None else "a retry"] += 1

    def _end(self, work: Work) -> None:
        self.works.remove(work)
        if work.stage is Stage.DYING:
            self.ledger.sights["a letter"] += 1
        elif self.ledger.by_claims:
            self.ledger.claims.add(self.ledger.name(work.delivery))
            self._recent.add(self.ledger.name(work.delivery))
        self._settle(work.delivery)

    def _settle(self, delivery: Delivery) -> None:
        self._end_claim(delivery)
        if self.engine.settle(delivery):
            self.ledger.settle(delivery)
            self.done[delivery.partition].add((delivery.record.offset, delivery.route.index))
        else:
            self.ledger.sights["a late outcome"] += 1

    def _release(self, work: Work) -> None:
        self.works.remove(work)
        self._end_claim(work.delivery)
        self.engine.postpone(work.delivery, until_s=self.now_s)

    def _end_claim(self, delivery: Delivery) -> None:
        name = self.ledger.name(delivery)
        if name in self._running and self._running[name][0] is delivery:
            for waiting in self._running.pop(name)[1]:
                self.engine.postpone(waiting, until_s=self.now_s)
