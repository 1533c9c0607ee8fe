"""Which shards of an outbox has a relay now? The same answer for every database: its fair share, what it has first."""

from __future__ import annotations

from collections.abc import Mapping

from choreo.store import SHARDS


def divided(relay: str, holders: Mapping[int, str], relays: int) -> frozenset[int]:
    """The shards of `relay`, where `holders` have those whose leases run, its own among them, and `relays` are there, itself included.

    Rounded up, so that all are taken; a relay that has more lets the last ones go, and the others find them free.
    """
    share = -(-SHARDS // max(1, relays))
    own = sorted(shard for shard, holder in holders.items() if holder == relay)
    free = [shard for shard in range(SHARDS) if shard not in holders]
    return frozenset([*own, *free][:share])
