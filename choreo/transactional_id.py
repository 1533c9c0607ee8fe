"""Under which id does this process make its transactions? One that nobody else has just now, and that a process which died here had.

Whoever opens a transactor ends what the last one with its id has left open. After a crash that is worth much: an open transaction holds
up its partitions' next owner, and everybody who reads committed records, until Kafka gives it up (10 to 20 s). So an id is a seat: a
file that a process has locked as long as it lives, and the kernel lets go of when it dies. The file's place is a part of the id, so that a
copy of it, in another container, is another id.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger("choreo.transactions")
_CHOREO = uuid.UUID("5a1e9ad0-3d0b-4c5f-9f0e-3a6b8c1d2e4f")
MOST = 1_000


@contextmanager
def seat(group: str, directory: Path) -> Iterator[str]:
    """The id for one worker of a group, as long as the block runs. Where nothing can be written a new one each time, which is said."""
    taken: int | None = None
    try:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            taken = _take(directory, group)
        except OSError as error:
            _log.warning(
                "%s: can't keep a transactional.id (%s): after a crash others wait until Kafka gives its transaction up, 10 to 20 s; "
                "set transactional_id, or make the directory writable",
                directory,
                error.strerror or error,
            )
        yield f"{group}-{uuid.uuid4() if taken is None else _id_of(taken)}"
    finally:
        if taken is not None:
            os.close(taken)


def _take(directory: Path, group: str) -> int | None:
    for number in range(1, MOST + 1):
        opened = os.open(directory / f"{group}.transactions.{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(opened)
        else:
            return opened
    return None


def _id_of(opened: int) -> uuid.UUID:
    if os.fstat(opened).st_size == 0:
        os.write(opened, uuid.uuid4().bytes)
    found = os.fstat(opened)
    return uuid.uuid5(_CHOREO, f"{os.pread(opened, 16, 0).hex()}|{socket.gethostname()}|{found.st_dev}|{found.st_ino}")
