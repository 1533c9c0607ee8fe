"""Bytes that are meant to hurt (CRASH_MATRIX P1-P3, TRAPS 54, 56): a DecodeError each, or an event, soon and in bounded memory."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from choreo.codec import Decode, JsonCodec
from choreo.errors import DecodeError
from choreo.events import AnyEvent, Event, EventLike
from choreo.pydantic import PydanticEvent

MAX_SECONDS = 5.0
MAX_MEGABYTES = 700
"""12 MB of ``{}`` are four million dicts of 64 bytes and their places in a list: that much is in the nature of the thing."""


class Typed(Event, type="typed", topic="t", key=None):
    id: str
    count: int = 0
    ratio: float = 0.0
    anything: object = None


class Node(Event, type="node", topic="t", key=None):
    child: "Node | None" = None


class Model(PydanticEvent, type="model", topic="t", key=None):
    id: str
    count: int = 0
    ratio: float = 0.0
    counts: list[int] = []
    anything: object = None


CODEC = JsonCodec()
KINDS: dict[str, type[EventLike]] = {"typed": Typed, "any": AnyEvent, "pydantic": Model}
KIND = pytest.mark.parametrize("kind", KINDS)


def envelope(payload: str) -> bytes:
    return b'{"type":"t","timestamp":"2026-11-22T22:37:07Z","payload":' + payload.encode("utf-8", "surrogatepass") + b"}"


DEEP = 100_000


def objects() -> str:
    return "{}," * 4_000_000 + "{}"


INPUTS: dict[str, Callable[[], bytes]] = {
    "100,000 open arrays": lambda: b"[" * DEEP,
    "100,000 arrays": lambda: b"[" * DEEP + b"]" * DEEP,
    "100,000 open objects": lambda: b'{"a":' * DEEP,
    "100,000 arrays as payload": lambda: envelope("[" * DEEP + "]" * DEEP),
    "100,000 arrays in an unknown field": lambda: envelope('{"id":"a","x":' + "[" * DEEP + "]" * DEEP + "}"),
    "100,000 objects in a field of any type": lambda: envelope('{"id":"a","anything":' + '{"a":' * DEEP + "1" + "}" * DEEP + "}"),
    "12 MB of {}": lambda: b"{}" * 6_000_000,
    "12 MB of {} in an array": lambda: b"[" + objects().encode() + b"]",
    "12 MB of {} as payload": lambda: envelope(f"[{objects()}]"),
    "12 MB of {} in an unknown field": lambda: envelope(f'{{"id":"a","x":[{objects()}]}}'),
    "12 MB of {} and a missing field": lambda: envelope(f'{{"x":[{objects()}]}}'),
    "12 MB of [ in a string": lambda: envelope('{"id":"' + "[" * 12_000_000 + '"}'),
    "a number of a million digits for an int": lambda: envelope('{"id":"a","count":' + "9" * 1_000_000 + "}"),
    "a number of a million digits for a float": lambda: envelope('{"id":"a","ratio":' + "9" * 1_000_000 + "}"),
    "a number of a million digits in an unknown field": lambda: envelope('{"id":"a","x":' + "9" * 1_000_000 + "}"),
    "a number of a million digits as type": lambda: b'{"type":' + b"9" * 1_000_000 + b"}",
    "a million digits after the point": lambda: envelope('{"id":"a","ratio":0.' + "3" * 1_000_000 + "}"),
    "an exponent of a million digits": lambda: envelope('{"id":"a","ratio":1e' + "9" * 1_000_000 + "}"),
    "a million escapes": lambda: envelope('{"id":"' + "\\u0041" * 1_000_000 + '"}'),
    "a million fields": lambda: envelope("{" + ",".join(f'"f{n}":{n}' for n in range(1_000_000)) + "}"),
    "a field a million times": lambda: envelope("{" + ",".join(['"id":"a"'] * 1_000_000) + "}"),
    "a million bad items": lambda: envelope('{"id":"a","counts":[' + "{}," * 330_000 + "{}]}"),
    "a million spaces": lambda: b" " * 1_000_000 + envelope('{"id":"a"}') + b" " * 1_000_000,
    "a type of a million characters": lambda: b'{"type":"' + b"t" * 1_000_000 + b'","timestamp":5,"payload":{}}',
}
NAMES = sorted(INPUTS)


@contextmanager
def soon() -> Iterator[None]:
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < MAX_SECONDS


def outcome(read: Decode, value: bytes) -> str:
    """``an event``, or what was said; any other exception goes through."""
    try:
        read(value)
    except DecodeError as error:
        return str(error)
    return "an event"


@KIND
@pytest.mark.parametrize("name", NAMES)
def test_large_bad_input_is_decided_soon_and_said_shortly(kind: str, name: str) -> None:
    value, read = INPUTS[name](), CODEC.decoder(KINDS[kind])

    with soon():
        actual = outcome(read, value)

    assert len(actual) < 600


@pytest.mark.parametrize("name", NAMES)
def test_the_type_of_large_bad_input_is_decided_soon(name: str) -> None:
    value = INPUTS[name]()

    with soon():
        try:
            actual = CODEC.event_type(value)[:10]
        except DecodeError as error:
            actual = str(error)

    assert len(actual) < 600


PROGRAM = """
import json, resource, sys
from tests.unit.test_bad_json import CODEC, INPUTS, KINDS, outcome

inputs = [make() for make in INPUTS.values()]
read = CODEC.decoder(KINDS[sys.argv[1]])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for value in inputs:
    outcome(read, value)
print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024))
"""


@KIND
def test_large_bad_input_takes_bounded_memory(kind: str) -> None:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, timeout=120, check=True)

    megabytes = json.loads(ended.stdout)

    assert 0 <= megabytes < MAX_MEGABYTES


# ---- small bad input: what is said ----------------------------------------------------------------------------------


@KIND
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"", "value: empty; a tombstone is null, not empty"),
        (b"\x00", "value: not JSON: JSON is malformed: invalid character (byte 0)"),
        (b"\xef\xbb\xbf" + envelope('{"id":"a"}'), "value: not JSON: JSON is malformed: invalid character (byte 0)"),
        (b"\xff\xfe{\x00}\x00", "value: not JSON: JSON is malformed: invalid character (byte 0)"),
        (envelope('{"id":"a"}') + b"{}", "value: not JSON: JSON is malformed: trailing characters (byte 69)"),
        (envelope('{"id":"a","ratio":NaN}'), "value: not JSON: JSON is malformed: invalid character (byte 75)"),
        (envelope('{"id":"a","ratio":Infinity}'), "value: not JSON: JSON is malformed: invalid character (byte 75)"),
        (envelope('{"id":"a","x":-Infinity}'), "value: not JSON: JSON is malformed: invalid character (byte 72)"),
        (envelope('{"id":"a",}'), "value: not JSON: JSON is malformed: trailing comma in object (byte 67)"),
        (envelope('{"id":"a"/**/}'), "value: not JSON: JSON is malformed: expected ',' or '}' (byte 66)"),
        (envelope('{"id":"a'), "value: not JSON: unexpected end of data: line 1 column 67 (char 66)"),
        (envelope('{"id":"\\ud800"}'), "value: not JSON: no low surrogate in string: line 1 column 65 (char 64)"),
        (
            envelope('{"id":"\\udc00 and so on"}'),
            "value: not JSON: JSON is malformed: invalid utf-16 surrogate pair (byte 70)",
        ),
        (b"[" * 100_000, "envelope: expected object, got array"),
        (b'{"a":' * 100_000, "value: nested too deep"),
    ],
)
def test_what_is_no_json_is_said_to_be_none(kind: str, value: bytes, expected: str) -> None:
    actual = outcome(CODEC.decoder(KINDS[kind]), value)

    assert actual == expected


@pytest.mark.parametrize("kind", ["any", "typed"])
@pytest.mark.parametrize(
    "text",
    [b"\xff", b"\xc3\x28", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80"],
)
def test_text_that_is_not_utf8_is_refused(kind: str, text: bytes) -> None:
    value = envelope('{"id":"X"}').replace(b"X", text)

    actual = outcome(CODEC.decoder(KINDS[kind]), value)

    assert actual.startswith("value: not JSON: 'utf-8' codec can't decode byte")


def test_text_that_is_not_utf8_is_refused_by_pydantic_in_its_words() -> None:
    value = envelope('{"id":"X"}').replace(b"X", b"\xff")

    actual = outcome(CODEC.decoder(Model), value)

    assert actual == "value: not JSON: invalid unicode code point at line 1 column 8"


@KIND
def test_of_a_repeated_field_the_last_counts(kind: str) -> None:
    value = b'{"type":"a","payload":{"id":"x"},"type":"b","timestamp":"2026-11-22T22:37:07Z","payload":{"id":"1","id":"2"}}'

    event = CODEC.decoder(KINDS[kind])(value)

    actual = msgspec.to_builtins(event.payload) if kind != "pydantic" else event.payload.model_dump()
    assert (CODEC.event_type(value), event.type, actual.get("fields", actual)["id"]) == ("b", "b", "2")


@pytest.mark.parametrize("digits", ["12345678901234567890", "-12345678901234567890", "18446744073709551616", "1" * 300])
@KIND
def test_integers_over_64_bits_stay_exact(kind: str, digits: str) -> None:
    event = CODEC.decoder(KINDS[kind])(envelope(f'{{"id":"a","count":{digits}}}'))

    actual = event.payload.fields["count"] if kind == "any" else event.payload.count

    assert actual == int(digits)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("typed", "payload of typed: ratio: number out of range"),
        ("any", "payload: ratio: number out of range"),
        ("pydantic", "payload of model: ratio: expected a finite number, got float inf"),
    ],
)
def test_a_number_beyond_all_floats_is_refused(kind: str, expected: str) -> None:
    actual = outcome(CODEC.decoder(KINDS[kind]), envelope('{"id":"a","ratio":1e999}'))

    assert actual.replace("[...]", "ratio").replace("payload: [ratio]", "payload: ratio") == expected


def test_a_recursive_type_is_read_only_so_deep() -> None:
    value = envelope('{"child":' * 100_000 + "null" + "}" * 100_000)

    actual = outcome(CODEC.decoder(Node), value)

    assert actual == "value: nested too deep"


@KIND
def test_a_deep_event_that_can_be_read_can_be_compared_and_dropped(kind: str) -> None:
    value = envelope('{"id":"a","x":' + "[" * 150 + "]" * 150 + "}")

    one, other = CODEC.decoder(KINDS[kind])(value), CODEC.decoder(KINDS[kind])(value)

    assert one == other
