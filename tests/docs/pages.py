"""What is in the documentation? Its pages, with their code blocks, commands, links, and what they name in backticks.

A code block's words, after its language: ``python run`` runs, ``python file=shop.py`` is a file, ``python in=shop.py`` replaces a
line of it. All others only have to compile.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^(```)(\S*)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_ASSIGNMENT = re.compile(r"[A-Z_]+=")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `line` is the one of its first line of text."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    def word(self, name: str) -> str | None:
        """The value of ``name=value``."""
        return next((word.partition("=")[2] for word in self.words if word.startswith(f"{name}=")), None)

    def code(self) -> str:
        return textwrap.dedent(self.text)


@dataclass(frozen=True, slots=True)
class Command:
    """One line after a ``$``, and what it printed according to the page."""

    where: str
    text: str
    printed: tuple[str, ...]

    def words(self) -> list[str]:
        """Without the variables set before it, and without ``.venv/bin/``."""
        words = shlex.split(self.text)
        while words and _ASSIGNMENT.match(words[0]):
            words.pop(0)
        return [words[0].removeprefix(".venv/bin/"), *words[1:]] if words else []


@dataclass(frozen=True, slots=True)
class Page:
    """One Markdown file; `name` is its path in the repository."""

    name: str
    text: str

    @property
    def folder(self) -> Path:
        return (ROOT / self.name).parent

    def blocks(self, language: str = "") -> list[Block]:
        found = []
        for match in _FENCE.finditer(self.text):
            line = self.text.count("\n", 0, match.start(4)) + 1
            found.append(Block(self.name, line, match[2], tuple(match[3].split()), match[4]))
        return [block for block in found if language in ("", block.language)]

    def prose(self) -> str:
        """The page without its blocks."""
        return _FENCE.sub("", self.text)

    def inline(self) -> list[str]:
        """What stands in backticks, outside of blocks."""
        return [text.replace("\\|", "|") for text in _INLINE.findall(self.prose())]

    def words(self) -> str:
        """The prose without what stands in backticks."""
        return _INLINE.sub("", self.prose())

    def links(self) -> list[str]:
        return _LINK.findall(self.prose())

    def commands(self) -> Iterator[Command]:
        for block in self.blocks("console"):
            yield from _commands(block)

    def section(self, heading: str) -> str:
        """From the line ``## heading`` to the next one like it."""
        match = re.search(rf"^## {re.escape(heading)}$\n(.*?)(?=^## |\Z)", self.text, re.MULTILINE | re.DOTALL)
        assert match is not None, f"{self.name} has no section {heading!r}"
        return match[1]


def _commands(block: Block) -> Iterator[Command]:
    text, printed, at = "", [], 0
    for number, line in enumerate([*block.text.splitlines(), "$ "]):
        if not line.startswith("$ "):
            printed.append(line)
            continue
        if text:
            yield Command(f"{block.page}:{at}", text, tuple(printed))
        text, printed, at = line.removeprefix("$ "), [], block.line + number


def rows(text: str) -> list[list[str]]:
    """The rows of all tables in a text, cell by cell, without backticks; headings and rules left out."""
    found = []
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if _is_rule(line) or _is_rule(following):
            continue
        cells = re.split(r"(?<!\\)\|", line)[1:-1]
        found.append([cell.strip().replace("\\|", "|") for cell in cells])
    return found


def _is_rule(line: str) -> bool:
    return bool(line) and set(line) <= set("|-: ")


def names_in(cell: str) -> list[str]:
    """What stands in backticks in one cell."""
    return _INLINE.findall(cell)


def page(name: str) -> Page:
    return Page(name, (ROOT / name).read_text())


def pages() -> list[Page]:
    """All of them."""
    own = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "schemas/README.md", "services_example/README.md"]
    docs = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return [page(name) for name in (*own, *docs)]


PAGES = pages()
