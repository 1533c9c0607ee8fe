"""Is my supervisor still there? The worker's end of the line between them, and what the worker says on it.

The supervisor holds the other end of a socket pair. A worker reports on it once it has its partitions; and it reads: the end
of the stream means that the supervisor is gone, by whatever means (kill -9 included), and the worker drains and ends as if it
had been asked to. A worker is a process of its own that was spawned, never forked after a client exists (TRAPS 24, 60).
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import MutableMapping

import msgspec

WORKER = "CHOREO_WORKER"
STATUS = "CHOREO_STATUS"
LINE_BYTES = 4096


class Ready(msgspec.Struct, frozen=True):
    """A worker has joined: how long that took, the partitions it has, and how many there are."""

    took_s: float
    partitions: int
    of: int


class Lifeline:
    """Owner: the worker's main thread; a daemon thread waits for the supervisor's end. One a process."""

    def __init__(self, line: socket.socket, number: int, workers: int) -> None:
        self._line = line
        self.number = number
        self.workers = workers

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> Lifeline | None:
        """The line this process was started with; None when no supervisor started it. Takes it out of `environ`: it is not
        for the processes that this one starts."""
        told, descriptor = environ.pop(WORKER, None), environ.pop(STATUS, None)
        if told is None or descriptor is None:
            return None
        number, _, workers = told.partition("/")
        line = socket.socket(fileno=int(descriptor))
        line.set_inheritable(False)
        return cls(line, int(number), int(workers))

    def watch(self, grace_s: float) -> None:
        """From now on this process drains when its supervisor is gone, and has ended `grace_s` seconds later."""

        def wait() -> None:
            while self._alive():
                pass
            orphaned(grace_s)

        threading.Thread(target=wait, name="choreo-lifeline", daemon=True).start()

    def _alive(self) -> bool:
        try:
            return bool(self._line.recv(LINE_BYTES))
        except OSError:
            return False

    def report(self, ready: Ready) -> None:
        """Says that this worker has joined. The supervisor may be gone by now, which is `watch`'s business."""
        try:
            self._line.sendall(msgspec.json.encode(ready) + b"\n")
        except OSError:
            return


def orphaned(grace_s: float) -> None:
    """The supervisor is gone: asks this process to drain, and ends it when that takes too long."""
    os.write(2, b"choreo: the supervisor is gone; this worker drains and ends\n")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    # Nothing is lost: what has not settled was not committed.
    os._exit(1)
