"""The crash matrix: for each kind of effects, a worker killed at each failpoint, again and again under load; what was lost, doubled or late.

A cell is one kind of effects and one point of its walk. The table has what each came to; `pytest_terminal_summary` prints it.
"""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tests.chaos.conduct import Conduct
from tests.chaos.scene import END_S, Scene
from tests.support.checker import Report
from tests.support.databases import Database, PostgresDatabase, SqliteDatabase
from tests.support.facts import Admitted
from tests.support.history import Produced
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names
from tests.support.postgres import PostgresServer
from tests.support.producer import Load
from tests.support.waiting import wait_for

KEYS = 16
MORE_THAN_KILLS = 20
"""Attempts. An event that is begun alone each time, and killed, is dead-lettered after fewer; W22 is about that."""
RATE_PER_S = 120.0
CLAIMED_WITHIN_S = 1.0
"""What another member did so long ago stands in the store by now: a zombie that goes on finds it there."""
HELD_S = 4.0
"""How long a member is stopped that holds the lock of a file."""
LAST_HIT = 40
"""A life ends at the first to the LAST_HIT-th time that it comes to the point."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of effects: where its claims are, and whether handlers write into that database."""

    name: str
    store: Literal["", "sqlite", "postgres"]
    transaction: Literal["", "sqlite3", "psycopg", "psycopg-async"] = ""
    atomic: bool = False
    """Whether emits and offsets commit together: then no child is there twice, whatever happens."""

    def conduct(self, scene: Scene) -> Conduct:
        made = replace(scene.conduct(), emits=True, transaction=self.transaction, max_attempts=MORE_THAN_KILLS)
        return made if self.store else replace(made, store=None, atomic=self.atomic)

    @property
    def points(self) -> tuple[str, ...]:
        """Where its walk can be broken."""
        if self.atomic:
            return ("after_poll", "before_handler", "after_handler", "before_kafka_tx", "in_kafka_tx", "after_kafka_commit")
        around = ("after_poll", "before_handler", "after_handler", "after_store_offsets", "after_commit")
        if self.transaction:
            return (*around, "before_store_tx", "in_store_tx", "after_store_commit", "after_outbox_commit", "after_outbox_ack")
        return (*around, "after_emits_ack", *(("before_store_tx", "in_store_tx", "after_store_commit") if self.store else ()))


KINDS = (
    Kind("offsets", ""),
    Kind("claims, SQLite", "sqlite"),
    Kind("claims, PostgreSQL", "postgres"),
    Kind("transaction, sqlite3", "sqlite", "sqlite3"),
    Kind("transaction, psycopg", "postgres", "psycopg"),
    Kind("transaction, psycopg async", "postgres", "psycopg-async"),
    Kind("kafka", "", atomic=True),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What became of one: `doubled` effects, of which only those may be that section 5 of the design admits."""

    kind: str
    fault: str
    protocol: str
    faults: int
    events: int
    lost: int
    doubled: int
    disordered: int
    back_s: float
    """The longest time until the service was at work again."""


RESULTS: list[Cell] = []


def table(cells: Sequence[Cell]) -> str:
    """One line a cell."""
    head = (
        f"{'effects':<28}{'fault':<34}{'protocol':<10}{'faults':>7}{'events':>8}{'lost':>6}{'doubled':>9}{'disordered':>12}{'back in':>9}"
    )
    lines = [
        f"{cell.kind:<28}{cell.fault:<34}{cell.protocol:<10}{cell.faults:>7}{cell.events:>8,}{cell.lost:>6}{cell.doubled:>9}"
        f"{cell.disordered:>12}{cell.back_s:>7.1f} s"
        for cell in cells
    ]
    total = f"{sum(cell.faults for cell in cells)} faults, {sum(cell.events for cell in cells):,} events"
    return "\n".join([head, *lines, total])


@contextmanager
def scene_of(kind: Kind, kafka: KafkaAccess, names: Names, protocol: str, directory: Path, postgres: PostgresServer) -> Iterator[Scene]:
    """A service with this kind of effects."""
    made: Database | None = None
    if kind.store == "postgres":
        made = PostgresDatabase(postgres)
    elif kind.transaction:
        made = SqliteDatabase(directory / "shop.db")
    with closing(Scene(kafka, names, protocol, directory, database=made)) as scene:
        yield scene


def kill_at(scene: Scene, kind: Kind, point: str, *, kills: int, seed: int) -> Cell:
    """So many kills at one point, under load; the worker is started again each time. Every promise is required."""
    chance = random.Random(seed)
    worker = scene.worker(conduct=kind.conduct(scene))
    again: set[tuple[str, str]] = set()
    longest_s = 0.0
    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=KEYS, rate_per_s=RATE_PER_S, seed=seed) as load:
        for _ in range(kills):
            worker.failpoint = f"{point}=kill9:{chance.randint(1, _most_hits(point))}"
            began_s, before = time.monotonic(), len(scene.effects())
            died_of = worker.start().wait(END_S)
            assert died_of == -signal.SIGKILL, worker.output()[-4000:]
            longest_s = max(longest_s, time.monotonic() - began_s)
            # What had its effect, or was about to, and no claim: the only events that may have a second one.
            again |= scene.unclaimed()
            assert before <= len(scene.effects())
        worker.failpoint = None
        worker.restart()
        produced = load.stop()
        admitted = Admitted() if kind.transaction else Admitted(doubles=frozenset(again), rewinds_per_lane=kills)
        report = scene.settle(produced, worker, commits=commits, admitted=admitted)
    return concluded(scene, kind, f"kill -9 {point}", kills, produced, report, longest_s, again=again)


def stop_and_continue(scene: Scene, kind: Kind, point: str, *, seed: int) -> Cell:
    """SIGSTOP at a point until another member has its partitions and works, then SIGCONT: a zombie.

    Beyond what was not claimed when it was stopped, a zombie may do once more only what it was about to begin at that moment. Where it
    holds the lock of a SQLite file nobody works before it goes on, or ends: SQLite has no clock that would take the lock away.
    """
    conduct = replace(kind.conduct(scene), calls=not kind.transaction)
    zombie = scene.worker("zombie", conduct, failpoint=f"{point}=stop:{random.Random(seed).randint(1, LAST_HIT)}")
    with scene.watch_commits() as commits, Load(scene.kafka, scene.orders, keys=KEYS, rate_per_s=RATE_PER_S, seed=seed) as load:
        zombie.start().wait_stopped(deadline_s=END_S)
        at_stop_s, before = time.monotonic(), len(scene.effects())
        again = scene.unclaimed()
        other = scene.worker("other", conduct).start()

        def other_works() -> bool:
            return any(effect.pid == other.pid for effect in scene.effects()[before:])

        if kind.store == "sqlite":
            threading.Event().wait(HELD_S)
        else:
            wait_for(other_works, "the other member is at work", deadline_s=END_S, every_s=0.05)
        continued_s = time.monotonic()
        zombie.sigcont()
        wait_for(other_works, "the other member is at work", deadline_s=END_S, every_s=0.05)
        back_s = time.monotonic() - at_stop_s
        threading.Event().wait(2.0)
        produced = load.stop()
        late = {(effect.handler, effect.event_id) for effect in scene.effects() if effect.pid == zombie.pid and effect.at_s > continued_s}
        known_s = continued_s - CLAIMED_WITHIN_S
        begun = late & {(one.handler, one.event_id) for one in scene.effects() if one.pid == other.pid and one.at_s < known_s} - again
        assert len(begun) <= (1 if kind.store else len(late)), f"a zombie had effects of {begun}, which others had handled"
        admitted = Admitted() if kind.transaction else Admitted(doubles=frozenset(again | late), rewinds_per_lane=2 if kind.store else None)
        report = scene.settle(produced, other, *([zombie] if zombie.running else []), commits=commits, admitted=admitted)
    return concluded(scene, kind, f"SIGSTOP, SIGCONT {point}", 1, produced, report, back_s, again=set(again), zombies=True)


def concluded(
    scene: Scene,
    kind: Kind,
    fault: str,
    faults: int,
    produced: Sequence[Produced],
    report: Report,
    back_s: float,
    *,
    again: set[tuple[str, str]],
    zombies: bool = False,
) -> Cell:
    """The cell's line in the table; then requires what was promised."""
    broken = [violation.name for violation in report.violations]
    cell = Cell(
        kind.name,
        fault,
        scene.protocol,
        faults,
        len(produced),
        broken.count("I1"),
        report.counts["doubled"],
        broken.count("I3"),
        back_s,
    )
    RESULTS.append(cell)
    report.require()
    handled = [event for event in produced if event.outcome == "ok"]
    ids = {event.event_id for event in handled}
    # A child may be on the topic twice, with one id, where its acknowledgement was not known: what consumes it drops the second.
    twice = ids if kind.transaction or zombies else {event_id for _, event_id in again}
    scene.require_children(handled, again=() if kind.atomic else twice)
    return cell


def _most_hits(point: str) -> int:
    # What comes once a batch, or once a commit, comes less often than what comes once an event.
    return LAST_HIT if point in ("before_handler", "after_handler", "after_emits_ack") else 6
