"""What is read from a record's headers, and what of them is not believed (TRAPS 25, 43, 55; CRASH_MATRIX P8)."""

import pytest

from choreo.envelope import (
    EVENT_HEADERS,
    MAX_HEADER_CHARS,
    MAX_ID_CHARS,
    Wire,
    header_text,
    parse_baggage,
    plain_id,
    read_wire,
    text_headers,
    valid_traceparent,
)
from choreo.record import Headers, Record

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


def record(headers: Headers) -> Record:
    return Record("orders", 3, 1842, 1_795_390_627_123, b"o-1", b"{}", headers)


def wire(*headers: tuple[str, bytes | None]) -> Wire:
    return read_wire(record(headers))


# ---- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"acme", "acme"),
        ("Grüße".encode(), "Grüße"),
        (b"x" * MAX_HEADER_CHARS, "x" * MAX_HEADER_CHARS),
        (b"x" * (MAX_HEADER_CHARS + 1), None),
        (b"x" * 1_000_000, None),
        (b"\xff\xfe", None),
        (b"\xed\xa0\x80", None),
        (b"\x00\x00\x00\x07", "\x00\x00\x00\x07"),
        (b"", None),
        (None, None),
    ],
)
def test_a_header_is_utf8_text_of_bounded_size_or_none(value: bytes | None, expected: str | None) -> None:
    actual = header_text(value)

    assert actual == expected


def test_of_a_repeated_header_the_last_readable_one_is_shown() -> None:
    headers = [("a", b"1"), ("b", b"2"), ("a", b"3"), ("b", b"\xff"), ("c", None), ("d", b"")]

    actual = text_headers(headers)

    assert actual == {"a": "3", "b": "2", "d": ""}


def test_ten_thousand_headers_are_read() -> None:
    headers = [(f"h{n}", b"x") for n in range(10_000)]

    actual = (len(text_headers(headers)), wire(*headers).event_id)

    assert actual == (10_000, plain_id(record(headers)))


# ---- ids ------------------------------------------------------------------------------------------------------------


def test_a_record_without_headers_is_a_plain_event_with_a_flow_of_its_own() -> None:
    plain = record(())

    actual = read_wire(plain)

    assert (actual.event_id, actual.flow_id, actual.cause_id, actual.source, actual.traceparent) == (
        plain_id(plain),
        plain_id(plain),
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"x" * (MAX_ID_CHARS + 1),
        b"e\x00",
        b"e-1\n",
        b"\x1b[2J",
        "e\u202e".encode(),
    ],
)
def test_an_unusable_id_is_no_id(value: bytes | None) -> None:
    headers = (("choreo-id", value), ("choreo-correlation-id", value), ("choreo-causation-id", value))

    actual = wire(*headers)

    assert (actual.event_id, actual.flow_id, actual.cause_id) == (plain_id(record(headers)), plain_id(record(headers)), None)


def test_an_id_need_not_be_a_uuid() -> None:
    actual = wire(("choreo-id", b"o-1/placed at 7"), ("choreo-correlation-id", b"x" * MAX_ID_CHARS))

    assert (actual.event_id, actual.flow_id) == ("o-1/placed at 7", "x" * MAX_ID_CHARS)


def test_of_a_repeated_id_the_last_counts() -> None:
    actual = wire(("choreo-id", b"e-1"), ("choreo-id", b"e-2")).event_id

    assert actual == "e-2"


@pytest.mark.parametrize(("value", "expected"), [(b"orders/place-order", "orders/place-order"), (b"\x1b[31m", None), (b"\xff", None)])
def test_a_source_is_printable_or_none(value: bytes, expected: str | None) -> None:
    actual = wire(("choreo-source", value)).source

    assert actual == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, 1),
        (b"1", 1),
        (b"2", 2),
        (b"0002", 2),
        (b"999999", 999_999),
        (b"1000000", None),
        (b"0", None),
        (b"-1", None),
        (b"+1", None),
        (b" 1", None),
        (b"1.0", None),
        (b"1_0", None),
        (b"v1", None),
        (b"", None),
        (b"\x00\x00\x00\x02", None),
        ("٢".encode(), None),
        ("²".encode(), None),
        (b"9" * 100_000, None),
    ],
)
def test_a_version_is_a_number_of_six_digits_at_most(value: bytes | None, expected: int | None) -> None:
    actual = wire(("choreo-version", value)).version

    assert actual == expected


def test_no_version_is_version_one() -> None:
    actual = wire().version

    assert actual == 1


def test_the_headers_of_an_event_are_these() -> None:
    actual = sorted(EVENT_HEADERS)

    assert actual == [
        "baggage",
        "choreo-causation-id",
        "choreo-correlation-id",
        "choreo-id",
        "choreo-source",
        "choreo-version",
        "content-type",
        "traceparent",
        "tracestate",
    ]


# ---- traceparent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", ["00", "01", "02", "03", "ff"])
def test_a_traceparent_of_version_00_is_read_as_it_is(flags: str) -> None:
    written = f"00-{TRACE}-{SPAN}-{flags}"

    actual = (valid_traceparent(written), wire(("traceparent", written.encode())).traceparent)

    assert actual == (True, written)


@pytest.mark.parametrize(
    "written", [f"cc-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", f"01-{TRACE}-{SPAN}-01-"]
)
def test_a_traceparent_of_a_later_version_is_read_as_far_as_version_00_goes(written: str) -> None:
    actual = wire(("traceparent", written.encode())).traceparent

    assert actual == TRACEPARENT


@pytest.mark.parametrize(
    "written",
    [
        "",
        "00",
        TRACEPARENT[:-1],
        f"{TRACEPARENT}0",
        f"{TRACEPARENT}-extra",
        f" {TRACEPARENT}",
        f"{TRACEPARENT}\n",
        TRACEPARENT.upper(),
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE[:-1]}g-{SPAN}-01",
        f"00_{TRACE}-{SPAN}-01",
        f"00-{TRACE}_{SPAN}-01",
        f"00-{TRACE}-{SPAN}_01",
        f"ff-{TRACE}-{SPAN}-01",
        f"cc-{TRACE}-{SPAN}-01.extra",
        f"CC-{TRACE}-{SPAN}-01",
        f"cc-{'0' * 32}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-001",
        f"00-{'４' * 32}-{SPAN}-01",
    ],
)
def test_an_invalid_traceparent_is_none_and_a_new_trace_starts(written: str) -> None:
    actual = (valid_traceparent(written), wire(("traceparent", written.encode())).traceparent)

    assert actual == (False, None)


def test_of_a_repeated_traceparent_the_last_counts_though_it_is_invalid() -> None:
    actual = wire(("traceparent", TRACEPARENT.encode()), ("traceparent", b"00-bad")).traceparent

    assert actual is None


# ---- baggage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("tenant=acme", {"tenant": "acme"}),
        ("tenant=acme,locale=de", {"tenant": "acme", "locale": "de"}),
        (" tenant = acme \t, locale\t=\tde ", {"tenant": "acme", "locale": "de"}),
        ("tenant=acme;secret;ttl=3,locale=de", {"tenant": "acme", "locale": "de"}),
        ("city=K%C3%B6ln,rate=100%25", {"city": "Köln", "rate": "100%"}),
        ("equation=a=b", {"equation": "a=b"}),
        ("empty=", {"empty": ""}),
        ("tenant=acme,tenant=beta", {"tenant": "beta"}),
        ("broken,=value,,;,tenant=acme", {"tenant": "acme"}),
        ("bytes=%ff,half=%c", {"bytes": "\ufffd", "half": "%c"}),
        ("", {}),
        (None, {}),
    ],
)
def test_baggage_is_read_entry_by_entry_and_what_cannot_be_read_is_left_out(written: str | None, expected: dict[str, str]) -> None:
    actual = parse_baggage(written)

    assert actual == expected
