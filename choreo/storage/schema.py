"""Which numbered migrations does a store have, and which of them are still to run?

They are SQL files beside this module, ``migrations/<database>/0001_claims.sql``, numbered from 1 without gaps. A released one
never changes: tests/golden/test_migrations.py holds its hash.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Literal

from choreo.errors import StateError
from choreo.store import Migration

_FILE = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


@cache
def migrations(database: Literal["postgres", "sqlite"]) -> tuple[Migration, ...]:
    """All of them, in the order of their numbers."""
    folder = files("choreo.storage").joinpath("migrations", database)
    found = sorted(
        Migration(int(match[1]), file.name.removesuffix(".sql"), file.read_text(encoding="utf-8"))
        for file in folder.iterdir()
        if (match := _FILE.fullmatch(file.name))
    )
    if not found or [step.version for step in found] != list(range(1, len(found) + 1)):
        raise StateError(f"migrations of {database}: {[step.name for step in found]} are not numbered from 1 without gaps")
    return tuple(found)


def still_to_run(steps: tuple[Migration, ...], version: int) -> tuple[Migration, ...]:
    """Those that a schema of this version lacks."""
    return tuple(step for step in steps if step.version > version)
