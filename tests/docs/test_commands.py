"""Are the commands in the documentation those that there are? Both ways, options too."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from choreo.cli.main import app
from tests.docs.pages import PAGES, Page, page

each_page = pytest.mark.parametrize("shown", PAGES, ids=lambda shown: shown.name)

CLI = "docs/reference/cli.md"
COMMON = {"--bootstrap", "--topic-prefix", "--json", "--help"}


def commands() -> dict[str, Any]:
    """By its words (``dlq ls``), each command."""
    return dict(_below("", typer.main.get_command(app)))


def _below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
    for name, inner in getattr(command, "commands", {}).items():
        if hasattr(inner, "commands"):
            yield from _below(f"{words}{name} ", inner)
        else:
            yield f"{words}{name}", inner


def options(command: Any) -> set[str]:
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts) if option.startswith("--")}


COMMANDS = commands()


@each_page
def test_every_command_that_is_named_exists(shown: Page) -> None:
    named = [command.words() for command in shown.commands()]
    named += [_split(text) for text in shown.inline() if text.startswith("choreo ")]
    wrong = [" ".join(words) for words in named if words and words[0] == "choreo" and not _exists(words[1:])]

    assert wrong == []


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def _exists(words: list[str]) -> bool:
    if words in (["--version"], ["COMMAND", "--help"]):
        return True
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else words[0]
    if name not in COMMANDS:
        return words[0] in {other.split()[0] for other in COMMANDS} and len(words) == 1
    return {word.partition("=")[0] for word in words if word.startswith("--")} <= options(COMMANDS[name]) | {"--help"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_its_help(name: str) -> None:
    assert CliRunner().invoke(app, [*name.split(), "--help"]).exit_code == 0


def test_the_reference_has_every_command_and_no_other() -> None:
    headings = re.findall(r"^## (`choreo .+)$", page(CLI).text, re.MULTILINE)
    named = [text for heading in headings for text in re.findall(r"`choreo ([a-z]+(?: [a-z]+)?)", heading)]

    assert sorted(named) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_every_option_of_a_command_and_no_other(name: str) -> None:
    reference = page(CLI)
    heading = next(h for h in re.findall(r"^## (`choreo .+)$", reference.text, re.MULTILINE) if re.search(rf"`choreo {name}\b", h))
    together = set[str]().union(*(options(COMMANDS[other]) for other in COMMANDS if f"`choreo {other} " in f"{heading} "))
    named = {option for option in re.findall(r"`(--[a-z-]+)", reference.section(heading)) if option not in COMMON}

    assert options(COMMANDS[name]) - COMMON <= named
    assert named <= (together or options(COMMANDS[name]))


def test_the_reference_has_the_options_that_commands_share() -> None:
    named = set(re.findall(r"`(--[a-z-]+)", page(CLI).section("Common options")))

    assert named - {"--version"} == COMMON
