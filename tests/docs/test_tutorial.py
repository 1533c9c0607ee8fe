"""Does the tutorial work, command by command, and print what it says? On the broker in memory, with the real commands.

``choreo run`` is the service inside this process; `make`, `cd` and the like are taken as done. What a command prints is
compared line by line, without ids, times and bars.
"""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from typer.testing import CliRunner

from choreo.cli.loading import load_service
from choreo.cli.main import app
from choreo.testing import MemoryBroker
from tests.docs.pages import Block, Command, _commands, page

TUTORIAL = page("docs/tutorial/first-service.md")
BEFORE = ("cd", "make", "export", "source", "mkdir")
DEADLINE_S = 15.0


class Shop:
    """What the reader has: a broker, a file, and perhaps a running service. Owner: the test's event loop."""

    def __init__(self, folder: Path, broker: MemoryBroker) -> None:
        self._folder = folder
        self._broker = broker
        self._running: AsyncExitStack | None = None

    async def follow(self, block: Block) -> list[str]:
        """Does what a block says; the lines of the page that no command printed."""
        if block.language == "console":
            return [line for command in _commands(block) for line in await self._do(command)]
        if (name := block.word("file")) is not None:
            (self._folder / name).write_text(block.code())
        elif (name := block.word("in")) is not None:
            await self._edit(self._folder / name, block.text)
        return []

    async def _do(self, command: Command) -> list[str]:
        words = command.words()
        if words[0] in BEFORE:
            return []
        assert words[0] == "choreo", f"{command.where}: who runs {words[0]}?"
        if words[1] == "run":
            await self._start(words[2])
            return []
        ended = await asyncio.to_thread(CliRunner().invoke, app, words[1:])
        if words[1] == "publish":
            await self._until(self._is_at_rest)
        return missing(command.printed, ended.output)

    async def _start(self, target: str) -> None:
        self._target = target
        self._running = AsyncExitStack()
        await self._running.enter_async_context(load_service(target).running())

    async def _edit(self, path: Path, line: str) -> None:
        """Replaces the line with the same left side; then what --reload does."""
        left = line.partition(" = ")[0]
        before = path.read_text()
        after = "".join(line if old.startswith(f"{left} = ") else old for old in before.splitlines(keepends=True))
        assert after != before
        await self.stop()
        path.write_text(after)
        sys.modules.pop(path.stem)
        importlib.invalidate_caches()
        await self._start(self._target)

    async def stop(self) -> None:
        if self._running is not None:
            running, self._running = self._running, None
            await running.aclose()

    def _is_at_rest(self) -> bool:
        return sum(self._broker.committed("billing").values()) == len(self._broker.records("orders"))

    async def _until(self, condition: Callable[[], bool]) -> None:
        ends_at = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < ends_at, f"not within {DEADLINE_S:g} s"
            await asyncio.sleep(0.02)


def missing(expected: tuple[str, ...], printed: str) -> list[str]:
    """The lines that were to be printed and were not; ``...`` stands for any."""
    actual = {plain(line) for line in printed.splitlines()}
    return [line for line in expected if line.strip() not in ("", "...") and plain(line) not in actual]


def plain(line: str) -> str:
    """Without what differs from run to run."""
    for pattern, name in (
        (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID"),
        (r"\brun [0-9a-f]{8}\b", "run RUN"),
        (r"\b\d\d:\d\d(:\d\d)?\b", "CLOCK"),
        (r"\b\d+ d \d+ h\b|\b[\d.]+ (ms|s)\b", "TIME"),
        (r"[▁▂▃▄▅▆▇█.:#]{4,}", "BARS"),
    ):
        line = re.sub(pattern, name, line)
    return " ".join(line.split())


async def test_every_step_of_the_tutorial_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()
    monkeypatch.setattr("choreo.service.KafkaBroker", lambda _settings: broker)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    shop = Shop(tmp_path, broker)

    try:
        not_printed = [line for block in TUTORIAL.blocks() for line in await shop.follow(block)]
    finally:
        await shop.stop()
        sys.modules.pop("shop", None)

    assert not_printed == []
    assert len(broker.records("invoices")) == 2
