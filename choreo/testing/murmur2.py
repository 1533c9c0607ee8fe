"""Which partition does a key belong to? murmur2 as Java's producer computes it (org.apache.kafka.common.utils.Utils.murmur2)."""

from __future__ import annotations

_SEED = 0x9747B28C
_M = 0x5BD1E995
_R = 24
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """The 32-bit hash as a signed number, like Java's.

    >>> murmur2(b"foobar")
    -790332482
    """
    length = len(data)
    whole = length - length % 4
    h = _SEED ^ length
    for at in range(0, whole, 4):
        k = int.from_bytes(data[at : at + 4], "little") * _M & _MASK
        k = (k ^ k >> _R) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    if whole < length:
        h = (h ^ int.from_bytes(data[whole:], "little")) * _M & _MASK
    h = (h ^ h >> 13) * _M & _MASK
    h ^= h >> 15
    return h - (1 << 32) if h & 0x80000000 else h


def partition_of(key: bytes, partitions: int) -> int:
    """The partition of `key` among `partitions`, as Java's default partitioner and librdkafka's `murmur2_random` choose it."""
    return (murmur2(key) & 0x7FFFFFFF) % partitions
