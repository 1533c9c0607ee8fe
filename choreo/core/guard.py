"""Does an event end the process each time it is handled? Invariant 5: what one partition has to know of runs that ended badly.

An attempt counted in memory is forgotten with the process, so an event that ends it would be tried for ever. Therefore
nothing is handed out before Kafka has acknowledged, beside the committed offset, that this run has begun (`unclean` = ends
in a row, this one counted until it ends well) and, after a bad end, up to where events are being handed out (`watched`):

- first bad end: nothing but that. Batches are handed out one acknowledgement after the other for a while.
- second in a row without passing the offset that was recorded (`until`): *suspects*. Up to there an event begins when nothing
  else runs in the process, and nothing begins beside it; that it begins is acknowledged before it is called. One that began
  alone and ended the process `max_attempts` times is not called again but dead-lettered.

Passing `until` ends both. Slow events beside one that ends the process are never counted: only what began alone is.
Guarded by tests/properties/test_guard.py.
"""

from __future__ import annotations

from choreo.core.offset_map import OffsetMap

WARY_BATCHES = 50
"""So many batches after a bad end are acknowledged as watched before they are handed out: more than a commit is ever behind."""
SUSPECTS_FROM = 2
_ALL = 1 << 63


class Guard:
    """Owner: the partition's engine state. Offsets only; who commits and hears of it is the runtime."""

    __slots__ = ("_batches", "_granted", "ended_before", "unclean", "until", "watched")

    def __init__(self, restored: OffsetMap | None) -> None:
        ended = restored.unclean if restored is not None else 0
        if restored is not None and any(
            begun.fatal for entry in restored.unfinished.values() if entry for begun in entry.values() if begun
        ):
            ended = max(ended, SUSPECTS_FROM)  # what has ended processes is not let loose because one run ended well
        self.ended_before = restored.unclean if restored is not None else 0
        """Runs in a row that ended badly before this one."""
        self.unclean = ended + 1
        self.watched = -1
        """Below it events may be begun: goes into every commit."""
        self.until: int | None = None
        """To be passed before the bad ends are forgotten; -1: where the first batch ends. None: there is nothing to pass."""
        self._granted = -1
        self._batches = WARY_BATCHES if ended else 0
        if restored is not None and ended:
            recorded = max(restored.watched, restored.reach or 0)
            self.until = recorded if recorded > restored.offset else -1

    @property
    def suspects(self) -> bool:
        """Whether events of this partition are to be run alone."""
        return self.until is not None and self.unclean > SUSPECTS_FROM

    def may_hand_out(self, first: int, end: int) -> int:
        """Up to which offset (exclusive) records from `first` to `end` (exclusive) may be handed out now; `first`: none of them yet."""
        top = self._top(end)
        return max(first, min(top, self._granted))

    def asks(self, end: int) -> bool:
        """Records up to `end` are there: whether a commit must be acknowledged before more of them may be handed out."""
        if self.until == -1:
            self.until = end
        top = self._top(end)
        if self._granted >= top:
            return False
        self.watched = max(self.watched, top)
        return True

    def _top(self, end: int) -> int:
        return min(end, self.until) if self.suspects and self.until is not None and self.until >= 0 else end

    def acknowledged(self, watched: int) -> None:
        """A commit is acknowledged that said so."""
        if self._granted == _ALL:
            return
        if self._batches:
            if watched > self._granted:
                self._batches -= 1
                self._granted = watched
        else:
            self._granted = _ALL

    def gap(self, first: int) -> None:
        """The next record is at `first`, and everything before it is finished: what stood below `until` is not in the log any more."""
        if self.until is not None and 0 <= self.until <= first:
            self.reached(first)

    def off(self) -> None:
        """Nothing can be recorded of this partition: nothing is waited for."""
        self._granted = _ALL
        self._batches = 0
        self.until = None

    def reached(self, offset: int) -> None:
        """Everything below `offset` is finished."""
        if self.until is not None and 0 <= self.until <= offset:
            self.until = None
            self.unclean = 1

    def ended_well(self) -> None:
        """An orderly end: there is nothing to count any more, unless nothing was handed out: then it told nothing."""
        self.unclean = self.ended_before if self._granted < 0 else 0
        self.until = None
