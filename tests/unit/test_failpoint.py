"""Failpoints: how CHOREO_FAILPOINT is read, and what happens at a point. Each runs in a process of its own, for some kill it."""

import os
import signal
import subprocess
import sys

import pytest

from choreo import failpoint

PROGRAM = """
import sys
from choreo import failpoint

for name in sys.argv[1:]:
    print(name, flush=True)
    failpoint.hit(name)
print("end")
"""


def run(setting: str | None, *names: str) -> tuple[int, str]:
    """Hits the points in order; how the process ended, and the last line of what it said."""
    environment = {name: value for name, value in os.environ.items() if name != "CHOREO_FAILPOINT"}
    if setting is not None:
        environment["CHOREO_FAILPOINT"] = setting
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, *names], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    said = (ended.stdout + ended.stderr).strip().splitlines()
    return ended.returncode, said[-1] if said else ""


@pytest.mark.parametrize("setting", [None, "", " , "])
def test_nothing_happens_unless_a_point_is_set(setting: str | None) -> None:
    actual = run(setting, "after_poll", "after_commit")

    assert actual == (0, "end")


def test_the_point_that_is_set_kills_the_process() -> None:
    actual = run("after_commit=kill9", "after_poll", "after_commit")

    assert actual == (-signal.SIGKILL, "after_commit")


def test_the_action_happens_at_the_hit_that_was_asked_for() -> None:
    actual = run("after_poll=exit:3", "after_poll", "after_commit", "after_poll", "before_handler", "after_poll", "after_commit")

    assert actual == (70, "after_poll")


def test_the_action_happens_once() -> None:
    actual = run("after_poll=exit:2", "after_poll")

    assert actual == (0, "end")


def test_a_point_can_raise() -> None:
    actual = run("during_backoff=raise", "during_backoff")

    assert actual == (1, "choreo.errors.StateError: failpoint during_backoff")


def test_a_point_can_sleep_at_each_hit() -> None:
    actual = run("after_poll=sleep:0.01", "after_poll", "after_poll")

    assert actual == (0, "end")


def test_several_points_can_be_set() -> None:
    actual = run("after_poll=sleep:0, after_commit=exit", "after_poll", "after_commit")

    assert actual == (70, "after_commit")


def test_a_stopped_process_goes_on_when_it_is_continued() -> None:
    environment = {**os.environ, "CHOREO_FAILPOINT": "after_poll=stop"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM, "after_poll"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)

        os.kill(process.pid, signal.SIGCONT)
        said, _ = process.communicate(timeout=60)

    assert (os.WIFSTOPPED(status), process.returncode, said) == (True, 0, "after_poll\nend\n")


@pytest.mark.parametrize(
    "setting",
    [
        "after_pol=kill9",
        "after_poll",
        "after_poll=",
        "after_poll=die",
        "after_poll=kill9:soon",
        "after_poll=kill9:0",
        "after_poll=kill9:1.5",
        "after_poll=kill9:nan",
        "after_poll=sleep:inf",
        "after_poll=sleep:-1",
    ],
)
def test_a_setting_that_cannot_be_meant_stops_the_start(setting: str) -> None:
    code, said = run(setting, "after_poll")

    actual = (code, said.split(" with a name of ")[0])

    assert actual == (1, f"choreo.errors.ConfigurationError: CHOREO_FAILPOINT: {setting!r}; use NAME=ACTION[:NUMBER]")


def test_a_point_has_one_action() -> None:
    actual = run("after_poll=sleep:1,after_poll=kill9", "after_poll")

    assert actual == (1, "choreo.errors.ConfigurationError: CHOREO_FAILPOINT: 'after_poll' is there twice; a point has one action")


def test_in_this_process_no_point_is_active() -> None:
    actual = failpoint.ACTIVE

    assert actual is False


def test_the_crash_matrix_finds_its_points() -> None:
    needed = {"after_poll", "before_store_tx", "in_store_tx", "after_store_commit", "after_store_offsets", "after_commit", "after_dlq_ack"}

    actual = needed - failpoint.NAMES

    assert actual == set()
