"""What every command shares: exit codes, one line for an error, and log lines that don't repeat themselves."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from choreo.cli.log_lines import Seldom
from choreo.cli.main import exit_code
from choreo.errors import BrokerError, ChoreoError, ConfigurationError, DecodeError, PermanentError, StateError, StoreError
from choreo.service import choreo_version
from tests.unit.cli_desk import choreo


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("no module"), 2),
        (BrokerError("refused", code="_TRANSPORT"), 4),
        (BrokerError("wrong password", code="_AUTHENTICATION", retriable=False), 4),
        (BrokerError("too large", code="MSG_SIZE_TOO_LARGE", retriable=False), 1),
        (BrokerError("offsets are gone", code="LOST_OFFSETS", retriable=False), 1),
        (StoreError("locked"), 4),
        (DecodeError("value", "not JSON"), 1),
        (PermanentError("no"), 1),
        (StateError("impossible"), 1),
    ],
)
def test_an_error_has_the_exit_code_of_who_must_act(error: ChoreoError, code: int) -> None:
    assert exit_code(error) == code


def test_the_version_is_printed() -> None:
    said = choreo("--version")

    assert (said.code, said.out) == (0, f"choreo {choreo_version()}\n")


def test_every_command_is_listed_and_completion_can_be_installed() -> None:
    said = choreo("--help")

    assert said.code == 0
    for word in ("run", "config", "publish", "dlq", "replay", "topics", "--install-completion"):
        assert word in said.out


@pytest.mark.parametrize(
    "words", [["dlq", "ls"], ["nonsense"], ["replay", "desk", "--no-such-option"], ["topics", "plan", "x:y", "--partitions", "0"]]
)
def test_wrong_usage_is_exit_2(words: list[str]) -> None:
    said = choreo(*words)

    assert (said.code, said.out) == (2, "")


def test_python_m_choreo_is_choreo() -> None:
    ended = subprocess.run([sys.executable, "-m", "choreo", "--version"], capture_output=True, text=True, timeout=60, check=True)

    assert ended.stdout == f"choreo {choreo_version()}\n"


def line(name: str, text: str, at_s: float) -> logging.LogRecord:
    record = logging.LogRecord(name, logging.ERROR, __file__, 1, text, (), None)
    record.created = at_s
    return record


def test_the_kafka_client_says_the_same_every_half_minute_at_most() -> None:
    seldom = Seldom()

    passed = [
        seldom.filter(line("choreo.kafka", "Connect to 127.0.0.1:1 failed (after 0ms)", 1_000.0)),
        seldom.filter(line("choreo.kafka", "Connect to 127.0.0.1:1 failed (after 3ms)", 1_000.1)),
        seldom.filter(line("choreo.kafka", "something else", 1_000.2)),
        seldom.filter(line("choreo.kafka", "Connect to 127.0.0.1:1 failed (after 1ms)", 1_031.0)),
    ]

    assert passed == [True, False, True, True]


def test_other_lines_are_all_let_through() -> None:
    seldom = Seldom()

    assert all(seldom.filter(line("shop.gateway", "refused", 1_000.0)) for _ in range(3))
