"""How do facts look on a terminal? Consoles, tables, times, sparklines; and JSON, for those who read with programs.

Facts go to stdout, what happened on the way to stderr. Colour never carries meaning alone. What strangers wrote (keys, error
messages, payloads) is shown through `safe`, which leaves no control character in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

import msgspec
import orjson
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from choreo.errors import printable

PIPED_COLUMNS = 160
GAP = 2
NAME_COLUMNS = 9
LEAST_COLUMNS = 12
"""A column that may be broken or cut keeps so much."""
_BARS = "▁▂▃▄▅▆▇█"
_PLAIN_BARS = "_.-:=+*#"


def out() -> Console:
    """For facts."""
    return _console(stderr=False)


def err() -> Console:
    """For what happens on the way: errors, progress, questions."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    # Where there is no terminal there is no width to fit; COLUMNS says otherwise.
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPED_COLUMNS
    return Console(file=stream, highlight=False, markup=False, emoji=False, width=width)


def say(text: str) -> None:
    """One line to stdout, as it is: not wrapped, so that commands in it can be copied."""
    out().print(Text(text), soft_wrap=True)


def tell(text: str) -> None:
    """One line to stderr."""
    err().print(Text(text), soft_wrap=True)


def complain(text: object) -> None:
    """The one line that says what is wrong."""
    console = err()
    console.print(Text.assemble(("error", "bold red"), "  ", str(text)), soft_wrap=True)


def print_json(value: object) -> None:
    """The facts for a program: one JSON document, nothing else."""
    sys.stdout.write(orjson.dumps(msgspec.to_builtins(value, enc_hook=str), option=orjson.OPT_INDENT_2).decode() + "\n")


def table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    whole: Collection[str] = (),
    cut: Collection[str] = (),
) -> Text:
    """A table without lines, for `show`. Where there is too little room, columns in `cut` lose their end and the others
    go on below, but never those in `whole`: what is in them can be copied. `right` are aligned to the right."""
    cuts, rights = ([at for at, heading in enumerate(headings) if heading in names] for names in (cut, right))
    broken = [at for at, heading in enumerate(headings) if heading not in whole and heading not in cut]
    head, *lines = laid_out([headings, *rows], out().width, right=rights, broken=broken, cut=cuts)
    return Text.assemble((head, "dim"), *(f"\n{line}" for line in lines))


def show(text: Text) -> None:
    """Prints lines that are laid out already: a terminal that is too narrow breaks them, we don't."""
    out().print(text, soft_wrap=True)


def show_facts(rows: Sequence[tuple[str, str | Sequence[str]]]) -> None:
    """Prints name and value, one pair a line; a value of several lines is not broken further."""
    console = out()
    indent = max(NAME_COLUMNS, *(cell_len(name) for name, _ in rows)) + GAP if rows else 0
    for name, value in rows:
        lines = _wrapped(value, console.width - indent) if isinstance(value, str) else value
        for at, line in enumerate(lines):
            shown = set_cell_size(name if at == 0 else "", indent)
            console.print(Text.assemble((shown, "dim"), line), soft_wrap=True)


def laid_out(
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Collection[int] = (),
    broken: Collection[int] = (),
    cut: Collection[int] = (),
) -> list[str]:
    """The rows as lines of aligned columns, at most `width` wide if the columns in `broken` and `cut` leave room for that."""
    if not rows:
        return []
    widths = [max(cell_len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for _ in range(sum(widths) + GAP * (len(widths) - 1) - width):
        widest = max({*broken, *cut}, key=lambda at: widths[at], default=0)
        if widths[widest] > LEAST_COLUMNS:
            widths[widest] -= 1
    lines: list[str] = []
    for row in rows:
        cells = [_cell(text, widths[at], at in broken, at in cut) for at, text in enumerate(row)]
        for nth in range(max(map(len, cells))):
            parts = [_padded(cell[nth] if nth < len(cell) else "", widths[at], to_the_right=at in right) for at, cell in enumerate(cells)]
            lines.append((" " * GAP).join(parts).rstrip())
    return lines


def _cell(text: str, width: int, broken: bool, cut: bool) -> list[str]:
    if cell_len(text) <= width or not (broken or cut):
        return [text]
    if broken:
        return _wrapped(text, width)
    shown = Text(text)
    shown.truncate(width, overflow="ellipsis")
    return [shown.plain]


def _wrapped(text: str, width: int) -> list[str]:
    return [line.plain.rstrip() for line in Text(text).wrap(out(), max(width, LEAST_COLUMNS))] or [""]


def _padded(text: str, width: int, *, to_the_right: bool) -> str:
    return " " * max(0, width - cell_len(text)) + text if to_the_right else text + " " * max(0, width - cell_len(text))


def safe(text: str | None, max_chars: int = 200) -> str:
    """What a stranger wrote, as it may be shown; ``-`` for nothing."""
    return "-" if text is None else printable(text, max_chars)


def many(count: int, noun: str) -> str:
    """``1 letter``, ``46 letters``, ``1,204 letters``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Two units at most: ``850 ms``, ``1.4 s``, ``42 s``, ``2 h 14 min``, ``13 d 21 h``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s" if minutes < 10 else f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def clock(at: datetime, now: datetime) -> str:
    """The time of day, UTC, with the date unless that is today."""
    at = at.astimezone(UTC)
    return at.strftime("%H:%M:%S") if at.date() == now.astimezone(UTC).date() else at.strftime("%m-%d %H:%M")


def when(at: datetime) -> str:
    """Date and time to the millisecond, UTC."""
    return at.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


def sparkline(counts: Sequence[int]) -> str:
    """A bar for each count, relative to the largest; zero is the lowest bar. Plain characters where stdout has no others."""
    bars = _BARS if can_show(_BARS) else _PLAIN_BARS
    most = max(counts, default=0)
    if most == 0:
        return bars[0] * len(counts)
    return "".join(bars[0] if count == 0 else bars[max(1, round(count / most * (len(bars) - 1)))] for count in counts)


def can_show(text: str) -> bool:
    """Whether stdout has these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
