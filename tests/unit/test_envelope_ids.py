"""Ids: new ones, derived ones, those of children and of plain events. Their bytes are in tests/golden/."""

import time
import uuid
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from choreo.envelope import child_id, child_traceparent, derived_id, new_id, plain_id, root_trace_id, valid_traceparent
from choreo.errors import ConfigurationError
from choreo.record import Record

text = st.text(st.characters(codec=None), max_size=20)
seven = st.tuples(*[text] * 7)


# ---- new ------------------------------------------------------------------------------------------------------------


def test_a_new_id_is_a_uuid_of_version_7() -> None:
    made = uuid.UUID(new_id())

    actual = (made.version, made.variant, str(made))

    assert actual == (7, uuid.RFC_4122, str(made).lower())


def test_a_new_id_begins_with_its_millisecond() -> None:
    before = time.time_ns() // 1_000_000

    actual = int(new_id().replace("-", "")[:12], 16)

    assert before <= actual <= time.time_ns() // 1_000_000


def test_ten_thousand_new_ids_differ() -> None:
    actual = {new_id() for _ in range(10_000)}

    assert len(actual) == 10_000


# ---- derived --------------------------------------------------------------------------------------------------------


@given(parts=seven)
@example(parts=("parent", "payments", "charge-card", "", "payment.received", "Grüße 🎁", "0"))
@example(parts=("\ud800", "", "", "", "", "", ""))
@settings(deadline=None)
def test_a_child_id_is_a_uuid_of_version_5_of_what_it_was_made_of(parts: tuple[str, str, str, str, str, str, str]) -> None:
    name = "".join(f"{len(part)}:{part}" for part in parts)

    actual = uuid.UUID(child_id(*parts))

    # The standard library's own, but for lone surrogates, which it does not take.
    expected = actual if any("\ud800" <= c <= "\udfff" for c in name) else uuid.uuid5(uuid.NAMESPACE_OID, name)
    assert (actual, actual.version, actual.variant) == (expected, 5, uuid.RFC_4122)


@given(one=seven, other=seven)
@settings(deadline=None)
def test_two_children_have_one_id_only_when_all_they_were_made_of_is_equal(
    one: tuple[str, str, str, str, str, str, str], other: tuple[str, str, str, str, str, str, str]
) -> None:
    actual = child_id(*one) == child_id(*other)

    assert actual == (one == other)


@pytest.mark.parametrize("place", range(7))
def test_each_part_of_a_child_id_counts(place: int) -> None:
    parts = ["parent", "service", "handler", "run", "type", "key", "0"]
    changed = [*parts[:place], f"{parts[place]}'", *parts[place + 1 :]]

    actual = child_id(*changed) == child_id(*parts)

    assert actual is False


@given(digits=st.lists(st.sampled_from(["", "0", "1", "1:", "2:ab", ":", "a", "ab"]), min_size=7, max_size=7))
@settings(deadline=None)
def test_parts_cannot_be_shifted_into_each_other(digits: list[str]) -> None:
    joined = [digits[0] + digits[1], "", *digits[2:]]

    actual = child_id(*digits) == child_id(*joined)

    assert actual == (digits == joined)


def test_the_same_parts_derive_the_same_id() -> None:
    actual = {derived_id("checkout", "cart-17"), derived_id("checkout", "cart-17"), derived_id("checkout", "cart-18")}

    assert len(actual) == 2


def test_the_text_of_a_part_counts_and_not_its_type() -> None:
    actual = derived_id("cart", 17)

    assert actual == derived_id("cart", "17")


@pytest.mark.parametrize("parts", [(), (None,), ("checkout", None)])
def test_an_id_that_every_request_would_have_is_refused(parts: tuple[object, ...]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        derived_id(*parts)

    assert str(refused.value) == (f"derived_id{parts!r}: every request would be one event; give what tells this one apart, and no None")


# ---- plain ----------------------------------------------------------------------------------------------------------


PLAIN = Record("orders", 3, 1842, 1_795_390_627_123, b"o-1", b"{}")


def test_a_plain_event_that_is_read_again_has_its_id_again() -> None:
    again = Record("orders", 3, 1842, 1_795_390_627_123, b"o-1", b"{}", (("x-tenant", b"acme"),))

    actual = plain_id(again)

    assert actual == plain_id(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        Record("orders2", 3, 1842, 1_795_390_627_123, b"o-1", b"{}"),
        Record("orders", 4, 1842, 1_795_390_627_123, b"o-1", b"{}"),
        Record("orders", 3, 1843, 1_795_390_627_123, b"o-1", b"{}"),
        Record("orders", 3, 1842, 1_795_390_627_124, b"o-1", b"{}"),
        Record("orders", 3, 1842, 1_795_390_627_123, b"o-2", b"{}"),
        Record("orders", 3, 1842, 1_795_390_627_123, b"o-1", b"{ }"),
        Record("orders", 3, 1842, 1_795_390_627_123, None, b"{}"),
        Record("orders", 3, 1842, 1_795_390_627_123, b"o-1", None),
        Record("orders", 3, 1842, 1_795_390_627_123, b"o-", b"1{}"),
        Record("orders", 3, 1842, 1_795_390_627_123, b"", b"o-1{}"),
    ],
)
def test_a_plain_event_is_told_apart_by_place_time_key_and_value(other: Record) -> None:
    actual = plain_id(other) == plain_id(PLAIN)

    assert actual is False


@pytest.mark.parametrize("make", [lambda value: (None, value), lambda value: (value, None)])
def test_none_and_empty_are_not_the_same(make: Callable[[bytes | None], tuple[bytes | None, bytes | None]]) -> None:
    empty, none = (Record("t", 0, 0, 0, *make(value)) for value in (b"", None))

    actual = plain_id(empty) == plain_id(none)

    assert actual is False


# ---- traces ---------------------------------------------------------------------------------------------------------


FLOW = "0198c2d4-7b1e-7c3a-9d1f-0123456789ab"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_flow_that_starts_without_a_trace_is_its_own_trace() -> None:
    actual = root_trace_id(FLOW)

    assert actual == "0198c2d47b1e7c3a9d1f0123456789ab"


@given(flow=text)
@settings(deadline=None)
def test_every_flow_has_a_valid_trace(flow: str) -> None:
    actual = valid_traceparent(f"00-{root_trace_id(flow)}-00f067aa0ba902b7-00")

    assert actual


@pytest.mark.parametrize("flow", ["0" * 32, "00000000-0000-0000-0000-000000000000"])
def test_the_nil_uuid_is_no_trace(flow: str) -> None:
    actual = root_trace_id(flow).strip("0")

    assert actual != ""


@given(flow=text, event=text)
@settings(deadline=None)
def test_a_root_event_has_a_valid_traceparent_that_is_not_sampled(flow: str, event: str) -> None:
    actual = child_traceparent(None, flow, event)

    assert (valid_traceparent(actual), actual[3:35], actual[-2:]) == (True, root_trace_id(flow), "00")


@given(event=text, flags=st.integers(0, 255))
@settings(deadline=None)
def test_a_child_stays_in_its_parents_trace_with_a_span_of_its_own(event: str, flags: int) -> None:
    parent = f"00-{TRACE}-00f067aa0ba902b7-{flags:02x}"

    actual = child_traceparent(parent, FLOW, event)

    assert (valid_traceparent(actual), actual[:36], actual[36:52] == parent[36:52]) == (True, parent[:36], False)


@pytest.mark.parametrize(("flags", "expected"), [("00", "00"), ("01", "01"), ("02", "02"), ("03", "03"), ("ff", "03"), ("f8", "00")])
def test_a_child_keeps_the_flags_that_are_defined_and_no_others(flags: str, expected: str) -> None:
    parent = f"00-{TRACE}-00f067aa0ba902b7-{flags}"

    actual = child_traceparent(parent, FLOW, "e-1")[-2:]

    assert actual == expected


def test_two_children_of_one_event_have_different_spans_and_the_same_child_the_same() -> None:
    spans = [child_traceparent(None, FLOW, event)[36:52] for event in ("e-1", "e-2", "e-1")]

    actual = (spans[0] == spans[1], spans[0] == spans[2])

    assert actual == (False, True)
