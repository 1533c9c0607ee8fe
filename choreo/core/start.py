"""Where does a partition without a committed offset begin? Invariant 8, pure.

group never ran here -> the start policy; the topic grew -> from the beginning; ran before -> stop and say so, for the
offsets were lost (expired, deleted) and starting anywhere would skip or repeat events silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from choreo.record import TopicPartition


class Begin(msgspec.Struct, frozen=True):
    """Begin here: by the start policy, or at the beginning."""

    at: Literal["policy", "beginning"]


class OffsetsLost(msgspec.Struct, frozen=True):
    """It was read before, and its committed offset is gone."""

    partition: TopicPartition


def decide_start(
    partition: TopicPartition, partitions_at_first: Mapping[TopicPartition, int], *, accept_lost_offsets: bool
) -> Begin | OffsetsLost:
    """`partitions_at_first`: for each partition that was ever read, how many its topic had when that began."""
    if partition in partitions_at_first:
        return Begin("policy") if accept_lost_offsets else OffsetsLost(partition)
    known = [count for other, count in partitions_at_first.items() if other.topic == partition.topic]
    if known and partition.partition >= min(known):
        return Begin("beginning")
    return Begin("policy")
