"""The port to a store of claims: has this handler already succeeded with this event?

A claim is the row (service, handler, event id, run): one handler's success with one event. `run` is ``""`` but for a
forced replay, whose run id it is. choreo/testing/conformance.py holds what every store must do.
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

    def open(self, service: str) -> None:
        """Connects, makes or checks the schema, for `service`'s claims. A second call does nothing."""

    def lookup(self, claims: Collection[Claim]) -> set[Claim]:
        """Those of `claims` that are there already. Reads what was committed."""

    def claim(self, claims: Sequence[Claim]) -> set[Claim]:
        """Writes all of `claims` in one transaction, durable when it returns; the set of those that were there already."""

    def describe(self) -> str:
        """One line for the start-up screen: ``SQLite .choreo/payments.db``."""

    def close(self) -> None:
        """Releases everything. A second call does nothing."""
