"""What may happen to an engine, and when? Everything, at any moment: the rules of a hypothesis state machine over `Rig`."""

from __future__ import annotations

from itertools import product
from typing import ClassVar, TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from choreo.core.engine import Engine
from choreo.errors import PermanentError, TransientError
from choreo.record import TopicPartition
from tests.properties.engine_model import KEYS, PARTITIONS, Entry, Item, Rig, Stage

Written: TypeAlias = tuple[TopicPartition, int, bytes | None, tuple[int, ...]]

HANDLERS = ((), (0,), (1,), (2,), (3,), (0, 2), (1, 2), (2, 3), (0, 1, 3))
GAPS = (0, 1, 2)
events: st.SearchStrategy[Written] = st.sampled_from(tuple(product(PARTITIONS, GAPS, KEYS, HANDLERS)))
chosen = st.integers(0, 63)
counts = st.sampled_from((1, 2, 8))
dices = st.sampled_from((0.0, 0.25, 0.5, 0.999))
errors = st.sampled_from((OSError("reset"), TransientError("busy", retry_after_s=2.5), PermanentError("no such card")))


class EngineMachine(RuleBasedStateMachine):
    """One member of a group. At the end it has to come to rest with everything done."""

    engine: ClassVar[type[Engine]] = Engine

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig(self.engine)
        self.only: int | None = None

    # ---- what comes in ----------------------------------------------------------------------------------------------

    @initialize(log=st.lists(events, min_size=8, max_size=16), only=st.sampled_from((None, 0, 2)), replayed=st.booleans())
    def begin(self, log: list[Written], only: int | None, replayed: bool) -> None:
        """`only`: every event is for this handler, so that all meet in its lanes and at its places."""
        self.only = only
        for event in log:
            self._write(event)
        for partition in PARTITIONS:
            self.rig.assign(partition)
            if replayed:
                self.replay(PARTITIONS.index(partition), 0, 0)
            self.rig.receive(partition, 4)

    @rule(event=events, count=st.integers(1, 4))
    def receive(self, event: Written, count: int) -> None:
        """One more event is written, and the next `count` of its partition come; it may have to be assigned for that."""
        partition = event[0]
        self._write(event)
        if partition not in self.rig.holdings:
            self.rig.assign(partition)
        self.rig.receive(partition, count)

    @precondition(lambda self: self.rig.holdings)
    @rule(number=chosen, letter=chosen, handler=chosen)
    def replay(self, number: int, letter: int, handler: int) -> None:
        partition = self._held(number)
        log = [entry for entry in self.rig.logs[partition] if entry.routes]
        if log:
            entry = log[letter % len(log)]
            self.rig.replay(partition, entry.routes[handler % len(entry.routes)], entry.offset, entry.key)

    # ---- what runs --------------------------------------------------------------------------------------------------

    @rule(count=counts)
    def take(self, count: int) -> None:
        while count and self.rig.take_any():
            count -= 1

    @precondition(lambda self: self.rig.outstanding())
    @rule(number=chosen, count=counts)
    def settle(self, number: int, count: int) -> None:
        for item in _some(self.rig.outstanding(), number, count):
            self.rig.settle(item)

    @precondition(lambda self: self._running())
    @rule(number=chosen, count=counts, error=errors, dice=dices)
    def fail(self, number: int, count: int, error: Exception, dice: float) -> None:
        for item in _some(self._running(), number, count):
            self.rig.fail(item, error, dice)

    @precondition(lambda self: self._running())
    @rule(number=chosen, count=counts, delay_s=st.sampled_from((0.0, 1.0)))
    def postpone(self, number: int, count: int, delay_s: float) -> None:
        for item in _some(self._running(), number, count):
            self.rig.postpone(item, delay_s)

    @rule(seconds=st.sampled_from((0.0, 0.1, 1.0, 30.0)))
    def tick(self, seconds: float) -> None:
        self.rig.tick(seconds)

    @rule()
    def commit(self) -> None:
        self.rig.commit()

    # ---- what the group decides -------------------------------------------------------------------------------------

    @precondition(lambda self: self.rig.holdings)
    @rule(number=chosen, how=st.sampled_from(("stop", "halt", "drained", "revoked", "lost", "comes back", "crash")))
    def rebalance(self, number: int, how: str) -> None:
        partition = self._held(number)
        match how:
            case "stop":
                self.rig.stop(partition)
            case "halt":
                self.rig.stop(partition)
                self.rig.halt(partition)
            case "drained":
                self.rig.drain(partition)
                self.rig.forget(partition, lost=False)
            case "crash":
                self.rig.crash()
            case "comes back":
                self.rig.forget(partition, lost=True)
                self.rig.assign(partition)
                self.rig.receive(partition, 4)
            case _:
                self.rig.forget(partition, lost=how == "lost")

    # ---- what must hold ---------------------------------------------------------------------------------------------

    @invariant()
    def engine_and_model_agree(self) -> None:
        self.rig.agree()

    def teardown(self) -> None:
        if not self.rig.broken:
            self.rig.quiesce()

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _write(self, event: Written) -> None:
        partition, gap, key, routes = event
        if self.only is not None:
            routes = (self.only,) if routes else ()
        self.rig.produce(partition, lambda end: Entry(end + gap, key, routes))

    def _running(self) -> list[Item]:
        return [item for item in self.rig.outstanding() if item.stage is Stage.RUNNING]

    def _held(self, number: int) -> TopicPartition:
        held = sorted(self.rig.holdings)
        return held[number % len(held)]


def _some(items: list[Item], number: int, count: int) -> list[Item]:
    """`count` of them at most, from the `number`th on and round."""
    first = number % len(items)
    return (items[first:] + items[:first])[:count]
