"""Who ends our processes if the test run itself is killed?

One small process a test run, started with the first `watch`. It reads the pids to watch from a pipe; when the pipe ends - the
test run exited, by whatever means - it kills those that are left, by pid, with the group that such a process leads, and removes the directories it was told of. A pid
counts only with the start time it was told with, so that a reused one is left alone.
"""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil

EXIT_DEADLINE_S = 10.0

_lock = threading.Lock()
_guard: subprocess.Popen[str] | None = None


def watch(pid: int) -> None:
    """From now on `pid`, a process that the caller started, does not outlive this one."""
    try:
        _tell(f"watch {pid} {psutil.Process(pid).create_time()!r}")
    except psutil.NoSuchProcess:
        pass


def forget(pid: int) -> None:
    """The caller has ended `pid` and reaped it."""
    _tell(f"forget {pid}")


def watch_directory(path: Path) -> None:
    """`path` is removed when this process ends, if it is still there."""
    _tell(f"directory {path.resolve()}")


def _tell(line: str) -> None:
    global _guard
    with _lock:
        if _guard is None:
            # A session of its own: Ctrl-C in the terminal must not end the guard before the test run.
            _guard = subprocess.Popen(
                [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True
            )
            atexit.register(_close, _guard)
        assert _guard.stdin is not None
        _guard.stdin.write(line + "\n")
        _guard.stdin.flush()


def _close(guard: subprocess.Popen[str]) -> None:
    guard.communicate(timeout=EXIT_DEADLINE_S)


def main() -> None:
    watched: dict[int, float] = {}
    directories: list[Path] = []
    for line in sys.stdin:
        word, _, rest = line.rstrip("\n").partition(" ")
        if word == "watch":
            pid, started = rest.split()
            watched[int(pid)] = float(started)
        elif word == "forget":
            watched.pop(int(rest), None)
        else:
            directories.append(Path(rest))
    for pid, started_at in watched.items():
        _kill(pid, started_at)
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)


def _kill(pid: int, started: float) -> None:
    try:
        if psutil.Process(pid).create_time() == started:
            if os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass


if __name__ == "__main__":
    main()
