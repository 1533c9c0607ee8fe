"""Does a key land where Java's producer puts it?"""

from __future__ import annotations

import pytest

from choreo.testing.conformance import JAVA_PARTITIONS_OF_6
from choreo.testing.murmur2 import murmur2, partition_of

# From org.apache.kafka.common.utils.UtilsTest.testMurmur2, and librdkafka's rdmurmur2.c (the last six, which cover each
# length of the tail).
GOLDEN = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
    b"": 0x106E08D9,
    b"kafka": 0xD067CF64 - 2**32,
    b"giberish123456789": 0x8F552B0C - 2**32,
    b"1234": 0x9FC97B14 - 2**32,
    b"234": 0xE7C009CA - 2**32,
    b"4": 0x5A4B5CA1,
}


@pytest.mark.parametrize(("key", "expected"), GOLDEN.items())
def test_the_hash_is_javas(key: bytes, expected: int) -> None:
    assert murmur2(key) == expected


def test_the_partition_is_the_hash_without_its_sign_modulo_the_partitions() -> None:
    actual = {key: partition_of(key, 6) for key in JAVA_PARTITIONS_OF_6}

    assert actual == JAVA_PARTITIONS_OF_6


def test_with_one_partition_every_key_is_in_it() -> None:
    assert {partition_of(key, 1) for key in GOLDEN} == {0}
