"""What has happened, in numbers? Plain ints that the hot path adds to; instruments read them when they are asked."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Since the worker started. Owner: the event loop; anybody may read.

    Deliveries end as one of handled, duplicates, recovered, dead_lettered. Events without a handler are skipped.
    """

    received: int = 0
    skipped_type: int = 0
    skipped_tombstone: int = 0
    handled: int = 0
    duplicates: int = 0
    recovered: int = 0
    dead_lettered: int = 0
    retried: int = 0
    stuck: int = 0
    emitted: int = 0
    replayed: int = 0
    late: int = 0
    forged_headers: int = 0
    claimed_elsewhere: int = 0
    id_collisions: int = 0
    broker_errors: int = 0
    store_errors: int = 0
    bursts_lost: int = 0
    relayed: int = 0
    set_aside: int = 0
    transactions: int = 0
    aborted: int = 0
    rewinds: int = 0
    commits: int = 0
    commit_errors: int = 0
    rebalances: int = 0
    restored: int = 0
    maps_ignored: int = 0
    maps_left_out: int = 0
    crash_loops: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)
