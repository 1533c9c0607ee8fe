"""What MODULE:NAME may be, and what a wrong one is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from choreo.cli.loading import find_target, load_service
from choreo.errors import ConfigurationError
from tests.unit.cli_desk import DESK, choreo


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHOREO_BOOTSTRAP", "CHOREO_TOPIC_PREFIX"):
        monkeypatch.delenv(name, raising=False)


def test_a_function_that_returns_a_service_is_called() -> None:
    assert load_service(DESK).name == "desk"


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("desk", "'desk': say MODULE:NAME, for example shop.payments.service:payments"),
        (":desk", "say MODULE:NAME"),
        ("tests/unit/cli_desk.py:desk", "is a file; say its module: tests.unit.cli_desk:desk"),
        ("tests.unit.cli_dsk:desk", "no module 'tests.unit.cli_dsk' (looked in"),
        ("nowhere.at.all:desk", "no module 'nowhere' (looked in"),
        ("tests.unit.cli_desk:dsk", "tests.unit.cli_desk has no 'dsk'; did you mean 'desk'?"),
        ("tests.unit.cli_desk:not_a_service", "is a int, not a Service"),
        ("tests.unit.cli_desk:ChargeCard", "not a Service; name a Service, or a function that returns one"),
        ("tests.unit.cli_desk:needs", "can't be called without arguments: missing a required argument: 'argument'"),
        ("tests.unit.cli_desk:breaks", "raised RuntimeError: no gateway configured (cli_desk.py:"),
        ("tests.unit.cli_desk:too_late", "is an 'async def'"),
        ("tests.unit.cli_desk:answers", "returned a int, not a Service"),
    ],
)
def test_a_wrong_target_is_told_what_to_write(target: str, told: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_service(target)

    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import nowhere_to_be_found\n", "imports 'nowhere_to_be_found', which is not there (broken_module.py:1)"),
        ("\n\n1 / 0\n", "importing broken_module: ZeroDivisionError: division by zero (broken_module.py:3)"),
        ("def f(:\n", "importing broken_module: SyntaxError"),
        ("from choreo import Service\ns = Service('Not A Name')\n", "service name 'Not A Name'"),
    ],
)
def test_a_module_that_breaks_is_told_where(code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_module.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "broken_module", raising=False)

    with pytest.raises(ConfigurationError) as caught:
        load_service("broken_module:s")

    assert told in str(caught.value)


def test_the_working_directory_is_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_cwd.py").write_text("from choreo import Service\nshop = Service('shop')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    assert load_service("module_of_cwd:shop").name == "shop"


def test_a_plain_name_needs_no_code() -> None:
    target = find_target("payments", {})

    assert (target.name, target.words) == ("payments", "payments")
    assert target.names("payments.dlq") == "payments.dlq"


def test_words_mean_the_same_service_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHOREO_TOPIC_PREFIX", "t1-")

    assert find_target("payments", {"bootstrap": "kafka:9092"}).words == "payments --bootstrap kafka:9092"
    assert find_target("payments", {"topic_prefix": "t2-"}).words == "payments --topic-prefix t2-"
    assert find_target(DESK, {}).code_words == DESK
    assert find_target("tests.unit.cli_desk:elsewhere", {}).words == "tests.unit.cli_desk:elsewhere"
    assert find_target("payments", {}).names("payments.dlq") == "t1-payments.dlq"


def test_a_wrong_target_is_one_line_and_exit_2() -> None:
    said = choreo("config", "nowhere.at.all:desk")

    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith("error  no module 'nowhere'")
    assert said.err.count("\n") == 1
