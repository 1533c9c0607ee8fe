"""Do the tools of the crash tests do what they say? Processes, the ledger, the nemesis, the guard; no broker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.support import kafka_jars
from tests.support.effects import EffectsLedger
from tests.support.kafka_jars import ROOT, KafkaUnavailableError
from tests.support.kafka_node import free_ports
from tests.support.names import Names
from tests.support.nemesis import Fault, Nemesis, schedule
from tests.support.process import WorkerProcess
from tests.support.waiting import wait_for

WAITS = ["-c", "import time; print('READY', flush=True); time.sleep(600)"]
DRAINS = ["-c", "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(3)); print('READY', flush=True); signal.pause()"]
HAS_A_CHILD = [
    "-c",
    "import subprocess, sys, time; c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']);"
    "print('child', c.pid); print('READY'); time.sleep(600)",
]

# ---- processes ------------------------------------------------------------------------------------------------------


def test_a_worker_says_when_it_is_ready_and_how_it_ended(tmp_path: Path) -> None:
    with WorkerProcess(DRAINS, log=tmp_path / "worker.log") as worker:
        worker.wait_ready()
        alive = worker.exit_code

        worker.sigterm()

        assert (alive, worker.wait(10), worker.running) == (None, 3, False)


def test_a_killed_worker_starts_again_and_its_lives_share_a_log(tmp_path: Path) -> None:
    with WorkerProcess(WAITS, log=tmp_path / "worker.log") as worker:
        worker.wait_ready()

        worker.kill9()
        killed_by = worker.exit_code
        worker.restart()

        assert (killed_by, worker.lives, worker.running) == (-signal.SIGKILL, 2, True)
        assert worker.output() == "READY\n"
        assert worker.output(all_lives=True) == "READY\nREADY\n"


def test_a_stopped_worker_is_alive_and_goes_on(tmp_path: Path) -> None:
    with WorkerProcess(DRAINS, log=tmp_path / "worker.log") as worker:
        worker.wait_ready()
        worker.sigstop()
        held = (worker.stopped, worker.running)

        worker.sigcont()
        worker.sigterm()

        assert held == (True, True)
        assert worker.wait(10) == 3


def test_nothing_of_a_worker_is_left_when_its_block_ends(tmp_path: Path) -> None:
    with WorkerProcess(HAS_A_CHILD, log=tmp_path / "worker.log") as worker:
        worker.wait_ready()
        child = int(worker.output().split()[1])
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(10)
        outlived = psutil.pid_exists(child)

    assert outlived
    wait_for(lambda: not _alive(child), "the child's end", deadline_s=10)


def test_a_worker_that_dies_early_shows_its_output(tmp_path: Path) -> None:
    with WorkerProcess(["-c", "raise SystemExit('no database')"], log=tmp_path / "worker.log") as worker:
        with pytest.raises(RuntimeError, match="ended with 1 before it said 'READY': no database"):
            worker.wait_ready()


def test_a_failpoint_reaches_the_worker_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHOREO_FAILPOINT", "after_poll=raise")
    prints = ["-c", "import os; print(os.environ.get('CHOREO_FAILPOINT'), os.environ['EXTRA'])"]

    outputs = []
    for failpoint in ("after_store_commit=kill9", None):
        log = tmp_path / f"{failpoint}.log"
        with WorkerProcess(prints, log=log, failpoint=failpoint, environment={"EXTRA": "yes"}) as worker:
            worker.wait(10)
            outputs.append(worker.output())

    assert outputs == ["after_store_commit=kill9 yes\n", "None yes\n"]


def test_processes_do_not_outlive_a_test_run_that_is_killed(tmp_path: Path) -> None:
    run = (
        "import sys, time; from pathlib import Path; from tests.support.process import WorkerProcess; from tests.support import guard;"
        "made = Path(sys.argv[1]) / 'made'; made.mkdir(); guard.watch_directory(made);"
        "w = WorkerProcess(['-c', 'import time; time.sleep(600)'], log=Path(sys.argv[1]) / 'w.log').start();"
        "print(w.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", run, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT) as test_run:
        assert test_run.stdout is not None
        worker = int(test_run.stdout.readline())
        was_alive = _alive(worker)

        test_run.kill()

    assert was_alive
    wait_for(lambda: not _alive(worker), "the worker's end", deadline_s=10)
    wait_for(lambda: not (tmp_path / "made").exists(), "the directory's end", deadline_s=10)


def _alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# ---- the ledger -----------------------------------------------------------------------------------------------------

WRITES = [
    "-c",
    "import sys; from pathlib import Path; from tests.support.effects import EffectsLedger\n"
    "ledger = EffectsLedger(Path(sys.argv[1]))\n"
    "for n in range(100):\n"
    "    with ledger.call('book', f'{sys.argv[2]}-{n}'):\n"
    "        ledger.record('book', f'{sys.argv[2]}-{n}', f'k-{n % 3}', n)\n",
]


def test_the_sums_of_many_processes_add_up(tmp_path: Path) -> None:
    path = tmp_path / "effects.db"
    workers = [WorkerProcess(WRITES, str(path), name, log=tmp_path / f"{name}.log") for name in ("a", "b", "c")]
    for worker in workers:
        worker.start()
    for worker in workers:
        assert worker.wait(60) == 0, worker.output()
        worker.close()

    ledger = EffectsLedger(path)
    effects = ledger.effects()

    sums: dict[str, int] = {}
    for effect in effects:
        sums[effect.key] = sums.get(effect.key, 0) + effect.amount
        assert effect.running_sum == sums[effect.key]
    assert (len(effects), sum(sums.values()), len({effect.pid for effect in effects})) == (300, 3 * 4950, 3)
    assert ledger.unfinished() == frozenset()
    ledger.close()


def test_a_call_that_a_kill_cuts_short_is_unfinished_and_what_it_recorded_stays(tmp_path: Path) -> None:
    path = tmp_path / "effects.db"
    dies = [
        "-c",
        "import os, sys; from pathlib import Path; from tests.support.effects import EffectsLedger\n"
        "ledger = EffectsLedger(Path(sys.argv[1]))\n"
        "with ledger.call('book', 'e-1'):\n"
        "    ledger.record('book', 'e-1', 'k', 5)\n"
        "with ledger.call('book', 'e-2'):\n"
        "    ledger.record('book', 'e-2', 'k', 7)\n"
        "    os.kill(os.getpid(), 9)\n",
    ]
    with WorkerProcess(dies, str(path), log=tmp_path / "w.log") as worker:
        worker.wait(30)

    ledger = EffectsLedger(path)

    assert [(effect.event_id, effect.running_sum) for effect in ledger.effects()] == [("e-1", 5), ("e-2", 12)]
    assert ledger.unfinished() == {("book", "e-2")}
    ledger.close()


def test_a_call_that_raises_has_ended(tmp_path: Path) -> None:
    ledger = EffectsLedger(tmp_path / "effects.db")

    with pytest.raises(ZeroDivisionError), ledger.call("book", "e-1"):
        _ = 1 / 0

    assert [(call.event_id, call.ended_s is not None) for call in ledger.calls()] == [("e-1", True)]
    ledger.close()


# ---- the nemesis ----------------------------------------------------------------------------------------------------


def fault(name: str, target: str, acts: list[str] | None = None) -> Fault:
    done = acts if acts is not None else []
    return Fault(name, target, lambda: done.append(f"inject {name}"), lambda: done.append(f"heal {name}"), hold_s=(0.01, 0.05))


def test_the_same_seed_makes_the_same_plan() -> None:
    faults = [fault(f"kill {n}", f"w-{n}") for n in range(4)]

    plans = [schedule(faults, seed=seed, duration_s=60, width=2) for seed in (1, 1, 2)]

    assert plans[0] == plans[1] != plans[2]
    assert {step.fault for step in plans[0]} == {f.name for f in faults}


def test_faults_of_one_target_never_overlap_and_all_are_healed_by_the_end() -> None:
    faults = [Fault(f"{what} {n}", f"w-{n}", lambda: None, lambda: None, hold_s=(1, 20)) for what in ("kill", "stop") for n in range(2)]

    for seed in range(50):
        plan = schedule(faults, seed=seed, duration_s=60, width=3, quiet_s=(0, 1))
        ends: dict[str, float] = {}
        for step in plan:
            target = step.fault.split()[1]
            assert step.at_s >= ends.get(target, 0.0)
            ends[target] = step.at_s + step.hold_s
            assert ends[target] <= 60


def test_a_nemesis_records_what_it_did_and_can_be_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    acts: list[str] = []
    faults = [fault("kill a", "a", acts), fault("stop b", "b", acts)]

    with Nemesis(faults, history=tmp_path / "n.jsonl", duration_s=0.5, seed=7, quiet_s=(0.01, 0.05)) as nemesis:
        nemesis.join()

    lines = nemesis.journal.read()
    assert [f"{line['operation']} {line['fault']}" for line in lines[1:-1]] == acts
    assert len(acts) == 2 * len(nemesis.plan) > 4
    assert (lines[0]["seed"], lines[-1]["operation"]) == (7, "healed")
    assert "seed 7" in capsys.readouterr().out


def test_a_nemesis_that_is_stopped_heals_what_is_open(tmp_path: Path) -> None:
    injected, healed = threading.Event(), threading.Event()
    endless = Fault("kill a", "a", injected.set, healed.set, hold_s=(100, 100))

    with Nemesis([endless], history=tmp_path / "n.jsonl", duration_s=200, seed=7, quiet_s=(0, 0)) as nemesis:
        assert injected.wait(10)
        assert not healed.is_set()

    assert healed.is_set()
    assert 0 < nemesis.healed_at_s <= time.monotonic()


def test_a_fault_that_cannot_be_injected_fails_the_run_with_its_seed(tmp_path: Path) -> None:
    def refuse() -> None:
        raise RuntimeError("the worker had died by itself")

    broken = Fault("kill a", "a", refuse, lambda: None)

    with pytest.raises(ExceptionGroup, match="nemesis, seed 7") as caught:
        with Nemesis([broken], history=tmp_path / "n.jsonl", duration_s=5, seed=7, quiet_s=(0, 0)) as nemesis:
            nemesis.join()

    assert "had died by itself" in str(caught.value.exceptions[0])


# ---- the rest -------------------------------------------------------------------------------------------------------


def test_names_are_readable_and_never_twice_the_same() -> None:
    one, other = Names("test_a_key[classic-x]"), Names("test_a_key[classic-x]")

    assert one.topic() == one.topic()
    assert one.topic().startswith("a-key-classic-x-")
    assert one.topic() != other.topic()
    assert len(Names("x" * 500).topic("orders")) < 249


def test_ports_are_free_and_out_of_the_way_of_outgoing_connections() -> None:
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    ports = free_ports(6)

    assert len(set(ports)) == 6
    assert max(ports) < lowest_outgoing


def test_a_missing_java_maven_or_jar_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match="Kafka needs Java 17 or newer: no java at"):
        kafka_jars.java.__wrapped__()

    monkeypatch.setenv("CHOREO_KAFKA_JARS", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match=r"no kafka_2\.13-\*\.jar there"):
        kafka_jars.kafka_jars()

    monkeypatch.delenv("CHOREO_KAFKA_JARS")
    monkeypatch.setattr(kafka_jars, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(KafkaUnavailableError, match="needs Maven: no mvn in PATH"):
        kafka_jars.kafka_jars()


def test_an_old_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "bin" / "java"
    old.parent.mkdir()
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_402\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))

    with pytest.raises(KafkaUnavailableError, match=r"says \['openjdk version \"1.8.0_402\"'\]"):
        kafka_jars.java.__wrapped__()


def test_jars_that_maven_delivers_are_kept_and_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maven = tmp_path / "mvn"
    maven.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "out = pathlib.Path(next(a for a in sys.argv if a.startswith('-DoutputDirectory=')).split('=', 1)[1])\n"
        "out.mkdir(parents=True); (out / 'kafka_2.13-4.3.1.jar').touch()\n"
        f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n"
    )
    maven.chmod(0o755)
    monkeypatch.delenv("CHOREO_KAFKA_JARS", raising=False)
    monkeypatch.setattr(kafka_jars, "CACHE", tmp_path / "cache")
    monkeypatch.setenv("PATH", str(tmp_path))

    threads = [threading.Thread(target=kafka_jars.kafka_jars) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (tmp_path / "runs").read_text() == "x"
    assert (tmp_path / "cache" / "lib" / "kafka_2.13-4.3.1.jar").exists()
