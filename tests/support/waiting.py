"""Is it so yet? Waiting for a condition with a deadline, instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_for(condition: Callable[[], T], what: str, *, deadline_s: float, every_s: float = 0.05) -> T:
    """The first true answer of `condition`; TimeoutError that says `what` and the last answer after `deadline_s`."""
    ends_at = time.monotonic() + deadline_s
    while not (answer := condition()):
        if time.monotonic() >= ends_at:
            raise TimeoutError(f"not within {deadline_s:g} s: {what}; the last answer was {answer!r}")
        time.sleep(every_s)
    return answer
