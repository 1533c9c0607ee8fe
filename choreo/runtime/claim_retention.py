"""For how long must claims be kept? For as long as their events can come again: from the topics, as letters, and by replays.

A claim that is deleted before its event is gone lets the event's effect happen twice. An event can be read again for as
long as its topic keeps it, die on its last day, lie in the dlq for as long as that keeps it, and be asked for on its last day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from choreo.broker import TopicInfo

DAY_S = 86_400.0


def kept_s(topic: TopicInfo) -> float:
    """For how long Kafka keeps a record of a topic; `math.inf` where it is kept for ever (as the last of each key of a
    compacted topic), or it may for all we know. Kafka deletes whole segments, so that some records are there for longer, by up to their topic's segment.ms."""
    return math.inf if topic.retention_ms is None or topic.retention_ms < 0 else topic.retention_ms / 1000


def needed_s(consumed: Sequence[TopicInfo], own: Sequence[TopicInfo]) -> float:
    """For how long an event can come again: in the one of the consumed topics that keeps it longest, and then in each of the
    service's own, its dlq and its log of replays; `math.inf`: for ever."""
    return max((kept_s(topic) for topic in consumed), default=0.0) + sum(kept_s(topic) for topic in own)


def too_short(retention_s: float, consumed: Sequence[TopicInfo], own: Sequence[TopicInfo]) -> str | None:
    """What is wrong with keeping claims for `retention_s`, in a sentence; None: nothing."""
    needed = needed_s(consumed, own)
    # For ever is long enough for events that stay for ever.
    if retention_s > needed or retention_s == math.inf:
        return None
    longest = max(consumed, key=kept_s, default=None)
    parts = [f"{topic.name} {_days(kept_s(topic))}" for topic in (*((longest,) if longest else ()), *own)]
    until, most = ("for ever", "for ever") if needed == math.inf else (f"for {_days(needed)}", f"longer than {_days(needed)}")
    return (
        f"claims are kept {_days(retention_s)}, but an event can come again {until} ({' + '.join(parts)}), and would then be"
        f" handled twice; keep claims {most}, or let Kafka keep these topics for a shorter time"
    )


def _days(seconds: float) -> str:
    return "for ever" if seconds == math.inf else f"{round(seconds / DAY_S, 2):,.12g} d"
