"""Does what the documentation names exist? Files, functions, modules, variables, make targets, links."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from choreo.settings import _OTHERS, _PARSERS
from tests.docs.pages import PAGES, ROOT, Page, page

each_page = pytest.mark.parametrize("shown", PAGES, ids=lambda shown: shown.name)

_TOP = {path.name for path in ROOT.iterdir()}
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)*\.(py|md|toml|yml|yaml|json|jsonl)|[\w.-]+(/[\w.-]+)*/[\w.-]*")
_WIRE_STRINGS = {"choreo.plain", "choreo.derived"}


@each_page
def test_every_relative_link_leads_somewhere(shown: Page) -> None:
    broken = [link for link in shown.links() if not link.startswith(("http://", "https://")) and not _leads_somewhere(shown, link)]

    assert broken == []


def _leads_somewhere(shown: Page, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = (shown.folder / path).resolve() if path else ROOT / shown.name
    if not target.exists() or not target.is_relative_to(ROOT):
        return False
    return not anchor or anchor in _anchors(target)


def _anchors(target: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_every_file_that_is_named_exists(shown: Page) -> None:
    own = {block.word("file") for block in shown.blocks("python")}
    named = {text.partition("::")[0] for text in shown.inline()} - own
    wrong = [name for name in sorted(named) if _FILE.fullmatch(name) and _is_ours(name) and not _exists(shown, name)]

    assert wrong == []


def _is_ours(name: str) -> bool:
    return name.split("/")[0] in _TOP or ("/" not in name and name.endswith((".md", ".toml", ".yml")))


def _exists(shown: Page, name: str) -> bool:
    return (ROOT / name).exists() or (shown.folder / name).exists()


@each_page
def test_every_path_and_name_resolves(shown: Page) -> None:
    named = [text for text in shown.inline() if "::" in text and text.partition("::")[0].endswith(".py")]
    wrong = [text for text in named if not _is_defined(*text.split("::", 1))]

    assert wrong == []


def _is_defined(path: str, name: str) -> bool:
    if not (ROOT / path).exists():
        return False
    body: list[ast.stmt] = ast.parse((ROOT / path).read_text()).body
    for part in name.split("."):
        found = next((node for node in body if part in _defined_by(node)), None)
        if found is None:
            return False
        body = found.body if isinstance(found, ast.ClassDef) else []
    return True


def _defined_by(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@each_page
def test_every_module_and_its_name_can_be_imported(shown: Page) -> None:
    named = {text.split("(")[0] for text in shown.inline()}
    wrong = [name for name in sorted(named) if re.fullmatch(r"choreo(\.\w+)+", name) and name not in _WIRE_STRINGS and not _imports(name)]

    assert wrong == []


def _imports(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        module, _, attribute = name.rpartition(".")
        try:
            return hasattr(importlib.import_module(module), attribute)
        except ImportError:
            return False
    return True


@each_page
def test_every_variable_is_one_of_choreos(shown: Page) -> None:
    settings = {f"CHOREO_{name.upper()}" for name in _PARSERS}
    known = settings | {f"{name}_FILE" for name in settings} | _OTHERS

    assert set(re.findall(r"CHOREO_[A-Z_]*[A-Z]", shown.text)) - known == set()


def test_every_variable_of_choreo_is_in_the_reference() -> None:
    text = page("docs/reference/settings.md").text

    assert [name for name in sorted({f"CHOREO_{name.upper()}" for name in _PARSERS} | _OTHERS) if f"`{name}`" not in text] == []


@each_page
def test_every_make_target_exists(shown: Page) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = [command.words() for command in shown.commands()] + [text.split() for text in shown.inline()]
    named = {words[-1] for words in commands if len(words) > 1 and words[0] == "make"}

    assert named - targets == set()


def test_the_index_has_every_page() -> None:
    lists = [page("docs/index.md"), page("docs/adr/README.md")]
    listed = {(shown.folder / link).resolve() for shown in lists for link in shown.links() if "://" not in link}

    assert set((ROOT / "docs").rglob("*.md")) - listed == {ROOT / "docs" / "index.md"}


def test_a_page_is_of_one_kind() -> None:
    kinds = {path.parts[0] for path in ((ROOT / "docs" / path).relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))}

    assert kinds == {"index.md", "tutorial", "how-to", "reference", "explanation", "adr"}
