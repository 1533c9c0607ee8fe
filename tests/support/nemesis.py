"""What goes wrong, and when? Faults at random from a seed, injected and healed, each step on record.

The plan is made before anything happens (`schedule`, pure): the same seed and faults, the same plan.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tests.support.kafka_cluster import KafkaCluster
from tests.support.process import WorkerProcess

SEED_VARIABLE = "CHOREO_SEED"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that can go wrong and be mended. Faults of one `target` never overlap. `hold_s`: how long it lasts, from and to."""

    name: str
    target: str
    inject: Callable[[], object]
    heal: Callable[[], object]
    hold_s: tuple[float, float] = (0.5, 3.0)


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a plan: `at_s` from the start, healed `hold_s` later."""

    at_s: float
    fault: str
    hold_s: float


def schedule(
    faults: Sequence[Fault], *, seed: int, duration_s: float, width: int = 1, quiet_s: tuple[float, float] = (0.5, 2.0)
) -> list[Step]:
    """A plan of `duration_s`: up to `width` faults at a time, on different targets, each followed by a quiet time."""
    chance = random.Random(seed)
    free_at_s = [chance.uniform(*quiet_s) for _ in range(width)]
    busy_until_s = dict.fromkeys((fault.target for fault in faults), 0.0)
    steps = []
    while (at_s := min(free_at_s)) < duration_s:
        slot = free_at_s.index(at_s)
        possible = [fault for fault in faults if busy_until_s[fault.target] <= at_s]
        if not possible:
            free_at_s[slot] = min(until for until in busy_until_s.values() if until > at_s)
            continue
        fault = chance.choice(possible)
        hold_s = min(chance.uniform(*fault.hold_s), duration_s - at_s)
        steps.append(Step(at_s, fault.name, hold_s))
        busy_until_s[fault.target] = at_s + hold_s
        free_at_s[slot] = at_s + hold_s + chance.uniform(*quiet_s)
    return steps


class Journal:
    """Operations as JSON lines, each with both clocks. Any thread may write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    def write(self, operation: str, **facts: object) -> None:
        line = json.dumps({"at_s": time.monotonic(), "wall": datetime.now(UTC).isoformat(), "operation": operation, **facts}, default=str)
        with self._lock, self.path.open("a") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.path.read_text().splitlines()]


class Nemesis:
    """Carries a plan out in a thread of its own. A context manager: at the end of the block the plan stops and all is healed.

    The seed is the one given, else CHOREO_SEED, else a new one; it is printed and recorded. Meanwhile the faults' targets
    belong to the nemesis.
    """

    def __init__(
        self,
        faults: Sequence[Fault],
        *,
        history: Path,
        duration_s: float,
        seed: int | None = None,
        width: int = 1,
        quiet_s: tuple[float, float] = (0.5, 2.0),
    ) -> None:
        given = os.environ.get(SEED_VARIABLE)
        self.seed = seed if seed is not None else int(given) if given else random.SystemRandom().getrandbits(32)
        self.journal = Journal(history)
        self.plan = schedule(faults, seed=self.seed, duration_s=duration_s, width=width, quiet_s=quiet_s)
        self.healed_at_s = 0.0
        """`time.monotonic()` when the last fault was healed; after `stop` or `join`."""
        self._faults = {fault.name: fault for fault in faults}
        assert len(self._faults) == len(faults), "two faults have one name"
        self._open: list[Fault] = []
        self._ended = threading.Event()
        self._failures: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name="nemesis")

    def __enter__(self) -> Nemesis:
        print(f"nemesis: seed {self.seed}, {len(self.plan)} faults; {SEED_VARIABLE}={self.seed} repeats it", flush=True)
        self.journal.write("seed", seed=self.seed, plan=[[step.at_s, step.fault, step.hold_s] for step in self.plan])
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def join(self) -> None:
        """Waits for the end of the plan, then heals. Raises what went wrong with injecting or healing."""
        self._thread.join()
        self._raise()

    def stop(self) -> None:
        """The rest of the plan is dropped, what is open is healed. Raises as `join` does. A second call does nothing."""
        self._ended.set()
        self.join()

    def _run(self) -> None:
        began_at = time.monotonic()
        moments = [(step.at_s, "inject", step.fault) for step in self.plan] + [
            (step.at_s + step.hold_s, "heal", step.fault) for step in self.plan
        ]
        try:
            # At one moment what heals goes first, for its target may be the next one's.
            for at_s, what, name in sorted(moments, key=lambda moment: (moment[0], moment[1] == "inject")):
                if self._failures or self._ended.wait(max(0.0, began_at + at_s - time.monotonic())):
                    return
                self._do("inject" if what == "inject" else "heal", self._faults[name])
        finally:
            for fault in list(self._open):
                self._do("heal", fault)
            self.healed_at_s = time.monotonic()
            self.journal.write("healed")

    def _do(self, what: Literal["inject", "heal"], fault: Fault) -> None:
        began_at = time.monotonic()
        # Open before it is injected and closed before it is healed: what fails half-way is healed once.
        if what == "inject":
            self._open.append(fault)
        else:
            self._open.remove(fault)
        try:
            (fault.inject if what == "inject" else fault.heal)()
        except Exception as error:
            error.add_note(f"nemesis, seed {self.seed}: {what} {fault.name}")
            self._failures.append(error)
            self.journal.write(what, fault=fault.name, outcome="unknown", error=repr(error), took_s=time.monotonic() - began_at)
        else:
            self.journal.write(what, fault=fault.name, outcome="ok", took_s=time.monotonic() - began_at)

    def _raise(self) -> None:
        failures, self._failures = self._failures, []
        if failures:
            raise ExceptionGroup(f"nemesis, seed {self.seed}", failures)


# ---- faults ---------------------------------------------------------------------------------------------------------


def kill_worker(worker: WorkerProcess, *, hold_s: tuple[float, float] = (0.2, 2.0)) -> Fault:
    """kill -9, then a new life."""
    return Fault(f"kill {worker.log.stem}", worker.log.stem, worker.kill9, worker.restart, hold_s)


def terminate_worker(worker: WorkerProcess, *, drain_s: float = 30.0, hold_s: tuple[float, float] = (0.2, 2.0)) -> Fault:
    """SIGTERM and a clean end, then a new life. An exit code other than 0 fails the run."""

    def inject() -> None:
        worker.sigterm()
        code = worker.wait(drain_s)
        assert code == 0, f"{worker} was to end cleanly and ended with {code}: {worker.output()[-2000:]}"

    return Fault(f"terminate {worker.log.stem}", worker.log.stem, inject, worker.restart, hold_s)


def stop_worker(worker: WorkerProcess, *, hold_s: tuple[float, float] = (1.0, 10.0)) -> Fault:
    """SIGSTOP, then SIGCONT: a zombie when `hold_s` is longer than the session."""
    return Fault(f"stop {worker.log.stem}", worker.log.stem, worker.sigstop, worker.sigcont, hold_s)


def kill_broker(cluster: KafkaCluster, node: int, *, hold_s: tuple[float, float] = (1.0, 10.0)) -> Fault:
    """kill -9 of a broker, then its start. All faults of a cluster have one target: one broker at a time."""
    return Fault(f"kill broker {node}", "brokers", lambda: cluster.kill(node), lambda: _start(cluster, node), hold_s)


def stop_broker(cluster: KafkaCluster, node: int, *, hold_s: tuple[float, float] = (1.0, 15.0)) -> Fault:
    """SIGSTOP of a broker, then SIGCONT."""
    return Fault(f"stop broker {node}", "brokers", lambda: cluster.stop(node), lambda: cluster.cont(node), hold_s)


def restart_broker(cluster: KafkaCluster, node: int, *, hold_s: tuple[float, float] = (0.0, 1.0)) -> Fault:
    """A broker's controlled shutdown and start, as in a rolling upgrade."""
    return Fault(f"restart broker {node}", "brokers", lambda: cluster.terminate(node), lambda: _start(cluster, node), hold_s)


def _start(cluster: KafkaCluster, node: int) -> None:
    cluster.start(node)
    cluster.wait_in_sync()
