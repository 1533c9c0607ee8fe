"""Would this text end the transaction that it runs in? Looks at SQL as PostgreSQL reads it: statement by statement, past strings,
quoted names, comments and dollar quotes.

It guards against what a handler writes by mistake. What gets past it is found afterwards: the savepoint is gone then.
"""

from __future__ import annotations

import re
from functools import lru_cache

SAVEPOINT = "choreo_delivery"
"""What choreo's own savepoint is called; no handler may name it."""

_SUSPECT = re.compile(rf"\b(?:begin|start|commit|end|rollback|abort|prepare|discard|{SAVEPOINT})\b", re.IGNORECASE)
_WORDS = re.compile(r"[A-Za-z_]+")
# What is no part of a statement's first words: white space, comments, empty statements. What may hold a `;` that ends nothing.
_SKIPPED = re.compile(
    r"""
      '(?:[^']|'')*'                        # a string; with a backslash before its end it is an E string, or ends later: harmless here
    | "(?:[^"]|"")*"                        # a quoted name
    | \$(?P<tag>[A-Za-z_\x80-\uffff][\w\x80-\uffff]*|)\$.*?\$(?P=tag)\$
    | --[^\n]*
    | /\*.*?\*/
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"(?<![A-Za-z0-9_])[eE]'(?:[^'\\]|\\.|'')*'", re.DOTALL)


@lru_cache(maxsize=1024)
def forbidden(text: str) -> str | None:
    """The command in `text` that would end or begin a transaction, as it would be written: ``COMMIT``; None for a harmless text."""
    if not _SUSPECT.search(text):
        return None
    bare = _SKIPPED.sub(_blank, _ESCAPED.sub(" '' ", text))
    if re.search(rf"\b{SAVEPOINT}\b", bare, re.IGNORECASE) or f'"{SAVEPOINT}"' in text:
        return f"the savepoint {SAVEPOINT}"
    for statement in bare.split(";"):
        command = _ending(_WORDS.findall(statement)[:4])
        if command is not None:
            return command
    return None


def _blank(found: re.Match[str]) -> str:
    # A quoted name or a string stays a word of its own, so that what follows it doesn't become the first word.
    return " _ " if found[0][0] in "'\"$" else " "


def _ending(words: list[str]) -> str | None:
    first, *more = [word.upper() for word in words] or [""]
    if first == "ROLLBACK" and (more[:1] == ["TO"] or (more[:1] in (["WORK"], ["TRANSACTION"]) and more[1:2] == ["TO"])):
        return None  # to a savepoint of the handler's own
    if first in ("BEGIN", "COMMIT", "END", "ROLLBACK", "ABORT", "DISCARD"):
        return first
    if (first, more[:1]) in (("START", ["TRANSACTION"]), ("PREPARE", ["TRANSACTION"])):
        return f"{first} TRANSACTION"
    return None
