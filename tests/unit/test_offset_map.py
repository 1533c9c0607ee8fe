"""What is believed of a text beside an offset, and what isn't."""

from __future__ import annotations

import binascii
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.core.offset_map import (
    MAX_CHARS,
    NO_TOPIC_ID,
    Begun,
    Entry,
    Ignored,
    OffsetMap,
    left_of,
    read_map,
    without_entries,
    write_map,
)
from choreo.errors import StateError

TOPIC_ID = b"0123456789abcdef"
HANDLERS = (7, 0xFFFFFFFF)
MOST_IN_FLIGHT = 1000

begun = st.builds(Begun, st.integers(0, 20), st.integers(0, 5))
entries: st.SearchStrategy[Entry] = st.none() | st.dictionaries(st.sampled_from(HANDLERS), begun | st.none(), min_size=1)


@st.composite
def maps(draw: st.DrawFn) -> OffsetMap:
    offset = draw(st.integers(0, 2**48))
    steps = draw(st.lists(st.integers(0, 300), max_size=12))
    unfinished: dict[int, Entry] = {}
    at = offset - 1
    for step in steps:
        at += 1 + step
        unfinished[at] = draw(entries)
    reach = max(offset, at + 1) + draw(st.integers(0, 1000))
    return OffsetMap(TOPIC_ID, offset, draw(st.integers(0, 99)), offset + draw(st.integers(0, 5000)), reach, HANDLERS, unfinished)


def text_of(body: bytes) -> str:
    return "choreo1:" + binascii.b2a_base64(crc32(body).to_bytes(4, "big") + body, newline=False).decode()


@given(maps())
def test_what_was_written_is_read(found: OffsetMap) -> None:
    assert read_map(write_map(found), topic_id=TOPIC_ID, offset=found.offset) == found


@given(
    st.text()
    | st.text().map("choreo1:".__add__)
    | st.binary().map(text_of)
    | st.binary(min_size=16).map(lambda raw: text_of(raw + b"\x01\x00\x00\x00"))
)
def test_whatever_stands_there_nothing_is_raised(text: str) -> None:
    assert read_map(text, topic_id=TOPIC_ID, offset=1) is None or isinstance(
        read_map(text, topic_id=TOPIC_ID, offset=1), Ignored | OffsetMap
    )


@given(maps(), st.data())
def test_a_text_in_which_one_character_changed_is_not_believed(found: OffsetMap, data: st.DataObject) -> None:
    text = write_map(found)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.sampled_from("Aa0+/=x:")) + text[at + 1 :]

    read = read_map(changed, topic_id=TOPIC_ID, offset=found.offset)

    assert changed == text or isinstance(read, Ignored)


SOME = write_map(OffsetMap(TOPIC_ID, 5, 1, 5, 9, (7,), {5: None, 7: {7: Begun(1)}}))
LATER = "choreo2:AAAA"


@pytest.mark.parametrize(
    ("text", "topic_id", "offset", "why"),
    [
        ("checkpoint=17", TOPIC_ID, 5, "another tool wrote it"),
        (LATER, TOPIC_ID, 5, "a later choreo wrote it"),
        (SOME[:-5], TOPIC_ID, 5, "it is damaged"),
        (SOME, TOPIC_ID, 6, "it was written beside offset 5, not 6: a tool moved or translated the offset"),
        (SOME, b"another-topic-id", 5, "it is about a topic of the same name that was deleted"),
        (SOME, NO_TOPIC_ID, 5, "nobody knows whether it is about this topic or one before it of the same name"),
        (text_of(TOPIC_ID + b"\x05\x00\x01\x00\x04\x00\x01\x20"), TOPIC_ID, 5, "it says what can't be"),
        (text_of(TOPIC_ID + b"\x05\x00\x01\x00\x04\x00\x00\x00"), TOPIC_ID, 5, "it says what can't be"),
    ],
    ids=["foreign", "a later version", "truncated", "moved", "re-created topic", "unknown topic", "beyond the reach", "bytes left over"],
)
def test_a_text_that_does_not_count_says_why(text: str, topic_id: bytes, offset: int, why: str) -> None:
    found = read_map(text, topic_id=topic_id, offset=offset)

    assert isinstance(found, Ignored)
    assert found.why == why


@pytest.mark.parametrize("text", ["", None])
def test_no_text_is_no_map_and_nothing_to_speak_of(text: str | None) -> None:
    assert read_map(text, topic_id=TOPIC_ID, offset=5) is None


def test_a_thousand_in_flight_fit_also_when_all_wait_for_a_retry() -> None:
    fresh: dict[int, Entry] = {number * 20: None for number in range(MOST_IN_FLIGHT)}
    retried: dict[int, Entry] = {number * 20: {7: Begun(2)} for number in range(MOST_IN_FLIGHT)}

    lengths = [len(write_map(OffsetMap(TOPIC_ID, 0, 1, 0, 20_000, (7,), found), limit=1 << 20)) for found in (fresh, retried)]

    assert lengths[0] < lengths[1] <= MAX_CHARS


def test_a_map_that_is_too_long_is_written_without_entries() -> None:
    found = OffsetMap(TOPIC_ID, 0, 2, 9, 200_000, HANDLERS, {number * 200: {7: Begun(1), 0xFFFFFFFF: Begun(1)} for number in range(1000)})

    text = write_map(found)

    assert len(text) < 80
    assert read_map(text, topic_id=TOPIC_ID, offset=0) == without_entries(found)


def test_an_offset_below_the_committed_one_is_a_mistake_of_ours() -> None:
    with pytest.raises(StateError, match="below its offset"):
        write_map(OffsetMap(TOPIC_ID, 5, 1, 5, 9, (), {4: None}))


@pytest.mark.parametrize(
    ("offset", "handler", "left"),
    [
        (5, 7, Begun()),
        (6, 7, None),
        (7, 7, Begun(1)),
        (7, 8, None),
        (7, 9, Begun()),
        (7, 99, Begun()),
        (8, 99, None),
    ],
    ids=["nothing begun", "finished", "begun", "through with it", "not named", "a handler the map doesn't know", "finished for whomever"],
)
def test_what_is_left_of_an_event(offset: int, handler: int, left: Begun | None) -> None:
    found = OffsetMap(TOPIC_ID, 5, 1, 5, 9, (7, 8, 9), {5: None, 7: {7: Begun(1), 8: None}})

    assert left_of(found, offset, handler) == left


def test_a_map_without_entries_still_has_those_that_ended_the_process() -> None:
    found = OffsetMap(TOPIC_ID, 5, 3, 9, 9, (7, 8), {5: None, 6: {7: Begun(1, 2), 8: None}, 7: {7: Begun(1)}})

    short = read_map(write_map(without_entries(found)), topic_id=TOPIC_ID, offset=5)

    assert isinstance(short, OffsetMap)
    assert (short.reach, short.unfinished) == (None, {6: {7: Begun(1, 2), 8: None}})
    assert [left_of(short, offset, 7) for offset in (5, 6, 8)] == [Begun(), Begun(1, 2), Begun()]


def test_a_map_that_speaks_of_many_handlers_is_read_as_it_was_written() -> None:
    numbers = tuple(range(200))
    found = OffsetMap(TOPIC_ID, 0, 1, 1, 1, numbers, {0: dict.fromkeys(numbers, Begun(1))})

    assert read_map(write_map(found), topic_id=TOPIC_ID, offset=0) == found
