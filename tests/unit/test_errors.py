"""What the errors say, and whose they are."""

import copy
import pickle

import pytest

from choreo.errors import (
    BrokerError,
    ChoreoError,
    ConfigurationError,
    DecodeError,
    HandlerError,
    HandlerTimeoutError,
    PermanentError,
    StateError,
    StoreError,
    TransientError,
    UndeclaredEmitError,
    did_you_mean,
    printable,
)


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        (ConfigurationError, (ChoreoError, ValueError)),
        (DecodeError, (ChoreoError,)),
        (HandlerError, (ChoreoError,)),
        (PermanentError, (HandlerError,)),
        (UndeclaredEmitError, (PermanentError,)),
        (TransientError, (HandlerError,)),
        (HandlerTimeoutError, (TransientError,)),
        (BrokerError, (ChoreoError,)),
        (StoreError, (ChoreoError,)),
        (StateError, (ChoreoError,)),
    ],
)
def test_the_tree_follows_who_must_act(error: type[Exception], parents: tuple[type[Exception], ...]) -> None:
    actual = error.__bases__

    assert actual == parents


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            DecodeError("payload", "expected int, got str '12.50'", path="payload.total_cents", event_type="order.placed"),
            "payload of order.placed: total_cents: expected int, got str '12.50'",
        ),
        (DecodeError("payload", "expected object, got null", path="payload", event_type="a"), "payload of a: expected object, got null"),
        (DecodeError("payload", "expected int, got null", path="payload[3]", event_type="a"), "payload of a: [3]: expected int, got null"),
        (DecodeError("payload", "expected object, got null", path="payload"), "payload: expected object, got null"),
        (
            DecodeError("envelope", "expected str, got int 3", path="type", event_type="a"),
            "envelope: type: expected str, got int 3",
        ),
        (DecodeError("value", "not JSON: unexpected end"), "value: not JSON: unexpected end"),
        (DecodeError("version", "expected 1, got 2", event_type="a"), "version: expected 1, got 2"),
    ],
)
def test_a_decode_error_says_where_what_was_expected_and_what_came(error: DecodeError, expected: str) -> None:
    actual = str(error)

    assert actual == expected


def test_a_decode_error_keeps_its_facts() -> None:
    error = DecodeError("payload", "expected int, got null", path="payload.total_cents", event_type="order.placed")

    actual = (error.reason, error.detail, error.path, error.event_type)

    assert actual == ("payload", "expected int, got null", "payload.total_cents", "order.placed")


def test_a_decode_error_stays_short_however_much_a_stranger_wrote() -> None:
    error = DecodeError("payload", "d" * 10**6, path="payload." + "p" * 10**6, event_type="t" * 10**6)

    actual = (len(error.detail), len(error.path), len(error.event_type or ""), len(str(error)), len(repr(error)) < 450)

    assert actual == (400, 200, 200, 807, True)


def test_a_decode_error_cannot_act_on_a_terminal() -> None:
    error = DecodeError("payload", "got '\x1b[2J'", path="payload.\x9b", event_type="a\x1b]0;\x07\nb\ud800")

    actual = str(error)

    assert actual == r"payload of a\x1b]0;\x07\nb\ud800: \x9b: got '\x1b[2J'"


def test_a_decode_error_can_be_sent_in_a_header() -> None:
    error = DecodeError("payload", "got '\ud800'")

    actual = str(error).encode()

    assert actual == rb"payload: got '\ud800'"


@pytest.mark.parametrize(
    "error",
    [
        DecodeError("payload", "expected int, got null", path="payload.total_cents", event_type="order.placed"),
        PermanentError("card 4421 is unknown"),
        TransientError("busy", retry_after_s=3.0),
        BrokerError("down", code="_TRANSPORT", retriable=False, fatal=True),
        StoreError("locked", retriable=False),
        ConfigurationError("no"),
    ],
)
def test_errors_survive_copying_and_pickling_with_their_facts(error: Exception) -> None:
    copies = [copy.copy(error), pickle.loads(pickle.dumps(error))]

    actual = [(type(each), str(each), vars(each)) for each in copies]

    assert actual == [(type(error), str(error), vars(error))] * 2


def test_the_retry_after_header_may_be_given_as_it_came() -> None:
    as_it_came: float = "30"  # type: ignore[assignment]

    actual = TransientError("busy", retry_after_s=as_it_came).retry_after_s

    assert actual == 30.0


def test_no_retry_after_is_none() -> None:
    actual = TransientError("busy").retry_after_s

    assert actual is None


def test_a_broker_error_is_retriable_and_not_fatal_unless_said() -> None:
    error = BrokerError("down")

    actual = (error.code, error.retriable, error.fatal)

    assert actual == ("", True, False)


@pytest.mark.parametrize(
    ("word", "known", "expected"),
    [
        ("tpoic", ["topic", "type"], "; did you mean 'topic'?"),
        ("customer", ["topic", "order_id"], "; known: order_id, topic"),
        ("customer", [], ""),
    ],
)
def test_an_unknown_word_is_answered_with_the_nearest_known_one(word: str, known: list[str], expected: str) -> None:
    actual = did_you_mean(word, known)

    assert actual == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("exactly10!", "exactly10!"),
        ("0123456789abcdef", "01234…cdef"),
        ("Grüße", "Grüße"),
        ("tab\there", r"tab\there"),
    ],
)
def test_what_is_shown_is_short_and_printable(text: str, expected: str) -> None:
    actual = printable(text, 10)

    assert actual == expected
