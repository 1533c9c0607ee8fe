"""Several workers of one service: who starts again, who gives up, who is told of signals, and that nobody is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from choreo.cli.sources import Sources
from choreo.runtime import supervisor
from choreo.runtime.lifeline import STATUS, WORKER, Lifeline, Ready
from choreo.runtime.supervisor import Again, Crew, GiveUp, Supervisor, afterwards, aggregated, died_of
from tests.support.waiting import wait_for

WORKER_CODE = """
import os, signal, sys, time
from choreo.runtime.lifeline import Lifeline, Ready
line = Lifeline.from_environment(os.environ)
line.watch(5.0)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(int(os.environ.get("ENDS_WITH", "0"))))
line.report(Ready(0.1, line.number, 6))
print(line.number, os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""

# ---- deciding -------------------------------------------------------------------------------------------------------


def test_the_wait_doubles_up_to_half_a_minute() -> None:
    waits, delay_s = [], 0.0
    for _ in range(8):
        decision = afterwards(-9, lived_s=0.1, last_delay_s=delay_s, any_was_ready=True)
        assert isinstance(decision, Again)
        delay_s = decision.delay_s
        waits.append(delay_s)

    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_minute_of_health_makes_the_wait_short_again() -> None:
    assert afterwards(1, lived_s=60.0, last_delay_s=30.0, any_was_ready=True) == Again(1.0)
    assert afterwards(1, lived_s=59.0, last_delay_s=30.0, any_was_ready=True) == Again(30.0)


def test_a_wrong_setting_is_not_tried_again() -> None:
    assert afterwards(2, lived_s=1.0, last_delay_s=0.0, any_was_ready=True) == GiveUp(2)


def test_a_kafka_that_was_never_reached_ends_all_and_one_that_went_away_is_waited_for() -> None:
    assert afterwards(4, lived_s=60.0, last_delay_s=0.0, any_was_ready=False) == GiveUp(4)
    assert afterwards(4, lived_s=60.0, last_delay_s=0.0, any_was_ready=True) == Again(1.0)


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([0, -15], 0), ([0, 1], 1), ([0, -9], 1), ([130, 0], 130)])
def test_the_exit_codes_of_all_workers_are_one(codes: list[int], code: int) -> None:
    assert aggregated(codes) == code


def test_how_a_worker_died_is_said_in_words() -> None:
    assert (died_of(-9), died_of(3)) == ("killed by SIGKILL", "exit 3")


# ---- acting ---------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """A crew of little processes, and what its supervisor said."""

    code: str = WORKER_CODE
    said: list[str] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    reports: list[Ready] = field(default_factory=list)
    changes: list[list[str]] | None = None

    def crew(self, workers: int) -> Crew:
        return Crew(
            command=lambda number, life: [sys.executable, "-c", self.code],
            workers=workers,
            grace_s=3.0,
            say=self.said.append,
            started=self.pids.extend,
            ready=self.reports.extend,
            changed=None if self.changes is None else self.changed,
        )

    def changed(self) -> Sequence[str]:
        return self.changes.pop() if self.changes else []

    async def until(self, condition: str) -> None:
        """Waits until the expression over `self` holds."""
        deadline = asyncio.get_running_loop().time() + 20
        while not eval(condition, {"self": self}):
            assert asyncio.get_running_loop().time() < deadline, f"{condition}: {self}"
            await asyncio.sleep(0.02)


async def test_workers_are_started_report_and_are_stopped_by_a_signal() -> None:
    watched = Watched()
    running = asyncio.create_task(Supervisor(watched.crew(2)).run())
    await watched.until("len(self.reports) == 2")

    os.kill(os.getpid(), signal.SIGTERM)

    assert await asyncio.wait_for(running, 10) == 0
    assert sorted(ready.partitions for ready in watched.reports) == [1, 2]
    assert not any(psutil.pid_exists(pid) for pid in watched.pids)
    assert watched.said == []


async def test_a_worker_that_dies_is_started_again_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_FIRST_S", 0.05)
    watched = Watched()
    running = asyncio.create_task(Supervisor(watched.crew(2)).run())
    await watched.until("len(self.reports) == 2")

    os.kill(watched.pids[1], signal.SIGKILL)

    await watched.until("len(self.said) == 2")
    assert watched.said[0] == f"worker 2 (pid {watched.pids[1]}) died: killed by SIGKILL; it starts again in 0.05 s"
    assert watched.said[1].startswith("worker 2 started again, pid ")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 10) == 0


async def test_a_worker_with_a_wrong_setting_ends_all() -> None:
    watched = Watched(code="raise SystemExit(2)")

    assert await asyncio.wait_for(Supervisor(watched.crew(3)).run(), 20) == 2
    assert watched.reports == []


async def test_a_worker_whose_drain_ran_out_is_seen_in_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENDS_WITH", "1")
    watched = Watched()
    running = asyncio.create_task(Supervisor(watched.crew(1)).run())
    await watched.until("len(self.reports) == 1")

    os.kill(os.getpid(), signal.SIGINT)

    assert await asyncio.wait_for(running, 10) == 1


async def test_a_second_signal_kills_what_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "AT_ONCE_S", 0.1)
    watched = Watched(code=WORKER_CODE.replace('lambda *_: sys.exit(int(os.environ.get("ENDS_WITH", "0")))', "signal.SIG_IGN"))
    running = asyncio.create_task(Supervisor(watched.crew(1)).run())
    await watched.until("len(self.reports) == 1")

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.05)
    os.kill(os.getpid(), signal.SIGTERM)

    assert await asyncio.wait_for(running, 10) == 1
    assert "did not end in time and is killed; nothing is lost" in watched.said[0]


async def test_a_changed_file_makes_the_worker_drain_and_start_again() -> None:
    watched = Watched(changes=[])
    assert watched.changes is not None
    running = asyncio.create_task(Supervisor(watched.crew(1)).run())
    await watched.until("len(self.reports) == 1")

    watched.changes.append(["handlers.py", "events.py"])

    await watched.until("len(self.said) == 2")
    assert watched.said[0] == "handlers.py and 1 more changed; the worker drains and starts again"
    assert watched.said[1].startswith("worker 1 started again")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 10) == 0


async def test_a_worker_that_is_broken_just_now_waits_for_a_change() -> None:
    watched = Watched(code="raise SystemExit(2)", changes=[])
    assert watched.changes is not None
    running = asyncio.create_task(Supervisor(watched.crew(1)).run())
    await watched.until("len(self.said) == 1")
    assert watched.said == ["worker 1 ended (exit 2); it starts again when a file changes"]

    watched.code = WORKER_CODE
    watched.changes.append(["handlers.py"])

    await watched.until("len(self.reports) == 1")
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, 10) == 0


# ---- the line between them --------------------------------------------------------------------------------------------


def test_a_process_that_nobody_supervises_has_no_line() -> None:
    assert Lifeline.from_environment({}) is None
    assert Lifeline.from_environment({WORKER: "1/2"}) is None


def test_the_line_is_not_for_the_processes_that_a_worker_starts() -> None:
    environment = {WORKER: "1/2", STATUS: "9", "PATH": "/bin"}
    environment.pop(STATUS)

    assert Lifeline.from_environment(environment) is None
    assert environment == {"PATH": "/bin"}


def two_children(pid: int) -> list[psutil.Process]:
    found = psutil.Process(pid).children()
    return found if len(found) == 2 else []


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "supervise.py"
    script.write_text(
        "import asyncio, sys\n"
        "from choreo.runtime.supervisor import Crew, Supervisor\n"
        f"code = {WORKER_CODE!r}\n"
        "crew = Crew(command=lambda n, l: [sys.executable, '-c', code], workers=2, grace_s=5.0, say=print, started=print, ready=print)\n"
        "asyncio.run(Supervisor(crew).run())\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    children: list[psutil.Process] = []
    try:
        children = wait_for(lambda: two_children(parent.pid), "2 workers", deadline_s=20)
        wait_for(lambda: all("python" in " ".join(child.cmdline()) for child in children), "they run", deadline_s=10)

        parent.kill()
        parent.wait(10)

        wait_for(lambda: not any(child.is_running() for child in children), "no worker is left", deadline_s=20)
    finally:
        for child in children:
            if child.is_running():
                child.kill()
        parent.kill()
        parent.wait(10)


# ---- source files ---------------------------------------------------------------------------------------------------


def test_written_made_and_removed_python_files_are_seen_once(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("1")
    (tmp_path / "b.py").write_text("1")
    sources = Sources(tmp_path)

    (tmp_path / "a.py").write_text("22")
    (tmp_path / "b.py").unlink()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "c.py").write_text("1")
    (tmp_path / "notes.txt").write_text("1")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.py").write_text("1")

    assert sources.changed() == ["a.py", "b.py", "sub/c.py"]
    assert sources.changed() == []


def test_the_package_of_a_module_is_watched() -> None:
    assert Sources.of("services_example.payments.service").root.name == "services_example"
    assert Sources.of("nowhere_at_all").root == Path.cwd()
