"""What do choreo's clients do in a child that was forked after they were made? Tried from within a handler (TRAPS 24)."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable
from types import TracebackType
from typing import Any

from choreo import Service
from choreo.runtime.publishing import Publisher

CHILD_DEADLINE_S = 5.0
HUNG = "hung"


class KeptPublisher:
    """A publisher that is open as long as the worker runs. A resource of the service it publishes for."""

    def __init__(self) -> None:
        self.service: Service | None = None
        self.publisher: Publisher | None = None

    def __enter__(self) -> KeptPublisher:
        assert self.service is not None
        self._publishing = self.service.publisher()
        self.publisher = self._publishing.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._publishing.__exit__(kind, error, trace)


def try_in_a_child(kept: KeptPublisher, event: Any) -> dict[str, str]:
    """What became of each use, by its name: ``ok``, the type of the error, or ``hung``."""
    publisher = kept.publisher
    assert publisher is not None
    uses: dict[str, Callable[[], object]] = {
        "publish with a publisher of the parent": lambda: publisher.publish(event),
        "close a publisher of the parent": publisher.close,
    }
    return {name: _in_a_child(use) for name, use in uses.items()}


def _in_a_child(use: Callable[[], object]) -> str:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            use()
            said = "ok"
        except BaseException as error:
            said = type(error).__name__
        os.write(write_end, json.dumps(said).encode())
        os._exit(0)
    os.close(write_end)
    answered, _, _ = select.select([read_end], [], [], CHILD_DEADLINE_S)
    said = json.loads(os.read(read_end, 1000) or '"it ended without a word"') if answered else HUNG
    os.close(read_end)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return str(said)
