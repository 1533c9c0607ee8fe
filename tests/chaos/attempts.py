"""With which attempt was each event handled? One line for each effect, in a file that handlers of all worker processes write to."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path


class AttemptsFile:
    """The file at `path`, made with the first line. A line is written at once, and survives kill -9 of its process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, event_id: str, attempt: int) -> None:
        """Called with each effect. A line is one write at the end of the file, so that those of several processes don't mix."""
        with self.path.open("ab", buffering=0) as file:
            file.write(f"{event_id} {attempt}\n".encode())

    def by_event(self) -> dict[str, list[int]]:
        """The attempts of each event's effects, in the order of the effects."""
        found: dict[str, list[int]] = defaultdict(list)
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            event_id, attempt = line.split()
            found[event_id].append(int(attempt))
        return dict(found)
