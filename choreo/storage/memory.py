"""Claims in memory: for tests, and for a first try. They are gone with the process."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

from choreo.errors import StoreError
from choreo.store import Claim


class MemoryStore:
    """See `choreo.store.Store`. ``MemoryStore(shared_with=other)`` keeps its claims where `other` does, as two members on one
    database do, or one member before and after a restart; such stores may be used from different threads.
    """

    def __init__(self, *, shared_with: MemoryStore | None = None) -> None:
        self._claims: set[tuple[str, Claim]] = shared_with._claims if shared_with is not None else set()
        self._lock: threading.Lock = shared_with._lock if shared_with is not None else threading.Lock()
        self._service: str | None = None
        self._failure: StoreError | None = None
        self._failures_left = 0

    def fail(self, error: StoreError, times: int = 1) -> None:
        """The next `times` lookups and claims raise `error`, and write nothing."""
        with self._lock:
            self._failure, self._failures_left = error, times

    def open(self, service: str) -> None:
        if self._service is None:
            self._service = service

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        with self._lock:
            service = self._ready()
            return {claim for claim in claims if (service, claim) in self._claims}

    def claim(self, claims: Sequence[Claim]) -> set[Claim]:
        with self._lock:
            service = self._ready()
            already = {claim for claim in claims if (service, claim) in self._claims}
            self._claims.update((service, claim) for claim in claims)
            return already

    def _ready(self) -> str:
        if self._service is None:
            raise StoreError("the store in memory is not open; call open(service) first, and not after close()", retriable=False)
        if self._failure is not None and self._failures_left > 0:
            self._failures_left -= 1
            raise self._failure
        return self._service

    def describe(self) -> str:
        return "in memory, gone with the process"

    def close(self) -> None:
        self._service = None
