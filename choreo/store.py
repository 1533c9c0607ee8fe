"""The port to a store of claims: has this handler already succeeded with this event?

A claim is the row (group, handler, event id, run): one handler's success with one event. `run` is ``""`` but for a forced
replay, whose run id it is. Beside it stands the hash of the payload that succeeded: the same id with another payload is a
handler that emits differently when it runs again. choreo/testing/conformance.py holds what every store must do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol


class Claim(NamedTuple):
    """One success of one handler with one event."""

    handler: str
    event_id: str
    run: str = ""


class Store(Protocol):
    """Where claims are kept. All methods block; choreo calls them from one thread of its own, never two at once.

    Every method raises StoreError: `retriable` when waiting may help (locked, disk full), else the store is unusable.
    """

    def open(self, group: str) -> None:
        """Connects, makes or checks the schema, for the claims of a consumer group. A second call does nothing."""

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        """Those of `claims` that are there already. Reads what was committed."""

    def claim(self, claims: Sequence[Claim], payloads: Sequence[bytes] = ()) -> set[Claim]:
        """Writes all of `claims` in one transaction, durable when it returns; the set of those that were there already, which
        stay as they are. `payloads`: a hash for each claim, of at most 32 bytes; none: not known."""

    def payloads(self, claims: Collection[Claim]) -> dict[Claim, bytes]:
        """The hashes that stand beside those of `claims` that are there; ``b""`` where none is known."""

    def describe(self) -> str:
        """One line for the start-up screen: ``SQLite .choreo/payments.db``."""

    def close(self) -> None:
        """Releases everything. A second call does nothing."""
