"""What may happen to an engine, and when? Everything, at any moment: the rules of a hypothesis state machine over `Rig`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from choreo.core.engine import Engine
from choreo.errors import PermanentError, TransientError
from choreo.record import TopicPartition
from tests.properties.engine_model import KEYS, PARTITIONS, Entry, Item, Rig, Stage

Written: TypeAlias = tuple[TopicPartition, int, bytes | None, tuple[int, ...]]

partitions = st.sampled_from(PARTITIONS)
keys = st.sampled_from(KEYS)
handlers = st.sets(st.integers(0, 3), max_size=3).map(lambda found: tuple(sorted(found)))
gaps = st.integers(0, 2)
events: st.SearchStrategy[Written] = st.tuples(partitions, gaps, keys, handlers)
chosen = st.integers(0, 63)
dices = st.sampled_from((0.0, 0.25, 0.5, 0.999))
errors = st.sampled_from((OSError("reset"), TransientError("busy", retry_after_s=2.5), PermanentError("no such card")))


class EngineMachine(RuleBasedStateMachine):
    """One member of a group, its engine made by `make_engine`. At the end it has to come to rest with everything done."""

    def __init__(self, make_engine: Callable[..., Engine] = Engine) -> None:
        super().__init__()
        self.rig = Rig(make_engine)

    # ---- what comes in ----------------------------------------------------------------------------------------------

    @initialize(log=st.lists(events, min_size=6, max_size=20), assigned=st.sets(partitions, min_size=1))
    def begin(self, log: list[Written], assigned: set[TopicPartition]) -> None:
        for event in log:
            self._write(event)
        for partition in sorted(assigned):
            self.rig.assign(partition)
            self.rig.receive(partition, 3)

    @rule(event=events)
    def produce(self, event: Written) -> None:
        self._write(event)

    @rule(partition=partitions, count=st.integers(1, 4))
    def receive(self, partition: TopicPartition, count: int) -> None:
        if partition not in self.rig.holdings:
            self.rig.assign(partition)
        self.rig.receive(partition, count)

    @precondition(lambda self: self.rig.holdings)
    @rule(number=chosen, route=st.integers(0, 3), offset=st.integers(0, 30), key=keys)
    def replay(self, number: int, route: int, offset: int, key: bytes | None) -> None:
        self.rig.replay(self._held(number), route, offset, key)

    # ---- what runs --------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 8))
    def take(self, count: int) -> None:
        while count and (self.rig.take(on_thread=False) or self.rig.take(on_thread=True)):
            count -= 1

    @precondition(lambda self: self.rig.outstanding())
    @rule(number=chosen, count=st.integers(1, 4))
    def settle(self, number: int, count: int) -> None:
        while count and (running := self.rig.outstanding()):
            self.rig.settle(running[number % len(running)])
            count -= 1

    @precondition(lambda self: self._running())
    @rule(number=chosen, error=errors, dice=dices)
    def fail(self, number: int, error: Exception, dice: float) -> None:
        running = self._running()
        self.rig.fail(running[number % len(running)], error, dice)

    @precondition(lambda self: self._running())
    @rule(number=chosen, delay_s=st.sampled_from((0.0, 1.0)))
    def postpone(self, number: int, delay_s: float) -> None:
        running = self._running()
        self.rig.postpone(running[number % len(running)], delay_s)

    @rule(seconds=st.sampled_from((0.0, 0.1, 1.0, 30.0)))
    def tick(self, seconds: float) -> None:
        self.rig.tick(seconds)

    @rule()
    def commit(self) -> None:
        self.rig.commit()

    # ---- what the group decides -------------------------------------------------------------------------------------

    @precondition(lambda self: self.rig.holdings)
    @rule(number=chosen)
    def stop(self, number: int) -> None:
        self.rig.stop(self._held(number))

    @precondition(lambda self: any(holding.stopping for holding in self.rig.holdings.values()))
    @rule()
    def halt(self) -> None:
        for partition, holding in self.rig.holdings.items():
            if holding.stopping:
                self.rig.halt(partition)

    @precondition(lambda self: self.rig.holdings)
    @rule(number=chosen, lost=st.booleans())
    def forget(self, number: int, lost: bool) -> None:
        self.rig.forget(self._held(number), lost=lost)

    @precondition(lambda self: self.rig.holdings)
    @rule(number=chosen)
    def drain_and_forget(self, number: int) -> None:
        """A revoke in which all that may still run has the time for it."""
        partition = self._held(number)
        self.rig.drain(partition)
        self.rig.forget(partition, lost=False)

    @precondition(lambda self: len(self.rig.outstanding()) > 2)
    @rule()
    def crash(self) -> None:
        self.rig.crash()

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
        self.rig.produce(partition, lambda end: Entry(end + gap, key, routes))

    def _running(self) -> list[Item]:
        return [item for item in self.rig.outstanding() if item.stage is Stage.RUNNING]

    def _held(self, number: int) -> TopicPartition:
        held = sorted(self.rig.holdings)
        return held[number % len(held)]
