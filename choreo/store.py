"""The port to a store of claims: has this handler already succeeded with this event? And who makes its tables.

A claim is the row (group, handler, event id, run): one handler's success with one event. `run` is ``""`` but for a forced
replay, whose run id it is. Beside it stands the hash of the payload that succeeded: the same id with another payload is a
handler that emits differently when it runs again. choreo/testing/conformance.py holds what every store must do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable


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

    def delete_older(self, age_s: float, limit: int) -> int:
        """Deletes claims of the group that were made `age_s` seconds ago or earlier, the oldest first, at most `limit`, in one
        transaction; how many. Fewer than `limit`: no more are so old, or another member is at it. The clock that dated the
        claims tells their age: where members share a store, no member's own clock."""

    def describe(self) -> str:
        """One line for the start-up screen: ``SQLite .choreo/payments.db``."""

    def close(self) -> None:
        """Releases everything. A second call does nothing."""


@dataclass(frozen=True, slots=True, order=True)
class Migration:
    """One numbered step of a schema. What was released is never changed: what comes later is another number."""

    version: int
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class SchemaPlan:
    """What stands between the schema that is there and the one this choreo needs. `found` is 0 where there is none;
    `script` is what the store itself would run, transaction and all, and ``""`` where there is nothing to run."""

    where: str
    found: int
    needed: int
    steps: tuple[Migration, ...] = ()
    script: str = ""


@runtime_checkable
class Migrating(Protocol):
    """A store whose tables somebody makes before a service starts, with ``choreo store apply``. Its `open` refuses any schema
    but the one it needs. Both methods block, work on a store that is not open, leave it so, and raise StoreError."""

    def plan_schema(self) -> SchemaPlan:
        """Looks, and writes nothing."""

    def apply_schema(self) -> SchemaPlan:
        """Runs what is missing, all or nothing; `steps` are those that it ran. Of two at once the second waits, and finds
        nothing left to do. A schema that is newer than needed is left alone."""
