"""Do mypy and pyright find a user's mistakes, and leave sound programs alone?

The programs are in good/ and bad/. A line of a bad program that both checkers must refuse ends with ``# error``; one that
only one of them sees, with ``# mypy-error`` or ``# pyright-error``. Each checker runs once over all of them, for it is slow.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROGRAMS = [*sorted((HERE / "good").glob("*.py")), *sorted((HERE / "bad").glob("*.py"))]
IDS = [f"{program.parent.name}/{program.name}" for program in PROGRAMS]

Found: TypeAlias = Mapping[Path, Mapping[int, str]]
"""What a checker says: file -> line -> its first message there."""


def by_line(complaints: list[tuple[str, int, str]]) -> Found:
    found: dict[Path, dict[int, str]] = {}
    for file, line, message in complaints:
        found.setdefault((ROOT / file).resolve(), {}).setdefault(line, message)
    return found


def run_mypy(scratch: Path) -> Found:
    options = ["--strict", "--config-file=", "--no-error-summary", "--hide-error-context", "--no-pretty", "--no-color-output"]
    places = ["--namespace-packages", "--explicit-package-bases", f"--cache-dir={scratch}"]
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *places, *map(str, PROGRAMS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    complaints = re.findall(r"^(.+?):(\d+): error: (.*)$", ended.stdout, re.MULTILINE)
    return by_line([(file, int(line), message) for file, line, message in complaints])


def run_pyright(scratch: Path) -> Found:
    settings = {
        "include": [os.path.relpath(HERE / name, scratch) for name in ("good", "bad")],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
        "reportUnusedExpression": "none",
        "reportUnusedCoroutine": "none",
    }
    (scratch / "pyrightconfig.json").write_text(json.dumps(settings))
    ended = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(scratch)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    complaints = json.loads(ended.stdout)["generalDiagnostics"]
    return by_line(
        [(each["file"], each["range"]["start"]["line"] + 1, each["message"]) for each in complaints if each["severity"] == "error"]
    )


CHECKERS: dict[str, Callable[[Path], Found]] = {"mypy": run_mypy, "pyright": run_pyright}


@pytest.fixture(scope="module", params=CHECKERS)
def checked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Found]:
    """A checker's name, and what it says of all programs."""
    return request.param, CHECKERS[request.param](tmp_path_factory.mktemp(request.param))


def marked(program: Path, checker: str) -> set[int]:
    marks = re.compile(rf"#.*?(?<![\w-])(?:error|{checker}-error)\b")
    return {number for number, line in enumerate(program.read_text().splitlines(), 1) if marks.search(line)}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("program", PROGRAMS, ids=IDS)
def test_a_checker_refuses_the_marked_lines_and_no_others(checked: tuple[str, Found], program: Path) -> None:
    checker, found = checked
    said = found.get(program, {})

    actual = {line: said.get(line, "nothing") for line in said.keys() ^ marked(program, checker)}

    assert actual == {}


def test_good_programs_have_no_marks_and_bad_ones_do() -> None:
    actual = {program.parent.name: set[bool]() for program in PROGRAMS}

    for program in PROGRAMS:
        actual[program.parent.name].add(bool(marked(program, "mypy") | marked(program, "pyright")))

    assert actual == {"good": {False}, "bad": {True}}
