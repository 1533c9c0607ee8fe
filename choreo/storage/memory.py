"""Claims in memory: for tests, and for a first try. They are gone with the process."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Sequence
from itertools import islice

from choreo.errors import StoreError
from choreo.store import Claim


class MemoryStore:
    """See `choreo.store.Store`. ``MemoryStore(shared_with=other)`` keeps its claims where `other` does, as two members on one
    database do, or one member before and after a restart; such stores may be used from different threads.
    """

    def __init__(self, *, shared_with: MemoryStore | None = None) -> None:
        # By group and claim: the payload's hash, and when it was made (monotonic seconds). The oldest stand first.
        self._claims: dict[tuple[str, Claim], tuple[bytes, float]] = shared_with._claims if shared_with is not None else {}
        self._lock: threading.Lock = shared_with._lock if shared_with is not None else threading.Lock()
        self._group: str | None = None
        self._failure: StoreError | None = None
        self._failures_left = 0

    def fail(self, error: StoreError, times: int = 1) -> None:
        """The next `times` calls raise `error`, and write nothing."""
        with self._lock:
            self._failure, self._failures_left = error, times

    def open(self, group: str) -> None:
        if self._group is None:
            self._group = group

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        with self._lock:
            group = self._ready()
            return {claim for claim in claims if (group, claim) in self._claims}

    def claim(self, claims: Sequence[Claim], payloads: Sequence[bytes] = ()) -> set[Claim]:
        with self._lock:
            group = self._ready()
            already = {claim for claim in claims if (group, claim) in self._claims}
            now_s = time.monotonic()
            for claim, payload in zip(claims, payloads or [b""] * len(claims), strict=True):
                self._claims.setdefault((group, claim), (payload, now_s))
            return already

    def payloads(self, claims: Collection[Claim]) -> dict[Claim, bytes]:
        with self._lock:
            group = self._ready()
            return {claim: self._claims[group, claim][0] for claim in claims if (group, claim) in self._claims}

    def delete_older(self, age_s: float, limit: int) -> int:
        with self._lock:
            group = self._ready()
            made_by_s = time.monotonic() - age_s
            of_the_group = (key for key, (_, made_s) in self._claims.items() if key[0] == group and made_s <= made_by_s)
            old = list(islice(of_the_group, limit))
            for key in old:
                del self._claims[key]
            return len(old)

    def _ready(self) -> str:
        if self._group is None:
            raise StoreError("the store in memory is not open; call open(group) first, and not after close()", retriable=False)
        if self._failure is not None and self._failures_left > 0:
            self._failures_left -= 1
            raise self._failure
        return self._group

    def describe(self) -> str:
        return "in memory, gone with the process"

    def close(self) -> None:
        self._group = None
