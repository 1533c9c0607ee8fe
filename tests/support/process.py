"""How do we kill a worker? A Python script as a real process: started, waited for, stopped, continued, killed, started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from signal import Signals

import psutil

from tests.support import guard
from tests.support.kafka_jars import ROOT
from tests.support.waiting import wait_for

READY = "READY"
END_DEADLINE_S = 10.0
TAIL_CHARS = 4000


class WorkerProcess:
    """A script and its present life. A context manager that ends what is left, its children too.

    The script runs in a process group of its own, in the repository's root, with `environment` over this process's and
    CHOREO_FAILPOINT from `failpoint` (unset when None). It says `ready` on a line of its own when it is ready. Its output goes
    to `log`, that of all its lives together. Calls are made by one thread at a time.
    """

    def __init__(
        self,
        script: Path | Sequence[str],
        *arguments: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        failpoint: str | None = None,
        ready: str = READY,
        cwd: Path = ROOT,
    ) -> None:
        self.command = [sys.executable, *([str(script)] if isinstance(script, Path) else script), *arguments]
        self.log = log
        self.failpoint = failpoint
        self.lives = 0
        self._environment = dict(environment or {})
        self._ready = ready
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._exit_code: int | None = None
        self._log_start = 0

    def __enter__(self) -> WorkerProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> WorkerProcess:
        """Starts it, or a dead one again. Does not wait: `wait_ready`."""
        assert not self.running, f"{self} is running"
        self.close()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1", **self._environment}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        environment.pop("CHOREO_FAILPOINT", None)
        if self.failpoint is not None:
            environment["CHOREO_FAILPOINT"] = self.failpoint
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=self._cwd,
                process_group=0,
            )
        self._exit_code = None
        self.lives += 1
        guard.watch(self._process.pid)
        return self

    def restart(self, *, deadline_s: float = 30.0) -> WorkerProcess:
        """`start`, then `wait_ready`."""
        self.start().wait_ready(deadline_s=deadline_s)
        return self

    # ---- looking --------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None, "it was never started"
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it lives; negative for the signal that killed it.

        The process is looked at and not reaped until `close`, so that its id and its group's are nobody else's.
        """
        if self._exit_code is None and self._process is not None:
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._exit_code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self._exit_code

    @property
    def running(self) -> bool:
        """Whether it lives, stopped or not."""
        return self._process is not None and self.exit_code is None

    @property
    def stopped(self) -> bool:
        """Whether SIGSTOP holds it."""
        return self.running and bool(psutil.Process(self.pid).status() == psutil.STATUS_STOPPED)

    def output(self, *, all_lives: bool = False) -> str:
        """What it has printed, in this life or in all."""
        with self.log.open("rb") as log:
            log.seek(0 if all_lives else self._log_start)
            return log.read().decode(errors="replace")

    # ---- waiting --------------------------------------------------------------------------------------------------

    def wait_ready(self, *, deadline_s: float = 30.0) -> None:
        """Returns when it has said so. Raises RuntimeError with its output when it ends instead."""
        self.wait_output(self._ready, deadline_s=deadline_s)

    def wait_output(self, text: str, *, deadline_s: float) -> None:
        """Returns when a line of this life's output contains `text`. Raises RuntimeError when it ends without."""

        def said() -> bool:
            running = self.running
            if text in self.output():
                return True
            if not running:
                raise RuntimeError(f"{self} ended with {self.exit_code} before it said {text!r}: {self.output()[-TAIL_CHARS:]}")
            return False

        self._wait(said, f"{self} says {text!r}", deadline_s)

    def wait_stopped(self, *, deadline_s: float) -> None:
        """Returns when SIGSTOP holds it, its own failpoint's included."""
        self._wait(lambda: self.stopped or not self.running, f"{self} is stopped", deadline_s)
        assert self.running, f"{self} ended with {self.exit_code}: {self.output()[-TAIL_CHARS:]}"

    def wait(self, deadline_s: float) -> int:
        """Its exit code, when it has ended. TimeoutError with its last words."""
        self._wait(lambda: not self.running, f"{self} has ended", deadline_s)
        code = self.exit_code
        assert code is not None
        return code

    def _wait(self, condition: Callable[[], bool], what: str, deadline_s: float) -> None:
        try:
            wait_for(condition, what, deadline_s=deadline_s, every_s=0.02)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; it said: {self.output()[-TAIL_CHARS:]}") from None

    # ---- signals --------------------------------------------------------------------------------------------------

    def kill9(self) -> None:
        """SIGKILL to the process and its children, as a machine's death would; returns when it is gone."""
        self._signal_group(signal.SIGKILL)
        self.wait(END_DEADLINE_S)

    def sigterm(self) -> None:
        """SIGTERM to the process alone, as a container's stop does. Does not wait."""
        self._signal(signal.SIGTERM)

    def sigint(self) -> None:
        """SIGINT to the process alone."""
        self._signal(signal.SIGINT)

    def sigstop(self) -> None:
        """SIGSTOP to the process and its children; returns when it is held."""
        self._signal_group(signal.SIGSTOP)
        self.wait_stopped(deadline_s=END_DEADLINE_S)

    def sigcont(self) -> None:
        """SIGCONT to the process and its children."""
        self._signal_group(signal.SIGCONT)

    def close(self) -> None:
        """Kills what is left of it, children too, and reaps it. A second call does nothing."""
        if self._process is None:
            return
        # Not reaped yet, so the group's id can't be anybody else's, and children may be left even when it has ended.
        self._signal_group(signal.SIGKILL)
        self._wait(lambda: not self.running, f"{self} has ended", END_DEADLINE_S)
        guard.forget(self._process.pid)
        self._process.wait(END_DEADLINE_S)
        self._process = None

    def _signal(self, number: Signals) -> None:
        if self.running:
            os.kill(self.pid, number)

    def _signal_group(self, number: Signals) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def __str__(self) -> str:
        return f"worker {self.log.stem} (pid {self._process.pid if self._process else 'none'})"
