"""Where shall the process break? Named points that tests make fail; a no-op unless CHOREO_FAILPOINT is set.

``CHOREO_FAILPOINT=after_store_commit=kill9`` or ``name=action[:number]``, several separated by commas: the action
happens at the `number`-th hit (default 1). Actions: kill9, stop (SIGSTOP), sleep (`number` seconds, at each hit), raise, exit.
The names are part of what the crash tests rely on; see NAMES.
"""

from __future__ import annotations

import os
import signal
import time
from math import isfinite

from choreo.errors import ConfigurationError, StateError

NAMES = frozenset(
    {
        "after_poll",
        "before_handler",
        "after_handler",
        "after_emits_ack",
        "before_store_tx",
        "in_store_tx",
        "after_store_commit",
        "after_outbox_commit",
        "after_outbox_ack",
        "before_kafka_tx",
        "in_kafka_tx",
        "after_kafka_commit",
        "after_store_offsets",
        "after_commit",
        "after_dlq_ack",
        "after_letter_state",
        "during_backoff",
        "after_replay_request",
        "after_replay_ack",
        "in_drain",
    }
)
ACTIONS = frozenset({"kill9", "stop", "sleep", "raise", "exit"})


class _Point:
    def __init__(self, action: str, number: float) -> None:
        self.action = action
        self.number = number
        self.hits = 0


def _parse(text: str) -> dict[str, _Point]:
    points: dict[str, _Point] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, rest = part.partition("=")
        action, _, written = rest.partition(":")
        number = _number(action, written or "1")
        if name not in NAMES or action not in ACTIONS or number is None:
            raise ConfigurationError(
                f"CHOREO_FAILPOINT: {part!r}; use NAME=ACTION[:NUMBER] with a name of {sorted(NAMES)} and an action of {sorted(ACTIONS)}"
            )
        if name in points:
            raise ConfigurationError(f"CHOREO_FAILPOINT: {name!r} is there twice; a point has one action")
        points[name] = _Point(action, number)
    return points


def _number(action: str, written: str) -> float | None:
    """Seconds for `sleep`, else which hit, counted from 1; None when it is neither."""
    try:
        number = float(written)
    except ValueError:
        return None
    usable = isfinite(number) and (number >= 0 if action == "sleep" else number >= 1 and number.is_integer())
    return number if usable else None


_points = _parse(os.environ.get("CHOREO_FAILPOINT", ""))
ACTIVE = bool(_points)
"""Whether any point is set. The hot path asks this before it calls `hit`."""


def hit(name: str) -> None:
    """Here is the point `name`: does what CHOREO_FAILPOINT says of it, or nothing."""
    point = _points.get(name)
    if point is None:
        return
    if point.action == "sleep":
        time.sleep(point.number)
        return
    point.hits += 1
    if point.hits != int(point.number):
        return
    if point.action == "kill9":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif point.action == "exit":
        os._exit(70)
    else:
        raise StateError(f"failpoint {name}")
