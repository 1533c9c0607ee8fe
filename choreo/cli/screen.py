"""How do facts look on a terminal? Consoles, tables, times, sparklines; and JSON, for those who read with programs.

Facts go to stdout, what happened on the way to stderr. Colour never carries meaning alone. What strangers wrote (keys, error
messages, payloads) is shown through `safe`, which leaves no control character in it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
import orjson
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from choreo.errors import printable

PIPED_COLUMNS = 160
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
    right: Sequence[str] = (),
    whole: Sequence[str] = (),
    cut: Sequence[str] = (),
) -> Table:
    """A table without lines. Columns named in `right` are aligned to the right, those in `whole` are never broken, those in
    `cut` stay on one line and lose their end; the others are broken where they must be."""
    made = Table(box=None, show_header=True, header_style="dim", padding=(0, 2, 0, 0), pad_edge=False)
    for at, heading in enumerate(headings):
        widest = max((cell_len(row[at]) for row in rows), default=0)
        made.add_column(
            heading,
            justify="right" if heading in right else "left",
            overflow="ellipsis" if heading in cut else "fold",
            no_wrap=heading in cut or heading in whole,
            # rich takes from every column when there is too little room, also from one that must not wrap.
            min_width=max(widest, cell_len(heading)) if heading in whole else None,
        )
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def facts(*rows: tuple[str, object]) -> Table:
    """Name and value, one pair a line."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    made.add_column(style="dim", no_wrap=True, min_width=9)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(name, value if isinstance(value, Table | Text) else Text(str(value)))
    return made


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
