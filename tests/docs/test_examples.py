"""Do the examples compile, and do those that say so run? Without a broker of their own, or on the one in memory."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from choreo import Service
from choreo.testing import MemoryBroker
from tests.docs.pages import PAGES, ROOT, Block, Page, page

BLOCKS = [block for shown in PAGES for block in shown.blocks("python")]
RUNNING = [shown for shown in PAGES if any("run" in block.words for block in shown.blocks("python"))]
RUN_S = 60.0


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """What the examples of one page share."""
    made = types.ModuleType("an_example")
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_every_python_example_compiles(block: Block) -> None:
    compile(block.code(), block.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_the_words_of_a_block_are_known() -> None:
    wrong = [block.where for block in BLOCKS for word in block.words if word != "run" and not word.startswith(("file=", "in="))]

    assert wrong == []


@pytest.mark.parametrize("shown", RUNNING, ids=lambda shown: shown.name)
async def test_the_examples_of_a_page_run(shown: Page, module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in shown.blocks("python"):
        if "run" in block.words:
            before = dict(vars(module))
            exec(compile(block.code(), block.where, "exec", dont_inherit=True), vars(module))
            await _run_tests({name: value for name, value in vars(module).items() if before.get(name) is not value})


async def _run_tests(defined: dict[str, Any]) -> None:
    for name, test in defined.items():
        if name.startswith("test_") and callable(test):
            answer = test()
            if inspect.isawaitable(answer):
                await answer


# ---- the README's example, as it is told to be run --------------------------------------------------------------------


def test_the_example_of_the_readme_prints_what_it_says(tmp_path: Path) -> None:
    readme = page("README.md")
    (example,) = [block for block in readme.blocks("python") if block.word("file") == "first.py"]
    (command,) = [command for command in readme.commands() if command.text.endswith("first.py")]
    (tmp_path / "first.py").write_text(example.code())

    ended = subprocess.run(
        [sys.executable, "first.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CHOREO_BOOTSTRAP": "embedded://"},
        capture_output=True,
        text=True,
        timeout=RUN_S,
        check=False,
    )

    assert (ended.returncode, without_ids(ended.stdout)) == (0, without_ids("\n".join(command.printed) + "\n")), ended.stderr
    assert command.text.startswith("CHOREO_BOOTSTRAP=embedded:// ")


def without_ids(text: str) -> str:
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>", text)


# ---- the web example, with as much of FastAPI as it uses ----------------------------------------------------------------


class FakeFastApi:
    """An application that remembers its lifespan and its routes."""

    def __init__(self, *, lifespan: Callable[[FakeFastApi], Any]) -> None:
        self.lifespan = lifespan
        self.state = types.SimpleNamespace()
        self.routes: dict[str, Callable[..., Any]] = {}

    def post(self, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def add(endpoint: Callable[..., Any]) -> Callable[..., Any]:
            self.routes[path] = endpoint
            return endpoint

        return add


async def test_the_web_example_publishes_one_event_for_a_repeated_request(
    module: types.ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = MemoryBroker()
    fastapi = types.ModuleType("fastapi")
    fastapi.FastAPI = FakeFastApi  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fastapi", fastapi)
    monkeypatch.setattr("choreo.service.KafkaBroker", lambda _settings: broker)
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in page("docs/how-to/run-in-fastapi.md").blocks("python") if block.word("file") == "web.py"]
    exec(compile(block.code(), block.where, "exec", dont_inherit=True), vars(module))
    service, app = vars(module)["service"], vars(module)["app"]
    assert isinstance(service, Service)
    for topic in service.topics():
        broker.create_topic(topic)

    async with app.lifespan(app):
        answers = [await app.routes["/orders/{order_id}"]("o-1") for _ in range(2)]

    first, second = broker.records("orders")
    assert answers[0] == answers[1] == {"flow": dict(first.headers)["choreo-id"].decode()}  # type: ignore[union-attr]
    assert dict(first.headers)["choreo-id"] == dict(second.headers)["choreo-id"]
