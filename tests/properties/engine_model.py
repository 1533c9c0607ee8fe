"""What must hold for the engine, whatever happens when? One member's engine beside a slow and plain model of it.

`Rig` owns an engine, the log it reads and the group's committed offsets, does one thing at a time, and raises `Violation`
with the name of the rule as soon as engine and model differ. Everything random comes from outside.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from choreo.core.engine import Engine
from choreo.core.partition import BURSTS, BURSTS_ON_THREADS, LOOP, THREADS, Delivery, Partition, Route
from choreo.core.retry import GiveUp, RetryPolicy
from choreo.errors import TransientError
from choreo.record import Record, TopicPartition

_R = TypeVar("_R")
PARTITIONS = tuple(TopicPartition("orders", number) for number in range(2))
KEYS = (b"a", b"b", None)
QUEUES = (LOOP, THREADS, BURSTS, BURSTS_ON_THREADS)
BOUND = 6
MAX_STEPS = 5_000


class Violation(AssertionError):
    """A rule doesn't hold. `rule` is its name."""

    def __init__(self, rule: str, text: str) -> None:
        super().__init__(f"{rule}: {text}")
        self.rule = rule


class Stage(Enum):
    """Where a delivery is."""

    QUEUED = "queued"
    RUNNING = "running"
    DYING = "given up, its letter not yet acknowledged"
    WAITING = "waiting for a retry"
    SETTLED = "settled"
    LEFT_OUT = "left to the next owner"


@dataclass(frozen=True, slots=True)
class Entry:
    """One event of the log, and the handlers it is for."""

    offset: int
    key: bytes | None
    routes: tuple[int, ...]


@dataclass(slots=True, eq=False)
class Item:
    """What the model knows of one delivery."""

    delivery: Delivery
    holding: Holding
    stage: Stage = Stage.QUEUED
    attempts: int = 0
    due_s: float = 0.0

    @property
    def offset(self) -> int:
        return self.delivery.record.offset

    @property
    def runs(self) -> bool:
        return self.stage in (Stage.RUNNING, Stage.DYING)

    @property
    def may_start(self) -> bool:
        """By the rules of a stop, whatever stands before it."""
        if self.holding.gone:
            return False
        return not self.holding.stopping or (self.delivery.run is None and self.offset <= self.holding.cut)

    @property
    def blocks(self) -> bool:
        """Whether those behind it in its lane have to wait for it."""
        return self.runs or (self.stage in (Stage.QUEUED, Stage.WAITING) and self.may_start)


@dataclass(slots=True, eq=False)
class Holding:
    """One assignment of one partition."""

    partition: Partition
    position: int
    items: list[Item] = field(default_factory=list)
    unfinished: dict[int, int] = field(default_factory=dict)
    reach: int | None = None
    told: int | None = None
    cut: int = -1
    stopping: bool = False
    gone: bool = False

    def ahead_of(self, item: Item) -> Iterator[Item]:
        """Those that it has to wait for."""
        lane = item.delivery.lane
        if lane is not None:
            for other in self.items:
                if other is item:
                    return
                if other.delivery.lane == lane and other.blocks:
                    yield other

    def running(self) -> int:
        return sum(item.runs for item in self.items)

    def drained(self) -> bool:
        return self.running() == 0 and all(offset > self.cut for offset in self.unfinished)

    def committable(self) -> int | None:
        return min(self.unfinished, default=self.reach)

    def forget_settled(self) -> None:
        self.items = [item for item in self.items if item.stage is not Stage.SETTLED]


def make_routes() -> list[Route]:
    """An ordered handler, one on threads, one that runs alone and in bursts, and one without order that runs twice at a time."""
    quick = RetryPolicy(max_attempts=2, base_delay_s=0.5)
    return [
        Route(0, "ordered", RetryPolicy()),
        Route(1, "on-threads", quick, queue=THREADS),
        Route(2, "alone", RetryPolicy(), queue=BURSTS, max_concurrency=1),
        Route(3, "by-twos", quick, ordered=False, queue=THREADS, max_concurrency=2),
    ]


class Rig:
    """One engine and everything around it. Owner: the test that made it."""

    def __init__(self, make_engine: Callable[..., Engine]) -> None:
        self._make_engine = make_engine
        self.now_s = 0.0
        self.logs: dict[TopicPartition, list[Entry]] = {partition: [] for partition in PARTITIONS}
        self.committed: dict[TopicPartition, int] = dict.fromkeys(PARTITIONS, 0)
        self.settled: set[tuple[TopicPartition, int, int]] = set()
        self.effects: set[tuple[TopicPartition, int, int]] = set()
        self.excused: set[tuple[TopicPartition, int, int]] = set()
        self.latest: defaultdict[tuple[TopicPartition, int, bytes | None], int] = defaultdict(lambda: -1)
        self.broken = False
        self.crash()

    # ---- what may happen --------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process dies: nothing of it is left, not even what ran."""
        for holding in getattr(self, "holdings", {}).values():
            self._excuse(holding)
        self.engine = self._make_engine(bound=BOUND)
        self.routes = make_routes()
        self.holdings: dict[TopicPartition, Holding] = {}
        self.late: list[Item] = []

    def produce(self, partition: TopicPartition, entry: Callable[[int], Entry]) -> None:
        """One more event; `entry` is told one past the last offset."""
        log = self.logs[partition]
        log.append(entry(log[-1].offset + 1 if log else 0))

    def assign(self, partition: TopicPartition) -> None:
        self.holdings[partition] = Holding(self._ask(self.engine.assign, partition), self.committed[partition])

    def receive(self, partition: TopicPartition, count: int) -> None:
        """The next `count` events, if there are so many and they fit."""
        holding = self.holdings[partition]
        entries = [entry for entry in self.logs[partition] if entry.offset >= holding.position][:count]
        room = not holding.unfinished or len(holding.unfinished) + len(entries) <= BOUND
        self.check("bound", self._ask(self.engine.has_room, holding.partition, len(entries)) == room, f"room for {len(entries)}: {room}")
        if not room:
            return
        for entry in entries:
            items = [self._item(holding, self.routes[route], entry.offset, entry.key) for route in entry.routes]
            holding.reach = holding.position = entry.offset + 1
            if items:
                holding.unfinished[entry.offset] = len(items)
            holding.items += items
            self._ask(self.engine.receive, holding.partition, entry.offset, [item.delivery for item in items])

    def replay(self, partition: TopicPartition, route: int, offset: int, key: bytes | None) -> None:
        holding = self.holdings[partition]
        item = self._item(holding, self.routes[route], offset, key, run="run-1")
        holding.items.append(item)
        self._ask(self.engine.replay, item.delivery)

    def take_any(self) -> bool:
        """Starts the next delivery of whatever queue has one."""
        return any(self.take(queue) for queue in QUEUES)

    def take(self, queue: int) -> bool:
        """Starts the next delivery of a queue, if there is one."""
        delivery = self._ask(self.engine.take, queue)
        if delivery is None:
            left = [item for item in self._startable() if item.delivery.route.queue == queue]
            self.check("progress", not left, f"nothing was ready, but {left[:1]} could start")
            return False
        item = next((item for holding in self.holdings.values() for item in holding.items if item.delivery is delivery), None)
        where = f"{delivery.route.name} for {delivery.record.origin}"
        if item is None:
            raise self._violation("late", f"{where} began, and its partition is gone or it was settled")
        self.check("once", item.stage is Stage.QUEUED, f"{where} began while {item.stage.value}")
        self.check("cut", item.may_start, f"{where} began, the cut is {item.holding.cut}")
        self.check("order", not [*item.holding.ahead_of(item)], f"{where} began before one that is ahead of it")
        self.check("concurrency", self._has_place(delivery.route), f"{where} began beside {self.running_of(delivery.route)}")
        item.attempts += 1
        self.check("attempts", delivery.attempts == item.attempts, f"{where}: {delivery.attempts}, begun {item.attempts}")
        item.stage = Stage.RUNNING
        if delivery.run is None and not item.holding.stopping:
            item.holding.cut = max(item.holding.cut, item.offset)
        return True

    def settle(self, item: Item) -> None:
        """It succeeded, or its letter is acknowledged."""
        late = item.holding.gone
        effect = item.stage is Stage.RUNNING
        if effect and item.delivery.run is None:
            self._effect(item, late=late)
        counted = self._ask(self.engine.settle, item.delivery)
        self.check("late", counted is not late, f"counted: {counted}, late: {late}")
        item.stage = Stage.SETTLED
        if late:
            self.late.remove(item)
            return
        holding = item.holding
        if item.delivery.run is None:
            self.settled.add(self._name(item))
            holding.unfinished[item.offset] -= 1
            if not holding.unfinished[item.offset]:
                del holding.unfinished[item.offset]
        holding.forget_settled()

    def fail(self, item: Item, error: Exception, dice: float) -> None:
        """Its attempt failed; one that is given up is settled later."""
        late = item.holding.gone
        decision = self._ask(self.engine.fail, item.delivery, error, now_s=self.now_s, dice=dice)
        self.check("late", (decision is None) is late, f"{decision}, late: {late}")
        if decision is None:
            self.late.remove(item)
            return
        policy = item.delivery.route.retry
        self.check(
            "retries", isinstance(decision, GiveUp) is (item.attempts >= policy.max_attempts or policy.is_permanent(error)), f"{decision}"
        )
        if isinstance(decision, GiveUp):
            item.stage = Stage.DYING
            return
        self.check("retries", decision.delay_s == self._delay_s(item, error, dice), f"{decision} after {item.attempts}")
        self._wait(item, self.now_s + decision.delay_s)

    def postpone(self, item: Item, delay_s: float) -> None:
        """It is cut short, and not its fault."""
        item.attempts -= 1
        self._ask(self.engine.postpone, item.delivery, until_s=self.now_s + delay_s)
        if item.holding.gone:
            self.late.remove(item)
        else:
            self._wait(item, self.now_s + delay_s)

    def tick(self, seconds: float) -> float | None:
        """Time goes on; when the next retry is due."""
        self.now_s += seconds
        due_s = self._ask(self.engine.tick, self.now_s)
        for item in self._waiting():
            if item.due_s <= self.now_s:
                item.stage = Stage.QUEUED
        expected = min((item.due_s for item in self._waiting()), default=None)
        self.check("clock", due_s == expected, f"the next is due at {due_s}, expected {expected}")
        return due_s

    def stop(self, partition: TopicPartition) -> None:
        self._ask(self.engine.stop, [partition])
        self.holdings[partition].stopping = True

    def drain(self, partition: TopicPartition) -> None:
        """A stop, until everything that may still run there has ended."""
        holding = self.holdings[partition]
        self.stop(partition)
        for _ in range(MAX_STEPS):
            if holding.partition.drained():
                return
            self._step()
        raise self._violation("progress", f"{partition} is not drained after {MAX_STEPS} steps")

    def halt(self, partition: TopicPartition) -> None:
        self._ask(self.engine.halt, [self.holdings[partition].partition])
        self.holdings[partition].cut = -1

    def forget(self, partition: TopicPartition, *, lost: bool) -> None:
        """It is taken away; when it is `lost` nothing can be committed any more."""
        holding = self.holdings.pop(partition)
        drained = holding.stopping and holding.cut >= 0 and holding.drained()
        offsets = {p: committed.offset for p, committed in self._ask(self.engine.forget, [holding.partition]).items()}
        expected = {} if holding.committable() is None else {partition: holding.committable()}
        self.check("commit", offsets == expected, f"{offsets}, expected {expected}")
        if not lost:
            self._commit(offsets)
        if drained and not lost:
            beyond = [name for name in self.settled - self.excused if name[0] == partition and name[1] >= self.committed[partition]]
            self.check("cut", not beyond, f"{beyond} ran, and are redelivered after a drain that ended")
        holding.gone = holding.stopping = True
        self._excuse(holding)
        self.late += [item for item in holding.items if item.runs]

    def commit(self) -> None:
        """The offsets that moved are committed."""
        moved = {p: committed.offset for p, committed in self._ask(self.engine.commits).items()}
        for partition, holding in self.holdings.items():
            offset = holding.committable()
            if offset != holding.told:
                self.check("commit", moved.get(partition) == offset, f"{partition}: {moved.get(partition)}, expected {offset}")
                holding.told = offset
            else:
                self.check("commit", partition not in moved, f"{partition}: {moved.get(partition)} once more")
        self._commit(moved)

    # ---- the model's opinion ------------------------------------------------------------------------------------------

    def check(self, rule: str, holds: bool, text: str) -> None:
        if not holds:
            raise self._violation(rule, text)

    def agree(self) -> None:
        """What can be looked at is the same in engine and model."""
        engine = self.engine
        self.check("partitions", engine.partitions.keys() == self.holdings.keys(), f"{engine.partitions.keys()}")
        self.check("waiting", engine.waiting() == len(self._waiting()), f"{engine.waiting()}, expected {len(self._waiting())}")
        for route in self.routes:
            if route.max_concurrency is not None:
                running = self.running_of(route)
                self.check("concurrency", route.running == running, f"{route.name}: {route.running}, expected {running}")
        for partition, holding in self.holdings.items():
            real = holding.partition
            self.check("commit", real.offsets.committable() == holding.committable(), f"{partition}: {real.offsets.committable()}")
            self.check("running", real.running == holding.running(), f"{partition}: {real.running}, expected {holding.running()}")
            self.check("bound", real.in_flight == len(holding.unfinished) <= BOUND, f"{partition}: {real.in_flight} in flight")
            self.check("drained", real.drained() is holding.drained(), f"{partition}: drained {real.drained()}")

    def outstanding(self) -> list[Item]:
        """Everything that has begun and not ended, also of partitions that are gone."""
        return [item for holding in self.holdings.values() for item in holding.items if item.runs] + self.late

    def running_of(self, route: Route) -> int:
        return sum(item.delivery.route is route for item in self.outstanding())

    def quiesce(self) -> None:
        """Failures stop and time goes on: everything that was ever written is settled and committed."""
        self._run_dry()
        for partition in [p for p, holding in self.holdings.items() if holding.stopping]:
            self.check("progress", self.holdings[partition].drained(), f"{partition} never drains")
            self.forget(partition, lost=False)
        for partition in PARTITIONS:
            if partition not in self.holdings:
                self.assign(partition)
        self._run_dry()
        self.agree()
        for partition, log in self.logs.items():
            lanes = self.engine.lanes()[partition]
            self.check("lanes", lanes == 0, f"{partition}: {lanes} lanes are still there")
            end = log[-1].offset + 1 if log else 0
            self.check("progress", self.committed[partition] == end, f"{partition}: {self.committed[partition]} of {end} committed")

    # ---- inside -------------------------------------------------------------------------------------------------------

    def _run_dry(self) -> None:
        for _ in range(MAX_STEPS):
            for partition, holding in self.holdings.items():
                if not holding.stopping:
                    self.receive(partition, 3)
            if not self._step() and not any(self._unread(holding) for holding in self.holdings.values()):
                self.commit()
                return
        raise self._violation("progress", f"not done after {MAX_STEPS} steps")

    def _step(self) -> bool:
        """Everything that can start starts, everything that runs succeeds; else the next retry falls due. Whether there was any."""
        while self.take_any():
            pass
        running = self.outstanding()
        for item in running:
            self.settle(item)
        if running:
            return True
        due_s = self.tick(0.0)
        if due_s is not None:
            self.tick(due_s - self.now_s)
        return bool(self._startable())

    def _unread(self, holding: Holding) -> bool:
        log = self.logs[holding.partition.id]
        return bool(log) and not holding.stopping and holding.position <= log[-1].offset

    def _item(self, holding: Holding, route: Route, offset: int, key: bytes | None, run: str | None = None) -> Item:
        where = holding.partition.id
        record = Record(where.topic, where.partition, offset, 0, key, b"")
        lane = (route.index, key) if key is not None and route.ordered else None
        return Item(Delivery(holding.partition, route, record, None, None, lane, run), holding)

    def _effect(self, item: Item, *, late: bool) -> None:
        name, delivery = self._name(item), item.delivery
        if name in self.effects:
            self.check("twice", name in self.excused, f"{delivery.route.name} ran again for {delivery.record.origin}")
            return
        self.effects.add(name)
        if delivery.lane is None:
            return
        key = (delivery.partition.id, delivery.route.index, delivery.record.key)
        # No order can be asked of an outcome that comes when its partition is gone, nor of a dead one that is redelivered.
        free = late or name in self.settled
        self.check("order", free or item.offset > self.latest[key], f"{delivery.record.origin} after {self.latest[key]}")
        self.latest[key] = max(self.latest[key], item.offset)

    def _excuse(self, holding: Holding) -> None:
        # An abrupt end: what ran, and what was done beyond the committed offset, may be done twice.
        partition = holding.partition.id
        self.excused.update(self._name(item) for item in holding.items if item.runs)
        self.excused.update(name for name in self.settled if name[0] == partition and name[1] >= self.committed[partition])

    def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        for partition, offset in offsets.items():
            self.check("back", offset >= self.committed[partition], f"{partition}: {offset} after {self.committed[partition]}")
            for entry in self.logs[partition]:
                done = entry.offset >= offset or all((partition, entry.offset, route) in self.settled for route in entry.routes)
                self.check("commit", done, f"{partition}: {offset} is committed, {entry} is not settled")
            self.committed[partition] = offset

    def _wait(self, item: Item, due_s: float) -> None:
        item.stage, item.due_s = (Stage.WAITING, due_s) if item.may_start else (Stage.LEFT_OUT, 0.0)

    def _waiting(self) -> list[Item]:
        return [i for holding in self.holdings.values() for i in holding.items if i.stage is Stage.WAITING and i.may_start]

    def _startable(self) -> list[Item]:
        queued = [i for holding in self.holdings.values() for i in holding.items if i.stage is Stage.QUEUED and i.may_start]
        return [i for i in queued if self._has_place(i.delivery.route) and not [*i.holding.ahead_of(i)]]

    def _has_place(self, route: Route) -> bool:
        return route.max_concurrency is None or self.running_of(route) < route.max_concurrency

    def _delay_s(self, item: Item, error: Exception, dice: float) -> float:
        if isinstance(error, TransientError) and error.retry_after_s is not None:
            return error.retry_after_s
        policy = item.delivery.route.retry
        return float(min(policy.max_delay_s, policy.base_delay_s * policy.multiplier ** (item.attempts - 1))) * dice

    def _name(self, item: Item) -> tuple[TopicPartition, int, int]:
        return item.holding.partition.id, item.offset, item.delivery.route.index

    def _violation(self, rule: str, text: str) -> Violation:
        self.broken = True
        return Violation(rule, text)

    def _ask(self, call: Callable[..., _R], *arguments: object, **named: object) -> _R:
        try:
            return call(*arguments, **named)
        except Exception as error:
            raise self._violation("raised", f"{type(error).__name__}: {error}") from error
