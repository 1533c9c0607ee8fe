"""``choreo run`` as a process of its own, on a broker in memory: the screen, the signals, the exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from choreo.cli.run import as_arguments
from choreo.service import choreo_version
from tests.support.process import WorkerProcess

READY_DESK = "tests.unit.cli_desk:ready_desk"
READY_S = 60.0
CHOREO = ("-m", "choreo", "run")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CHOREO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")


def process(tmp_path: Path, *words: str, **environment: str) -> WorkerProcess:
    return WorkerProcess(CHOREO, *words, log=tmp_path / "run.log", environment=environment, ready="no event is lost")


def test_the_screen_says_what_was_started_and_a_signal_ends_it_cleanly(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK) as running:
        running.wait_ready(deadline_s=READY_S)

        running.sigterm()

        assert running.wait(20) == 0
        said = running.output()
    for line in (
        f"choreo {choreo_version()}  desk 2.3.1  1 worker  pid {running_pid(said)}",
        "kafka      in memory, 1 broker; group desk",
        "reacts to  orders[1]  order.placed  charge-card  claims  2 x in 0 ms, timeout 20 s, on threads",
        "emits      order.placed -> orders; payment.received -> payments",
        "letters    none open",
        "1 partition. Ctrl-C drains up to 2 s, twice stops now; no event is lost",
        "stopping: draining for up to 2 s",
    ):
        assert line in said


def test_the_same_as_json_is_one_document_on_stdout(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK, "--json", "--log-level", "error") as running:
        running.wait_output('"partitions": 1', deadline_s=READY_S)
        running.sigterm()
        assert running.wait(20) == 0

        document = json.loads(running.output())
    assert (document["service"], document["group"], document["letters"]["open"]) == ("desk", "desk", 0)
    assert document["reacts_to"] == [{"handler": "charge-card", "topics": ["orders"], "types": ["order.placed"]}]
    assert document["ready"]["of"] == 1


def running_pid(said: str) -> str:
    return said.partition("pid ")[2].split()[0]


def test_flags_go_before_the_environment(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK, "--drain-s", "7", CHOREO_DRAIN_S="3") as running:
        running.wait_ready(deadline_s=READY_S)

        assert "Ctrl-C drains up to 7 s" in running.output()


def test_a_drain_that_runs_out_is_exit_1(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK, "--drain-s", "0.2", "--log-level", "debug", DESK_SLOW_S="8", DESK_ORDER="o-1") as running:
        running.wait_ready(deadline_s=READY_S)
        running.wait_output("the desk is at it", deadline_s=READY_S)

        running.sigterm()

        assert running.wait(30) == 1
        assert "the drain ran out of time" in running.output()


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK, DESK_SLOW_S="30", DESK_ORDER="o-1", CHOREO_DRAIN_S="30") as running:
        running.wait_ready(deadline_s=READY_S)
        running.wait_output("the desk is at it", deadline_s=READY_S)
        running.sigterm()
        running.wait_output("stopping: draining", deadline_s=20)

        running.sigint()

        assert running.wait(10) == 130
        assert "stopped at once; events that were under way will come again" in running.output()


def test_missing_topics_are_one_line_and_exit_2(tmp_path: Path) -> None:
    with process(tmp_path, "tests.unit.cli_desk:desk") as running:
        assert running.wait(READY_S) == 2

        assert "error  desk: topics missing, or not visible to this user:" in running.output()
        assert "Traceback" not in running.output()


def test_no_kafka_is_one_line_and_exit_4(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from choreo import Service\nplain = Service('plain')\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ("plain:plain", "--bootstrap", f"127.0.0.1:{port}", "--start-deadline-s", "0")
    with process(tmp_path, *words, PYTHONPATH=str(tmp_path)) as running:
        assert running.wait(READY_S) == 4

        said = running.output()
    assert f"error  Kafka at 127.0.0.1:{port}" in said
    assert "is Kafka up, and is CHOREO_BOOTSTRAP right?" in said
    assert "Traceback" not in said


def test_waiting_for_kafka_ends_with_the_first_signal(tmp_path: Path) -> None:
    (tmp_path / "plain.py").write_text("from choreo import Service\nplain = Service('plain')\n")
    with process(tmp_path, "plain:plain", "--bootstrap", "127.0.0.1:1", PYTHONPATH=str(tmp_path)) as running:
        running.wait_output("trying for", deadline_s=READY_S)

        running.sigterm()

        assert running.wait(20) == 0


# ---- several workers ------------------------------------------------------------------------------------------------


def test_several_workers_have_one_screen_and_end_together(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK, "--workers", "2") as running:
        running.wait_ready(deadline_s=READY_S)
        children = psutil.Process(running.pid).children()

        running.sigterm()

        assert running.wait(30) == 0
        said = running.output()
    pids = " ".join(str(child.pid) for child in children)
    assert f"desk 2.3.1  2 workers  pid {running_pid(said)} ({pids})" in said
    assert said.count("reacts to") == 1
    assert "2 workers for 1 partition, 1 of them idle" in said
    assert not any(child.is_running() for child in children)


def test_a_worker_that_is_killed_is_replaced_and_said(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK, "--workers", "2") as running:
        running.wait_ready(deadline_s=READY_S)
        victim = psutil.Process(running.pid).children()[1].pid

        os.kill(victim, signal.SIGKILL)

        running.wait_output(f"worker 2 (pid {victim}) died: killed by SIGKILL; it starts again in 1 s", deadline_s=10)
        running.wait_output("worker 2 started again, pid", deadline_s=20)
        running.sigterm()
        assert running.wait(30) == 0


def test_no_worker_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    with process(tmp_path, READY_DESK, "--workers", "2") as running:
        running.wait_ready(deadline_s=READY_S)
        children = psutil.Process(running.pid).children()

        os.kill(running.pid, signal.SIGKILL)

        _, left = psutil.wait_procs(children, timeout=20)
        assert left == []


def test_a_wrong_target_with_several_workers_is_one_line(tmp_path: Path) -> None:
    with process(tmp_path, "nowhere.at.all:desk", "--workers", "3") as running:
        assert running.wait(READY_S) == 2

        assert running.output().startswith("error  no module 'nowhere'")
        assert running.output().count("\n") == 1


def test_reload_starts_the_worker_again_when_a_file_changes(tmp_path: Path) -> None:
    source = tmp_path / "watched_desk.py"
    source.write_text("from tests.unit.cli_desk import ready_desk\n")
    with process(tmp_path, "watched_desk:ready_desk", "--reload", PYTHONPATH=str(tmp_path)) as running:
        running.wait_ready(deadline_s=READY_S)

        source.write_text("from tests.unit.cli_desk import ready_desk\n\n")

        running.wait_output("watched_desk.py changed; the worker drains and starts again", deadline_s=20)
        running.wait_output("worker 1 started again", deadline_s=20)
        running.sigterm()
        assert running.wait(30) == 0


def test_flags_are_passed_on_to_the_workers() -> None:
    flags = {"bootstrap": "kafka:9092", "drain_s": 7.0, "threads": None, "strict": False, "accept_lost_offsets": True}

    assert as_arguments(flags) == ["--bootstrap=kafka:9092", "--drain-s=7.0", "--no-strict", "--accept-lost-offsets"]
