"""Do all workers run? Spawns N processes of one service, starts those that die again, passes signals on, leaves no orphan.

A worker is a new interpreter, not a fork (TRAPS 24). Each is in a process group of its own, so that Ctrl-C in a terminal
reaches it once, through here. `afterwards` decides and is pure; `Supervisor` acts.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from asyncio.subprocess import Process
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from choreo.runtime.lifeline import STATUS, WORKER, Ready

BACKOFF_FIRST_S = 1.0
BACKOFF_MOST_S = 30.0
HEALTHY_S = 60.0
"""A worker that lived so long was well: the next wait is the first again."""
AT_ONCE_S = 2.0
"""After the second signal a worker that is still there is killed."""
USAGE = 2
UNREACHABLE = 4
STOPPED_AT_ONCE = 130

_ready = msgspec.json.Decoder(Ready)


@dataclass(frozen=True, slots=True)
class Again:
    """It is started again, after `delay_s` seconds."""

    delay_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Starting it again can't help: all workers stop, with this exit code."""

    code: int


def afterwards(code: int, *, lived_s: float, last_delay_s: float, any_was_ready: bool) -> Again | GiveUp:
    """What to do about a worker that ended with `code` and was not asked to. `last_delay_s`: its wait before this life, 0 for none.

    A wrong setting (2) stays wrong; a Kafka that was never reached (4) is for whoever started us.
    """
    if code == USAGE or (code == UNREACHABLE and not any_was_ready):
        return GiveUp(code)
    if last_delay_s == 0 or lived_s >= HEALTHY_S:
        return Again(BACKOFF_FIRST_S)
    return Again(min(BACKOFF_MOST_S, last_delay_s * 2))


def aggregated(codes: Sequence[int]) -> int:
    """One exit code for all workers: 0 when all ended well, 130 when one was stopped at once, else 1.

    A worker that our SIGTERM killed had not begun: `choreo run` has a handler for it before anything else.
    """
    if all(code in (0, -signal.SIGTERM) for code in codes):
        return 0
    return STOPPED_AT_ONCE if STOPPED_AT_ONCE in codes else 1


def died_of(code: int) -> str:
    """``killed by SIGKILL``, ``exit 1``."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


Command: TypeAlias = Callable[[int, int], Sequence[str]]
"""The command of worker number n (from 1) in its life l (from 0)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """What to supervise. `grace_s`: how long workers may take to drain; `changed`: source files that changed since the last
    call, None where nobody watches; `say` shows a line, `started` gets the pids, `ready` what the workers said."""

    command: Command
    workers: int
    grace_s: float
    say: Callable[[str], None]
    started: Callable[[Sequence[int]], None]
    ready: Callable[[Sequence[Ready]], None]
    changed: Callable[[], Sequence[str]] | None = None


class _Seat:
    """One worker's place: the process that has it now, and how often it was given. Owner: the event loop."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.life = 0
        self.process: Process | None = None
        self.line: socket.socket | None = None
        self.ready: Ready | None = None
        self.renewing = False


class Supervisor:
    """Runs a crew until it is told to stop. Owner: the event loop."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._seats = [_Seat(number) for number in range(1, crew.workers + 1)]
        self._signals = 0
        self._asked = asyncio.Event()
        self._renew = asyncio.Event()
        self._code: int | None = None
        self._any_was_ready = False
        self._told_ready = False

    async def run(self) -> int:
        """Runs the workers until SIGTERM or SIGINT; the exit code for all of them."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        for seat in self._seats:
            await self._start(seat)
        self._crew.started([seat.process.pid for seat in self._seats if seat.process is not None])
        watching = None if self._crew.changed is None else loop.create_task(self._watch_files())
        codes = await asyncio.gather(*(self._keep(seat) for seat in self._seats))
        if watching is not None:
            watching.cancel()
        return aggregated(codes) if self._code is None else self._code

    # ---- one seat ---------------------------------------------------------------------------------------------------

    async def _start(self, seat: _Seat) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        environment = {**os.environ, WORKER: f"{seat.number}/{self._crew.workers}", STATUS: str(theirs.fileno())}
        try:
            seat.process = await asyncio.create_subprocess_exec(
                *self._crew.command(seat.number, seat.life), env=environment, pass_fds=(theirs.fileno(),), process_group=0
            )
        finally:
            theirs.close()
        seat.line, seat.ready = ours, None
        asyncio.get_running_loop().add_reader(ours, self._hear, seat, ours)

    async def _keep(self, seat: _Seat) -> int:
        """Keeps the seat taken; the exit code of whoever had it when everything stopped."""
        loop = asyncio.get_running_loop()
        delay_s = 0.0
        while True:
            assert seat.process is not None
            began_s = loop.time()
            code = await seat.process.wait()
            self._hang_up(seat)
            if self._asked.is_set():
                return code
            if seat.renewing:
                seat.renewing, delay_s = False, 0.0
            elif self._crew.changed is not None:
                self._crew.say(f"worker {seat.number} ended ({died_of(code)}); it starts again when a file changes")
                await self._first_of(self._renew)
            else:
                decision = afterwards(code, lived_s=loop.time() - began_s, last_delay_s=delay_s, any_was_ready=self._any_was_ready)
                if isinstance(decision, GiveUp):
                    self._give_up(decision.code)
                    return code
                delay_s = decision.delay_s
                pid = seat.process.pid
                self._crew.say(f"worker {seat.number} (pid {pid}) died: {died_of(code)}; it starts again in {delay_s:g} s")
                await self._first_of(None, delay_s)
            if self._asked.is_set():
                return code
            seat.life += 1
            await self._start(seat)
            self._crew.say(f"worker {seat.number} started again, pid {seat.process.pid}")
            if self._asked.is_set():
                self._send(seat, signal.SIGTERM)  # told to stop while it was being started

    async def _first_of(self, event: asyncio.Event | None, timeout_s: float | None = None) -> None:
        """Waits for the event, the time, or that everything stops."""
        waiting = [asyncio.ensure_future(self._asked.wait())]
        if event is not None:
            waiting.append(asyncio.ensure_future(event.wait()))
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()

    def _hear(self, seat: _Seat, line: socket.socket) -> None:
        try:
            told = line.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            told = b""
        if not told:
            asyncio.get_running_loop().remove_reader(line)
            return
        for text in told.splitlines():
            seat.ready = _ready.decode(text)
            self._any_was_ready = True
        if not self._told_ready and all(seat.ready is not None for seat in self._seats):
            self._told_ready = True
            self._crew.ready([seat.ready for seat in self._seats if seat.ready is not None])

    def _hang_up(self, seat: _Seat) -> None:
        if seat.line is not None:
            asyncio.get_running_loop().remove_reader(seat.line)
            seat.line.close()
            seat.line = None

    # ---- stopping, and starting anew ----------------------------------------------------------------------------------

    def _signalled(self) -> None:
        self._signals += 1
        if self._signals > 2:
            return
        self._stop(at_once=self._signals == 2)

    def _stop(self, *, at_once: bool) -> None:
        self._asked.set()
        for seat in self._seats:
            self._send(seat, signal.SIGTERM)
        # A worker that hangs must not keep us: what it had not settled was not committed.
        asyncio.get_running_loop().call_later(AT_ONCE_S if at_once else self._crew.grace_s, self._kill)

    def _kill(self) -> None:
        for seat in self._seats:
            if seat.process is not None and seat.process.returncode is None:
                self._crew.say(f"worker {seat.number} (pid {seat.process.pid}) did not end in time and is killed; nothing is lost")
                self._send(seat, signal.SIGKILL)

    def _give_up(self, code: int) -> None:
        if self._code is None:
            self._code = code
            self._stop(at_once=False)

    def _send(self, seat: _Seat, number: signal.Signals) -> None:
        if seat.process is not None and seat.process.returncode is None:
            try:
                seat.process.send_signal(number)
            except ProcessLookupError:
                return

    async def _watch_files(self) -> None:
        assert self._crew.changed is not None
        while True:
            await asyncio.sleep(0.5)
            changed = await asyncio.get_running_loop().run_in_executor(None, self._crew.changed)
            if not changed or self._asked.is_set():
                continue
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            self._crew.say(f"{changed[0]}{more} changed; the worker drains and starts again")
            for seat in self._seats:
                if seat.process is not None and seat.process.returncode is None and not seat.renewing:
                    seat.renewing = True
                    self._send(seat, signal.SIGTERM)
            self._renew.set()
            self._renew.clear()
