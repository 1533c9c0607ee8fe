"""Whatever breaks at whatever moment: is the order of a key kept, nothing lost, nothing sent beside another relay? Seeded stories."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from datetime import timedelta
from random import Random
from typing import Any

import pytest

from choreo.envelope import ID
from choreo.record import Outgoing
from choreo.runtime import outbox_relay
from choreo.runtime.outbox_relay import OutboxRelay
from choreo.runtime.sends import Sends
from choreo.storage.memory_outbox import MemoryOutbox
from choreo.store import OutboxRow, OutboxState, StoredRow
from choreo.telemetry.counters import Counters
from choreo.testing import MemoryBroker
from tests.unit.relay_process import LEASE_S, MakeRelay, Process
from tests.unit.relay_world import TOPICS, Violation, Weather, World

SEEDS = range(40)
STORY_S = 15.0
HEALING_S = 60.0
KEYS = (b"a", b"b", b"c", b"d", None)


class Story:
    """What happens, for one seed. `tell` runs it to its end, where all that was committed has to be on Kafka and out of the outbox."""

    def __init__(self, seed: int, rules: Collection[str], make_relay: MakeRelay = OutboxRelay) -> None:
        self.dice = dice = Random(seed)
        self.calm = seed % 5 == 0
        """Nothing breaks: then nothing may come twice either."""
        broken = 0.0 if self.calm else 1.0
        self.world = World(
            dice,
            Weather(
                refused=dice.choice((0, 0.1, 0.3)),
                unknown=broken * dice.choice((0, 0.05, 0.2)),
                store=broken * dice.choice((0, 0.02, 0.2)),
                slow_s=broken * dice.choice((0, 0.01, 0.4)),
            ),
            rules,
        )
        self.crashes = broken * dice.choice((0, 0.005, 0.02))
        self.stops = broken * dice.choice((0, 0.005, 0.02))
        self.make_relay = make_relay
        self.numbers = 0
        self.processes = [Process(self.world, make_relay) for _ in range(1 if self.calm else 2)]

    def tell(self) -> Counter[str]:
        try:
            ends_s = self.world.now_s + STORY_S
            while self.world.now_s < ends_s:
                self._step()
            self._heal()
        finally:
            for process in self.processes:
                process.bury()
        return self.world.sights

    # ---- a step -----------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._go(self.dice.choice((0.001, 0.005, 0.02, 0.05)))
        roll = self.dice.random()
        process = self.dice.choice(self.processes)
        if roll < self.crashes:
            self._replace(process, "a crash", Process.die)
        elif roll < self.crashes + self.stops:
            process.stopped_until_s = self.world.now_s + self.dice.choice((0.1, LEASE_S, 3 * LEASE_S))
            self.world.sights["a stop"] += 1
        elif not self.calm and roll > 0.997 and not process.stopped:
            process.leave()
            self.world.sights["a relay that leaves"] += 1
        elif roll > 0.7:
            self._commit(process)
        if self.dice.random() < 0.002:
            self.world.mend(missing=self.world.missing ^ {"late"}, refuses_huge=True)

    def _go(self, time_s: float) -> None:
        self.world.now_s += time_s
        for process in tuple(self.processes):
            process.go()
            if process.ended:
                self._replace(process, "a relay that has left", Process.bury)

    def _replace(self, process: Process, what: str, end: Callable[[Process], None]) -> None:
        self.world.sights[what] += 1
        self.processes[self.processes.index(process)] = Process(self.world, self.make_relay)
        end(process)

    def _commit(self, process: Process) -> None:
        rows = [self._row() for _ in range(self.dice.choice((1, 1, 2, 5)))]
        self.world.rows.add(rows)
        if self.dice.random() < 0.5 and not process.stopped:
            process.wake()

    def _row(self) -> OutboxRow:
        self.numbers += 1
        event_id, dice = f"e{self.numbers}", self.dice
        topic = TOPICS[dice.random() < 0.1]
        value = b"huge" if dice.random() < 0.01 else b"{}"
        due = timedelta(seconds=dice.random() * 3) if dice.random() < 0.05 else None
        return OutboxRow(Outgoing(topic, dice.choice(KEYS), value, [(ID, event_id.encode())]), "order.paid", event_id, due)

    # ---- the end ----------------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        """Everything works again, and an operator puts back what was set aside: all is published in time."""
        world = self.world
        world.weather = Weather()
        world.mend(missing=(), refuses_huge=False)
        ends_s = world.now_s + HEALING_S
        while (left := world.rows.state()) != OutboxState(0, 0.0, 0, 0):
            if world.now_s > ends_s:
                raise Violation("progress", f"{HEALING_S:g} s after all is well: {left}")
            world.rows.retry([row.seq for row in world.rows.waiting(1_000, aside_only=True)])
            self._go(0.05)
        never = [number for number in range(1, self.numbers + 1) if not world.writers[f"e{number}"]]
        if never:
            raise Violation("lost", f"{never} are neither on Kafka nor in the outbox")


KEPT = frozenset({"order", "lost", "twice", "progress", "lease", "aside"})


def told(seeds: Sequence[int]) -> dict[int, str]:
    """What each bad story was."""
    violations: dict[int, str] = {}
    for seed in seeds:
        try:
            Story(seed, KEPT).tell()
        except Violation as violation:
            violations[seed] = str(violation)
    return violations


def test_whatever_breaks_every_rule_is_kept() -> None:
    assert told(SEEDS) == {}


def test_where_nothing_breaks_no_event_is_sent_twice() -> None:
    calm = [story for story in (Story(seed, KEPT) for seed in SEEDS[::5]) if story.calm]

    twice = [story.tell()["an event twice"] for story in calm]

    assert twice == [0] * 8


def test_the_stories_meet_what_they_are_for() -> None:
    sights: Counter[str] = Counter()

    for seed in SEEDS[:20]:
        sights += Story(seed, KEPT).tell()

    assert {sight for sight, times in sights.items() if times >= 5} >= {
        "a call of the outbox that failed",
        "a crash",
        "a relay that has left",
        "a stop",
        "an answer that was lost",
        "an event twice",
        "set aside",
    }


# ---- one story that is told in real time ------------------------------------------------------------------------------


async def test_many_keys_that_wait_hide_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_relay, "HELD_OF_A_TOPIC", 200)
    monkeypatch.setattr(outbox_relay, "PAGE", 50)
    broker, rows, counters = MemoryBroker(), MemoryOutbox("shop"), Counters()
    broker.create_topic("stuck")
    broker.create_topic("answers")
    broker.fail_sends("stuck", "_MSG_TIMED_OUT", times=10**6)
    for topic, keys in (("stuck", 400), ("answers", 20)):
        rows.add(
            [OutboxRow(Outgoing(topic, f"k{key}".encode(), b"{}", [(ID, b"e")]), "order.paid", f"{topic}-{key}") for key in range(keys)]
        )
    sends = Sends(broker.producer(), counters)
    relay = OutboxRelay(rows, sends, counters)

    relay.started = asyncio.create_task(relay.run())
    ends_s = time.monotonic() + 2.0
    while len(broker.records("answers")) < 20 and time.monotonic() < ends_s:
        await asyncio.sleep(0.01)
    sends.close(0)
    await relay.close()

    assert len(broker.records("answers")) == 20


# ---- do the rules kill? ---------------------------------------------------------------------------------------------


class AllOfAKeyAtOnce(OutboxRelay):
    def _begin(self, rows: Sequence[StoredRow]) -> None:
        before = set(self._held)
        super()._begin(rows)
        for waiting in tuple(self._of_key.values()):
            for row in tuple(waiting)[1:]:
                if row.stored.seq not in before:
                    self._send(row)

    def _next_of_key(self, row: Any) -> None:
        waiting = self._of_key.get(row.key)
        if waiting is not None and row in waiting:
            waiting.remove(row)


class GoesOnAfterAFailure(OutboxRelay):
    def _drop(self, row: Any, *, keep: bool = False) -> None:
        if keep or not row.since_s or not self._of_key.get(row.key):
            super()._drop(row, keep=keep)
            return
        self._held.pop(row.stored.seq, None)
        self._next_of_key(row)


class GoesOnBehindWhatIsAside(OutboxRelay):
    def _drop(self, row: Any, *, keep: bool = False) -> None:
        if keep and self._of_key.get(row.key):
            self._next_of_key(row)
        elif row.key is None or self._of_key.get(row.key, [None])[0] is row:
            super()._drop(row, keep=keep)
        else:
            self._held.pop(row.stored.seq, None)


class DeletesBeforeItIsAcknowledged(OutboxRelay):
    def _send(self, row: Any) -> None:
        self._acknowledged.append(row.stored.seq)
        super()._send(row)


class ForgetsWhatIsAcknowledged(OutboxRelay):
    async def _write_down(self) -> None:
        self._acknowledged, acknowledged = [], self._acknowledged
        await self._call(lambda: self._outbox.published(acknowledged))
        await super()._write_down()


class ReadsOnceOnly(OutboxRelay):
    def _drop(self, row: Any, *, keep: bool = False) -> None:
        if keep or row in [written for written, _ in self._aside]:
            super()._drop(row, keep=keep)


class AsksForNoLease(OutboxRelay):
    def _may_begin(self) -> bool:
        return not self._leaving and self._until_s > 0


class GoesOnWhileItAsks(OutboxRelay):
    async def _renew(self) -> None:
        until_s = self._until_s
        renewing = asyncio.ensure_future(super()._renew())
        await asyncio.sleep(0)
        self._until_s = self._until_s or until_s
        await renewing


class GoesOnWhenItHasLeft(OutboxRelay):
    def _may_begin(self) -> bool:
        return self._loop.time() < self._until_s


class BelievesWhatIsOld(OutboxRelay):
    def _sent(self, row: Any, error: Any, reports: Any) -> None:
        row.last = True
        super()._sent(row, error, reports)


class SetsAsideWhatIsAnothers(OutboxRelay):
    def _sent(self, row: Any, error: Any, reports: Any) -> None:
        if error is not None and error.code == "UNKNOWN_TOPIC_OR_PART" and self._loop.time() - row.since_s > self._aside_after_s:
            self._aside.append((row, str(error)))
            self._drop(row, keep=True)
        else:
            super()._sent(row, error, reports)


@pytest.mark.parametrize(
    ("bug", "rules"),
    [
        (AsksForNoLease, {"lease"}),
        (GoesOnWhileItAsks, {"lease"}),
        (GoesOnWhenItHasLeft, {"lease"}),
        (BelievesWhatIsOld, {"aside"}),
        (SetsAsideWhatIsAnothers, {"aside"}),
        (AllOfAKeyAtOnce, {"order"}),
        (GoesOnAfterAFailure, {"order"}),
        (GoesOnBehindWhatIsAside, {"order"}),
        (DeletesBeforeItIsAcknowledged, {"lost"}),
        (ForgetsWhatIsAcknowledged, {"twice"}),
        (ReadsOnceOnly, {"progress"}),
    ],
)
def test_the_rules_kill(bug: type[OutboxRelay], rules: set[str]) -> None:
    with pytest.raises(Violation) as found:
        for seed in SEEDS:
            Story(seed, KEPT, bug).tell()

    assert found.value.rule in rules
