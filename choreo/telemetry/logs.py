"""What do the logs say? Constant event names with fields, and the delivery that an ordinary log line belongs to.

Every `logging` call made while a handler runs, in it or below it, carries `choreo_flow`, `choreo_event`,
`choreo_handler` and `choreo_attempt`.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any, Protocol


class Step(Protocol):
    """The delivery under way, as log lines name it; a handler's Context is one."""

    @property
    def flow_id(self) -> str: ...

    @property
    def event_id(self) -> str: ...

    @property
    def handler(self) -> str: ...

    @property
    def attempt(self) -> int: ...


CURRENT: ContextVar[Step | None] = ContextVar("choreo_step", default=None)

_installed = False


def carry_step_on_log_records() -> None:
    """Makes every log record carry the delivery under way. A second call does nothing."""
    global _installed
    if _installed:
        return
    _installed = True
    make = logging.getLogRecordFactory()

    def with_step(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        step = CURRENT.get()
        record.choreo_flow = "" if step is None else step.flow_id
        record.choreo_event = "" if step is None else step.event_id
        record.choreo_handler = "" if step is None else step.handler
        record.choreo_attempt = 0 if step is None else step.attempt
        return record

    logging.setLogRecordFactory(with_step)


class StepFormatter(logging.Formatter):
    """Lines for a terminal: time, level, message, and the delivery where there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s  %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        handler = getattr(record, "choreo_handler", "")
        if handler:
            text += f"  [{handler} event={record.choreo_event} flow={record.choreo_flow} attempt={record.choreo_attempt}]"  # type: ignore[attr-defined]
        return text
