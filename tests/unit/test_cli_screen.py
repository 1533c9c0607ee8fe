"""How facts look: times, tables, sparklines, and that nothing of a stranger acts on the terminal."""

from __future__ import annotations

import io
import sys
from datetime import UTC, datetime, timedelta

import pytest

from choreo.cli import screen
from choreo.cli.letter_screen import MAX_PAYLOAD_CHARS, shown_value

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 ms"),
        (0.85, "850 ms"),
        (1.4, "1.4 s"),
        (42, "42 s"),
        (96, "1 min 36 s"),
        (15 * 60, "15 min"),
        (2 * 3600 + 14 * 60, "2 h 14 min"),
        (13 * 86_400 + 21 * 3600, "13 d 21 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float, text: str) -> None:
    assert screen.duration(seconds) == text


def test_a_time_of_another_day_has_its_date() -> None:
    assert screen.clock(NOON, NOON) == "12:00:00"
    assert screen.clock(NOON - timedelta(days=1), NOON) == "11-21 12:00"


def test_columns_are_aligned_and_no_line_ends_in_blanks() -> None:
    lines = screen.laid_out([("name", "n"), ("a", "1,000")], 80, right=[1])

    assert lines == ["name      n", "a     1,000"]


def test_where_there_is_too_little_room_columns_are_broken_or_cut_and_the_others_stay_whole() -> None:
    row = ("0198c2d4-7b1e-7c3a", "the gateway does not know the card", "the second text that is long")

    lines = screen.laid_out([row], 50, broken=[1], cut=[2])

    assert lines[0].startswith("0198c2d4-7b1e-7c3a  the gateway")
    assert "…" in lines[0]
    assert len(lines) > 1
    assert all(len(line) <= 50 for line in lines)


def test_a_sparkline_is_relative_to_its_largest_count() -> None:
    assert screen.sparkline([0, 1, 4, 8]) == "▁▂▅█"
    assert screen.sparkline([0, 0]) == "▁▁"


def test_a_sparkline_is_plain_where_stdout_has_no_other_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))

    assert screen.sparkline([0, 8]) == "_#"


def test_what_strangers_wrote_can_not_act_on_the_terminal() -> None:
    assert screen.safe("\x1b[31mred\nline") == "\\x1b[31mred\\nline"
    assert screen.safe(None) == "-"
    assert len(screen.safe("x" * 1_000, 60)) == 60


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "(null: a tombstone)"),
        (b"", "(empty)"),
        (b'{"a":1}', '{\n  "a": 1\n}'),
        (b"plain text", "plain text"),
        (b"\xff\x00", "ff 00"),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
    ],
)
def test_a_value_is_shown_as_what_it_is(value: bytes | None, text: str) -> None:
    assert shown_value(value) == text


def test_a_long_value_is_cut() -> None:
    shown = shown_value(b'"' + b"x" * 3_000_000 + b'"')

    assert len(shown) < MAX_PAYLOAD_CHARS + 100
    assert "3,000,002 bytes" in shown


def test_json_nested_too_deep_is_shown_as_text() -> None:
    assert shown_value(b"[" * 10_000).startswith("[[[[")
