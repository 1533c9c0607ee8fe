"""``choreo run MODULE:NAME``: the service as a worker, or as several under a supervisor. Flags > environment > code > default."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn

import typer

from choreo.cli import options, screen, start_screen
from choreo.cli.loading import Target, load_target
from choreo.cli.log_lines import Level, log_to_stderr
from choreo.cli.sources import Sources
from choreo.errors import ChoreoError
from choreo.process import tune_process
from choreo.runtime.lifeline import Lifeline, Ready
from choreo.runtime.supervisor import Crew, Supervisor
from choreo.service import Started

Shown = Literal["screen", "json", "nothing"]

DIED = 1
FIRST_PARTITIONS_S = 10.0
SETTLES_S = 0.1
"""Partitions may be given in two steps: the screen counts them when nothing has been added for so long."""
LEAVING_S = 15.0
"""Beside the drain: to commit, to leave the group, to close."""

_log = logging.getLogger("choreo.cli")


def run(
    target: options.ModuleTarget,
    workers: Annotated[int, typer.Option("--workers", min=1, max=64, help="Processes; one a core.")] = 1,
    reload: Annotated[bool, typer.Option("--reload", help="Drain and start again when a source file changes.")] = False,
    log_level: Annotated[Level, typer.Option("--log-level", help="Of the lines on stderr.")] = "info",
    show_screen: Annotated[bool, typer.Option("--screen/--no-screen", help="Show what was started.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Show it as one JSON document, once it is ready.")] = False,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    group_protocol: Annotated[Literal["auto", "classic", "consumer"] | None, typer.Option("--group-protocol")] = None,
    start: Annotated[str | None, typer.Option("--start", help="Where a new group begins: earliest, latest, refuse, or a time.")] = None,
    effects: Annotated[Literal["claims", "offsets", "kafka"] | None, typer.Option("--effects")] = None,
    transactional_id: Annotated[str | None, typer.Option("--transactional-id", help="With --effects kafka, for this worker alone.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", help="Async handlers under way at once.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", help="For handlers that are plain functions.")] = None,
    drain_s: Annotated[float | None, typer.Option("--drain-s", help="How long a stop may take.")] = None,
    start_deadline_s: Annotated[float | None, typer.Option("--start-deadline-s", help="How long to wait for Kafka at the start.")] = None,
    strict: Annotated[bool | None, typer.Option("--strict/--no-strict", help="Dead-letter events without a handler.")] = None,
    accept_lost_offsets: Annotated[
        bool | None, typer.Option("--accept-lost-offsets", help="Go on by --start where committed offsets are gone.")
    ] = None,
) -> None:
    """Run a service until SIGTERM or Ctrl-C, then drain. Exit 0: clean; 1: it failed, or the drain ran out; 4: no Kafka."""
    flags = {
        "bootstrap": bootstrap,
        "topic_prefix": topic_prefix,
        "group_protocol": group_protocol,
        "start": start,
        "effects": effects,
        "transactional_id": transactional_id,
        "concurrency": concurrency,
        "threads": threads,
        "drain_s": drain_s,
        "start_deadline_s": start_deadline_s,
        "strict": strict,
        "accept_lost_offsets": accept_lost_offsets,
    }
    signal.signal(signal.SIGTERM, _nothing_begun)
    line = Lifeline.from_environment(os.environ)
    several = line is not None and line.workers > 1
    log_to_stderr(log_level, f"worker {line.number}" if line is not None and several else "")
    if line is None and (workers > 1 or reload):
        shown: Shown = "json" if as_json else "screen" if show_screen else "nothing"
        raise typer.Exit(_supervise(target, flags, workers, reload=reload, arguments=["--log-level", log_level], shown=shown))
    found = load_target(target, flags)
    if line is not None:
        line.watch(found.settings.drain_s + LEAVING_S)
    # After the service's code is there: what was imported lives as long as the process.
    tune_process()
    try:
        shown = "json" if as_json else "screen" if show_screen else "nothing"
        raise typer.Exit(asyncio.run(_Running(found, flags, line, shown).run()))
    finally:
        # All is said and done: another Ctrl-C while the interpreter ends must not change how that looks.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _end_at_once(code: int) -> NoReturn:
    # The end of the event loop would wait for ever for a handler that ignores its cancellation (TRAPS 26).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _nothing_begun(number: int, frame: object) -> None:
    # Until the loop has its own handler: while the service's code is imported there is nothing to drain.
    raise SystemExit(0)


class _Running:
    """One worker of this process. Owner: the event loop."""

    def __init__(self, target: Target, flags: Mapping[str, Any], line: Lifeline | None, shown: Shown) -> None:
        self._target = target
        self._flags = flags
        self._line = line
        self._shown = shown
        self._started = False
        self._waiting: asyncio.Task[None] | None = None

    async def run(self) -> int:
        """Until it is asked to stop; its exit code. Raises ChoreoError when it can't start."""
        try:
            clean = await self._target.service.run(flags=self._flags, started=self._show)
        except ChoreoError as error:
            if not self._started:
                raise
            screen.complain(error)
            return DIED
        finally:
            if self._waiting is not None:
                self._waiting.cancel()
        if not clean:
            screen.complain("the drain ran out of time: what had not ended was not committed and will run again")
            _end_at_once(DIED)
        return 0

    def _show(self, started: Started) -> None:
        self._started = True
        if self._shown == "screen":
            if self._line is None:
                service = self._target.service
                screen.say(start_screen.head(service.name, service.version, 1, ()))
            start_screen.show_start(self._target, started)
        self._waiting = asyncio.get_running_loop().create_task(self._ready(started))

    async def _ready(self, started: Started) -> None:
        began_s = time.monotonic()
        topics = [self._target.names(topic) for topic in self._target.service.consumed_topics()]
        of = sum(started.topics[topic].partitions for topic in topics)
        partitions = started.worker.engine.partitions
        while of and not partitions and time.monotonic() - began_s < FIRST_PARTITIONS_S:  # noqa: ASYNC110 - only a screen waits
            await asyncio.sleep(0.02)
        took_s = started.took_s + time.monotonic() - began_s
        have = -1
        while have < len(partitions) < of:
            have = len(partitions)
            await asyncio.sleep(SETTLES_S)
        ready = Ready(took_s, len(partitions), of)
        if self._line is not None:
            self._line.report(ready)
        elif self._shown == "screen":
            screen.out().print(start_screen.ready_line([ready], started.settings.drain_s), soft_wrap=True)
        elif self._shown == "json":
            screen.print_json(start_screen.as_json(self._target, started, ready))
        else:
            _log.info("ready in %.1f s, %d partitions", took_s, len(partitions))


# ---- several ------------------------------------------------------------------------------------------------------------


def _supervise(target: str, flags: Mapping[str, Any], workers: int, *, reload: bool, arguments: Sequence[str], shown: Shown) -> int:
    """Runs the workers as processes of their own; the exit code for all."""
    # With --reload the code may be broken just now: then the workers say so, and start when it is mended.
    found = None if reload else load_target(target, flags)
    drain_s = flags["drain_s"] if found is None else found.settings.drain_s
    drain_s = 25.0 if drain_s is None else float(drain_s)
    name, version = (target, "") if found is None else (found.name, found.service.version)
    base = [sys.executable, "-m", "choreo", "run", target, *arguments, *as_arguments(flags)]

    def command(number: int, life: int) -> list[str]:
        return base if shown == "screen" and number == 1 and life == 0 else [*base, "--no-screen"]

    first_pids: list[int] = []

    def started(pids: Sequence[int]) -> None:
        first_pids.extend(pids)
        if shown == "screen":
            screen.say(start_screen.head(name, version, workers, pids))

    def ready(reports: Sequence[Ready]) -> None:
        if shown == "screen":
            screen.out().print(start_screen.ready_line(reports, drain_s), soft_wrap=True)
        elif shown == "json":
            screen.print_json({"service": name, "version": version, "pid": os.getpid(), "workers": first_pids, "ready": reports})

    crew = Crew(
        command=command,
        workers=workers,
        grace_s=drain_s + LEAVING_S,
        say=lambda text: _log.warning("%s", text),
        started=started,
        ready=ready,
        changed=Sources.of(target.partition(":")[0]).changed if reload else None,
    )

    async def supervise() -> int:
        return await Supervisor(crew).run()

    return asyncio.run(supervise())


def as_arguments(flags: Mapping[str, Any]) -> list[str]:
    """The flags as another ``choreo run`` takes them."""
    words: list[str] = []
    for name, value in flags.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            words.append(f"--{option}={value}")
    return words
