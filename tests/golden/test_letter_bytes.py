"""The bytes of letters, their states and replays (DESIGN section 6), written down once.

They are never regenerated to pass: letters, states and requests that are stored out there were written so, by releases that
are still running beside this one. A test that fails here says that the code is wrong, or that the format has a new version.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from choreo.letter import (
    Death,
    LetterState,
    Owner,
    Place,
    ReplayEntry,
    ReplayOutcome,
    Request,
    Run,
    dead_letter,
    letter_key,
    letter_state,
    owner_key,
    owner_record,
    read_replay,
    read_state,
    replay_record,
    source_record,
    state_partition,
    state_record,
)
from choreo.record import Outgoing, Record, TopicPartition

AT = datetime(2026, 11, 22, 22, 37, 7, 123_456, tzinfo=UTC)
VALUE = b'{"type":"order.placed","timestamp":"2026-11-22T22:37:07.123456Z","payload":{"order_id":"o-1"}}'
RECORD = Record(
    "orders", 3, 1842, 1_795_390_627_123, b"o-1", VALUE, [("choreo-id", b"e-1"), ("choreo-dlq-kind", b"parked"), ("tenant", None)]
)
DEATH = Death(
    kind="failed",
    handler="charge-card",
    group="payments",
    event_id="e-1",
    event_type="order.placed",
    error_type="ReadTimeout",
    message="orders[3]@1842: Gr\u00fc\u00dfe",
    stack="Traceback ...\nReadTimeout: Gr\u00fc\u00dfe\n",
    fingerprint="3fa9c01d",
    attempts=3,
    first_failed_at=AT,
    last_failed_at=datetime(2026, 11, 22, 23, 37, 15, tzinfo=timezone(timedelta(hours=1))),
    version="2.3.0",
    host="node-1",
)
UNREADABLE = Death(
    kind="undecodable",
    handler="*",
    group="payments",
    event_id="9b0c27a4-4376-5608-b723-e71e12adf399",
    event_type=None,
    error_type="DecodeError",
    message="orders[3]@1842: value: not JSON",
    stack="",
    fingerprint="2fbc8a10",
    attempts=1,
    first_failed_at=AT,
    last_failed_at=AT,
    version="",
    host="node-1",
)
STATE = letter_state(RECORD, Place("payments.dlq", 1, 17), DEATH, state="open", run="")
OPEN = (
    b'{"state":"open","kind":"failed","handler":"charge-card","event_id":"e-1","event_type":"order.placed",'
    b'"dlq":{"topic":"payments.dlq","partition":1,"offset":17},"origin":{"topic":"orders","partition":3,"offset":1842},'
    b'"origin_timestamp_ms":1795390627123,"key":"by0x",'
    b'"payload_hash":"21fbcc9a1180d3749842735ce7bfc5af1928fae94c44031deefd1dcd721d48a5","error_type":"ReadTimeout",'
    b'"message":"orders[3]@1842: Gr\xc3\xbc\xc3\x9fe","fingerprint":"3fa9c01d","attempts":3,'
    b'"first_failed_at":"2026-11-22T22:37:07.123456Z","last_failed_at":"2026-11-22T23:37:15+01:00","version":"2.3.0"}'
)


def stored(outgoing: Outgoing) -> Record:
    return Record(outgoing.topic, outgoing.partition or 0, 0, 0, outgoing.key, outgoing.value, outgoing.headers)


# ---- the dlq record -------------------------------------------------------------------------------------------------


def test_a_letter_has_these_headers_in_this_order_after_those_of_its_event() -> None:
    actual = dead_letter("payments.dlq", RECORD, DEATH)

    assert (actual.topic, actual.key, actual.value, actual.partition) == ("payments.dlq", b"o-1", VALUE, None)
    assert list(actual.headers) == [
        ("choreo-id", b"e-1"),
        ("tenant", None),
        ("choreo-dlq-kind", b"failed"),
        ("choreo-dlq-handler", b"charge-card"),
        ("choreo-dlq-group", b"payments"),
        ("choreo-dlq-event-id", b"e-1"),
        ("choreo-dlq-error-type", b"ReadTimeout"),
        ("choreo-dlq-error-message", b"orders[3]@1842: Gr\xc3\xbc\xc3\x9fe"),
        ("choreo-dlq-error-stack", b"Traceback ...\nReadTimeout: Gr\xc3\xbc\xc3\x9fe\n"),
        ("choreo-dlq-fingerprint", b"3fa9c01d"),
        ("choreo-dlq-attempts", b"3"),
        ("choreo-dlq-first-failed-at", b"2026-11-22T22:37:07.123456Z"),
        ("choreo-dlq-last-failed-at", b"2026-11-22T22:37:15.000000Z"),
        ("choreo-dlq-version", b"2.3.0"),
        ("choreo-dlq-host", b"node-1"),
        ("choreo-dlq-topic", b"orders"),
        ("choreo-dlq-partition", b"3"),
        ("choreo-dlq-offset", b"1842"),
        ("choreo-dlq-timestamp", b"1795390627123"),
        ("choreo-dlq-event-type", b"order.placed"),
    ]


def test_a_letter_of_unreadable_bytes_has_no_event_type_and_keeps_the_bytes() -> None:
    record = Record("orders", 3, 1842, -1, None, b"\xff{", ())

    actual = dead_letter("payments.dlq", record, UNREADABLE)

    assert (actual.key, actual.value) == (None, b"\xff{")
    assert list(actual.headers) == [
        ("choreo-dlq-kind", b"undecodable"),
        ("choreo-dlq-handler", b"*"),
        ("choreo-dlq-group", b"payments"),
        ("choreo-dlq-event-id", b"9b0c27a4-4376-5608-b723-e71e12adf399"),
        ("choreo-dlq-error-type", b"DecodeError"),
        ("choreo-dlq-error-message", b"orders[3]@1842: value: not JSON"),
        ("choreo-dlq-error-stack", b""),
        ("choreo-dlq-fingerprint", b"2fbc8a10"),
        ("choreo-dlq-attempts", b"1"),
        ("choreo-dlq-first-failed-at", b"2026-11-22T22:37:07.123456Z"),
        ("choreo-dlq-last-failed-at", b"2026-11-22T22:37:07.123456Z"),
        ("choreo-dlq-version", b""),
        ("choreo-dlq-host", b"node-1"),
        ("choreo-dlq-topic", b"orders"),
        ("choreo-dlq-partition", b"3"),
        ("choreo-dlq-offset", b"1842"),
        ("choreo-dlq-timestamp", b"-1"),
    ]


def test_the_record_that_died_comes_back_out_of_its_letter() -> None:
    actual = source_record(stored(dead_letter("payments.dlq", RECORD, DEATH)))

    assert actual == msgspec.structs.replace(RECORD, headers=[("choreo-id", b"e-1"), ("tenant", None)])


def test_a_long_message_and_a_long_stack_are_cut_at_their_limits() -> None:
    death = msgspec.structs.replace(DEATH, message="m" * 2000, stack="a" + "s" * 8192)

    headers = dict(dead_letter("payments.dlq", RECORD, death).headers)

    assert headers["choreo-dlq-error-message"] == b"m" * 1000
    assert headers["choreo-dlq-error-stack"] == b"s" * 8192


# ---- the state topic ------------------------------------------------------------------------------------------------


def test_the_state_of_a_letter_has_these_bytes() -> None:
    actual = state_record("payments.letters", STATE, 6)

    assert actual == Outgoing("payments.letters", b"letter|charge-card|e-1", OPEN, (), 3)


def test_a_state_with_nothing_to_say_has_these_bytes() -> None:
    state = LetterState(
        state="resolved",
        kind="undecodable",
        handler="*",
        event_id="e-2",
        dlq=Place("payments.dlq", 0, 0),
        origin=Place("orders", 0, 7),
        first_failed_at=AT,
        last_failed_at=AT,
        run="7f3a11c2",
    )

    actual = state_record("payments.letters", state, 1)

    expected = (
        b'{"state":"resolved","kind":"undecodable","handler":"*","event_id":"e-2",'
        b'"dlq":{"topic":"payments.dlq","partition":0,"offset":0},"origin":{"topic":"orders","partition":0,"offset":7},'
        b'"first_failed_at":"2026-11-22T22:37:07.123456Z","last_failed_at":"2026-11-22T22:37:07.123456Z","run":"7f3a11c2"}'
    )
    assert actual == Outgoing("payments.letters", b"letter|*|e-2", expected, (), 0)


def test_a_stored_state_is_read_as_what_was_written_also_with_fields_that_a_later_release_adds() -> None:
    record = Record("payments.letters", 3, 0, 0, b"letter|charge-card|e-1", OPEN.replace(b"{", b'{"v":1,"shift":"night",', 1))

    actual = read_state(record)

    assert actual == STATE


def test_an_owner_has_these_bytes() -> None:
    actual = owner_record("payments.letters", TopicPartition("orders", 3), Owner(epoch=2, position=40, partitions=6), 6)

    assert actual == Outgoing("payments.letters", b"owner|orders|3", b'{"v":1,"epoch":2,"position":40,"partitions":6}', (), 3)
    assert read_state(stored(actual)) == Owner(epoch=2, position=40, partitions=6)


@pytest.mark.parametrize(
    ("source", "of_1", "of_6", "of_50"),
    [
        (TopicPartition("orders", 0), 0, 5, 9),
        (TopicPartition("orders", 3), 0, 3, 15),
        (TopicPartition("orders", 11), 0, 4, 14),
        (TopicPartition("payments.v2", 0), 0, 3, 5),
        (TopicPartition("a|1", 7), 0, 0, 10),
    ],
)
def test_the_states_of_a_source_stand_in_this_partition(source: TopicPartition, of_1: int, of_6: int, of_50: int) -> None:
    actual = [state_partition(source, count) for count in (1, 6, 50)]

    assert actual == [of_1, of_6, of_50]


@pytest.mark.parametrize(
    ("handler", "event_id", "expected"),
    [
        ("charge-card", "e-1", b"letter|charge-card|e-1"),
        ("*", "9b0c27a4-4376-5608-b723-e71e12adf399", b"letter|*|9b0c27a4-4376-5608-b723-e71e12adf399"),
        ("h", "a|b", b"letter|h|a|b"),
        ("h", "\u00e4" * 300, b"letter|h|" + b"\xc3\xa4" * 128),
    ],
)
def test_a_letter_has_this_key(handler: str, event_id: str, expected: bytes) -> None:
    actual = letter_key(handler, event_id)

    assert actual == expected


def test_an_owner_has_this_key() -> None:
    actual = owner_key(TopicPartition("eu.orders", 12))

    assert actual == b"owner|eu.orders|12"


# ---- the replay log -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (
            Run(run="7f3a11c2", by="ana", reason="fixed", forced=False, letters=2, at=AT),
            b'{"kind":"run","v":1,"run":"7f3a11c2","by":"ana","reason":"fixed","forced":false,"letters":2,'
            b'"at":"2026-11-22T22:37:07.123456Z"}',
        ),
        (
            Request(
                run="7f3a11c2",
                handler="charge-card",
                event_id="e-1",
                origin=Place("orders", 3, 1842),
                dlq=Place("payments.dlq", 1, 17),
                by="ana",
                reason="fixed",
                forced=True,
                at=AT,
            ),
            b'{"kind":"request","v":1,"run":"7f3a11c2","handler":"charge-card","event_id":"e-1",'
            b'"origin":{"topic":"orders","partition":3,"offset":1842},"dlq":{"topic":"payments.dlq","partition":1,"offset":17},'
            b'"by":"ana","reason":"fixed","forced":true,"at":"2026-11-22T22:37:07.123456Z"}',
        ),
        (
            ReplayOutcome(
                run="7f3a11c2", handler="charge-card", event_id="e-1", result="failed-again", attempts=3, error="Gr\u00fc\u00dfe", at=AT
            ),
            b'{"kind":"outcome","v":1,"run":"7f3a11c2","handler":"charge-card","event_id":"e-1","result":"failed-again","attempts":3,'
            b'"error":"Gr\xc3\xbc\xc3\x9fe","at":"2026-11-22T22:37:07.123456Z"}',
        ),
        (
            ReplayOutcome(run="7f3a11c2", handler="*", event_id="e-2", result="already-done", at=AT),
            b'{"kind":"outcome","v":1,"run":"7f3a11c2","handler":"*","event_id":"e-2","result":"already-done","attempts":0,'
            b'"error":"","at":"2026-11-22T22:37:07.123456Z"}',
        ),
    ],
)
def test_an_entry_of_the_replay_log_has_these_bytes(entry: ReplayEntry, expected: bytes) -> None:
    actual = replay_record("payments.replay", entry)

    assert actual == Outgoing("payments.replay", b"7f3a11c2", expected, (), 0)
    assert read_replay(stored(actual)) == entry


# ---- text that is no UTF-8 ------------------------------------------------------------------------------------------


def test_text_that_cannot_be_utf_8_is_escaped_in_headers_states_and_replays() -> None:
    death = msgspec.structs.replace(DEATH, error_type="\udc80Error", message="no file caf\udce9", stack="raise \udc80")

    headers = dict(dead_letter("payments.dlq", RECORD, death).headers)
    state = read_state(stored(state_record("payments.letters", letter_state(RECORD, STATE.dlq, death, state="open", run=""), 6)))
    outcome = replay_record(
        "payments.replay", ReplayOutcome(run="7f3a11c2", handler="h", event_id="e", result="refused", error="\udc80", at=AT)
    )

    assert [headers[f"choreo-dlq-error-{name}"] for name in ("type", "message", "stack")] == [
        b"\\udc80Error",
        b"no file caf\\udce9",
        b"raise \\udc80",
    ]
    assert state == msgspec.structs.replace(STATE, error_type="\\udc80Error", message="no file caf\\udce9")
    assert read_replay(stored(outcome)) == ReplayOutcome(
        run="7f3a11c2", handler="h", event_id="e", result="refused", error="\\udc80", at=AT
    )
