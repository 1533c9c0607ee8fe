"""What can happen between two members of a group? Rebalances, losses, crashes and late commits over one partitioned log.

A story is a seed: everything random is drawn from it, so that a bad one can be told again. Kept as in Kafka: an owner gives a
partition back before another gets it, a commit counts only while its assignment does, and it may come late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from choreo.core.engine import Engine
from choreo.core.partition import Partition
from choreo.record import TopicPartition
from tests.properties.simulated_member import BOUND, Event, Ledger, Member, Weather

PARTITIONS = tuple(TopicPartition("orders", number) for number in range(3))
MEMBERS = 2
STEPS = 260
HEALING_ROUNDS = 400


@dataclass(eq=False)
class Tenure:
    """One partition in the hands of one member. `hurry`: steps until its drain is out of time, None while nobody wants it back."""

    member: Member
    state: Partition
    hurry: int | None = None
    over: bool = False
    suspect: bool = False


def some_events(dice: Random) -> dict[TopicPartition, list[Event]]:
    """A short log for each partition, with gaps and duplicates."""
    logs: dict[TopicPartition, list[Event]] = {}
    for partition in PARTITIONS:
        log: list[Event] = []
        offset = 0
        for number in range(dice.randint(4, 12)):
            offset += dice.choice((0, 0, 0, 1, 3))
            routes = dice.choice(((0,), (0,), (1,), (2,), (2,), (3,), (0, 1), (2, 3), (0, 1, 2), ()))
            log.append(Event(offset, f"{partition}-{number}", dice.choice((b"a", b"b", None)), routes))
            if dice.random() < 0.1:
                offset += 1
                log.append(Event(offset, log[-1].id, dice.choice((log[-1].key, None)), routes))
            offset += 1
        logs[partition] = log
    return logs


@dataclass
class Simulation:
    """One story. `tell` runs it to its end, where everything has to be settled and committed."""

    dice: Random
    weather: Weather
    make_engine: Callable[..., Engine] = Engine
    tenures: dict[TopicPartition, Tenure] = field(default_factory=dict)
    untold: list[Tenure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = Ledger(some_events(self.dice), claims=self.weather.claims)
        self.members = [self._member() for _ in range(MEMBERS)]

    def tell(self) -> Ledger:
        for _ in range(STEPS):
            self._step()
        self._heal()
        return self.ledger

    # ---- a step -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        member, roll = self.dice.choice(self.members), self.dice.random()
        self._group(roll)
        match self.dice.randrange(16):
            case 0 | 1 | 2:
                member.receive()
            case 3 | 4 | 5 | 6:
                member.start()
            case 7 | 8 | 9 | 10 | 11:
                member.advance(self.weather.failure)
            case 12:
                member.tick(self.dice.choice((0.1, 1.0, 5.0)))
            case 13:
                member.commit()
            case 14:
                self._write_commit(member)
            case _:
                self._assign()
                self._tell_losses()
        self._drain()

    def _group(self, roll: float) -> None:
        weather, held = self.weather, [*self.tenures.values()]
        if roll < weather.crash:
            self._crash(self.dice.choice(self.members))
        elif held and roll < weather.crash + weather.loss:
            self._lose(self.dice.choice(held))
        elif held and roll < weather.crash + weather.loss + weather.rebalance:
            self._ask_back(self.dice.choice(held))

    def _assign(self) -> None:
        for partition in PARTITIONS:
            member = self.dice.choice(self.members)
            # Who has not yet heard that it lost a partition can't be given it again.
            if partition not in self.tenures and partition not in member.engine.partitions:
                self.tenures[partition] = Tenure(member, member.assign(partition))

    def _ask_back(self, tenure: Tenure) -> None:
        if tenure.hurry is None:
            tenure.suspect = bool(tenure.member.engine.suspects)
            tenure.member.engine.stop([tenure.state.id])
            tenure.hurry = self.dice.randint(0, 4) if self.dice.random() < self.weather.hurry else 10 * STEPS

    def _drain(self) -> None:
        for tenure in [tenure for tenure in self.tenures.values() if tenure.hurry is not None]:
            if tenure.over or tenure.state.drained():
                self._give_back(tenure)
            elif tenure.hurry == 0:
                tenure.over = True
                tenure.member.engine.halt([tenure.state])
                tenure.member.cut_short(tenure.state)
            else:
                tenure.hurry = (tenure.hurry or 0) - 1

    def _give_back(self, tenure: Tenure) -> None:
        partition, member = tenure.state.id, tenure.member
        started = member.started[tenure.state]
        committed = member.forget(tenure.state)
        del self.tenures[partition]
        if committed is not None:
            self.ledger.commit(partition, committed)
            if self.weather.maps:
                known = {
                    (event.offset, r)
                    for event in self.ledger.logs[partition]
                    for r in event.routes
                    if self.ledger.finished(partition, event, r)
                }
                unsaid = member.done[tenure.state] - known
                self.ledger.check(
                    "map", not unsaid, f"{partition}: {unsaid} ended, and what was committed last doesn't say so: {committed}"
                )
        if tenure.over:
            self.ledger.sights["a revoke out of time"] += 1
            self.ledger.excuse_the_uncommitted(partition)
        else:
            self.ledger.sights["a revoke in peace"] += 1
            # What is suspect is not run to the cut: the map says what is finished.
            to_the_cut = not tenure.suspect
            self.ledger.check(
                "cut", not to_the_cut or started < self.ledger.committed[partition], f"{partition}: {started} had begun, {committed}"
            )

    def _lose(self, tenure: Tenure) -> None:
        self.ledger.sights["a loss"] += 1
        del self.tenures[tenure.state.id]
        self.untold.append(tenure)
        self._excuse(tenure)

    def _tell_losses(self) -> None:
        for tenure in self.untold:
            tenure.member.engine.stop([tenure.state.id])
            tenure.member.forget(tenure.state)
            tenure.member.cut_short(tenure.state)
        self.untold.clear()

    def _crash(self, member: Member) -> None:
        self.ledger.sights["a crash"] += 1
        for tenure in [tenure for tenure in self.tenures.values() if tenure.member is member]:
            del self.tenures[tenure.state.id]
            self._excuse(tenure)
        member.die()
        self.untold = [tenure for tenure in self.untold if tenure.member is not member]
        self.members[self.members.index(member)] = self._member()

    def _excuse(self, tenure: Tenure) -> None:
        self.ledger.excuse_the_uncommitted(tenure.state.id)
        tenure.member.excuse_the_unclaimed(tenure.state)

    def _write_commit(self, member: Member) -> bool:
        """The oldest order arrives; what it says of an assignment that is over is refused."""
        if not member.orders:
            return False
        if self.dice.random() < self.weather.failure:
            self.ledger.sights["a commit that fails"] += 1
            return True  # and is tried again
        for state, committed in member.orders.popleft().items():
            if self._owns(member, state):
                self.ledger.commit(state.id, committed)
                state.acknowledged(committed.stamp)
            else:
                self.ledger.sights["a commit that is refused"] += 1
        return True

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Failures stop, time goes on: everything is caught up."""
        self.weather = Weather(failure=0, rebalance=0, loss=0, crash=0, hurry=0, claims=self.weather.claims, maps=self.weather.maps)
        behind: list[str] = []
        for _ in range(HEALING_ROUNDS):
            self._tell_losses()
            self._drain()
            self._assign()
            for member in self.members:
                self._work_off(member)
            behind = [*self._behind()]
            if not behind:
                return
        self.ledger.check("progress", False, f"not caught up: {'; '.join(behind)}")

    def _work_off(self, member: Member) -> None:
        member.receive()
        while member.start():
            pass
        while member.advance(0):
            pass
        member.tick(60.0)
        member.commit()
        while self._write_commit(member):
            pass

    def _behind(self) -> Iterator[str]:
        for partition, log in self.ledger.logs.items():
            for event in log:
                for route in event.routes:
                    if (partition, event.offset, route) not in self.ledger.settled:
                        yield f"{event} of {partition} is not settled for {route}"
            if self.ledger.committed[partition] != log[-1].offset + 1:
                yield f"{partition}: {self.ledger.committed[partition]} of {log[-1].offset + 1} is committed"
        for member in self.members:
            if member.works or member.orders:
                yield f"{len(member.works)} still run"

    def _member(self) -> Member:
        return Member(self.ledger, self.make_engine(bound=BOUND), self.dice, self._owns, self.weather.maps)

    def _owns(self, member: Member, state: Partition) -> bool:
        tenure = self.tenures.get(state.id)
        return tenure is not None and tenure.member is member and tenure.state is state
