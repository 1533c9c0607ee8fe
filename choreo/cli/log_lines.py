"""What does a terminal get of the logs? Lines with the delivery they belong to, on stderr; and no line ten times a second."""

from __future__ import annotations

import logging
import re
import sys
from typing import Literal

from choreo.telemetry.logs import StepFormatter

Level = Literal["debug", "info", "warning", "error"]
EVERY_S = 30.0


def log_to_stderr(level: Level, worker: str = "") -> None:
    """Sets the root logger up; `worker` stands before each line where there are several."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(worker))
    handler.addFilter(Seldom())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class _Lines(StepFormatter):
    def __init__(self, worker: str) -> None:
        super().__init__()
        self._before = f"[{worker}] " if worker else ""

    def format(self, record: logging.LogRecord) -> str:
        return self._before + super().format(record)


class Seldom(logging.Filter):
    """Of lines of the Kafka client that say the same but for their numbers, lets one through every EVERY_S seconds.

    librdkafka reports each attempt to reach a broker that is away, about ten a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith("choreo.kafka"):
            return True
        text = re.sub(r"\d+", "#", record.getMessage())
        if record.created - self._said.get(text, 0.0) < EVERY_S:
            return False
        self._said[text] = record.created
        return True
