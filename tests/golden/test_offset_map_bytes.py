"""The text beside a committed offset, character by character. Never regenerated to pass: a worker of another release reads it."""

from __future__ import annotations

import pytest

from choreo.core.offset_map import Begun, OffsetMap, handler_number, read_map, write_map

TOPIC_ID = bytes(range(16))
CHARGE, BOOK = handler_number("charge-card"), handler_number("book-payment")

GOLDEN = {
    "nothing received": (
        OffsetMap(TOPIC_ID, 1842, 0, 1842, 1842),
        "choreo1:yOh1wQABAgMEBQYHCAkKCwwNDg+yDgAAAAAAAA==",
    ),
    "a run that has begun": (
        OffsetMap(TOPIC_ID, 1842, 1, 2342, 1842),
        "choreo1:WvR/CAABAgMEBQYHCAkKCwwNDg+yDgAB9AMAAAA=",
    ),
    "two handlers, attempts, gaps": (
        OffsetMap(
            TOPIC_ID,
            1842,
            1,
            1842,
            1900,
            tuple(sorted((CHARGE, BOOK))),
            {1842: {CHARGE: Begun(2), BOOK: None}, 1843: None, 1850: {CHARGE: Begun(1)}, 1899: {BOOK: Begun(3, 1)}},
        ),
        "choreo1:G9/PDwABAgMEBQYHCAkKCwwNDg+yDgABADoCEH06dt3FRqMEAQMABQANAgNhAQgB",
    ),
    "no room for entries": (
        OffsetMap(TOPIC_ID, 5_000_000_000, 300, 5_000_000_007, None, (CHARGE,), {5_000_000_003: {CHARGE: Begun(1, 2)}}),
        "choreo1:phwztQABAgMEBQYHCAkKCwwNDg+A5JfQEgGsAgcB3cVGowEHAQQC",
    ),
}


def test_handlers_are_numbered_by_the_crc_of_their_names() -> None:
    assert (CHARGE, BOOK) == (0xDDC546A3, 0x107D3A76)


@pytest.mark.parametrize("name", GOLDEN)
def test_a_map_is_written_as_ever(name: str) -> None:
    found, text = GOLDEN[name]

    assert write_map(found) == text


@pytest.mark.parametrize("name", GOLDEN)
def test_a_map_is_read_as_ever(name: str) -> None:
    found, text = GOLDEN[name]

    assert read_map(text, topic_id=TOPIC_ID, offset=found.offset) == found
