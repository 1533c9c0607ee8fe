"""``choreo dlq`` on a broker in memory."""

from __future__ import annotations

import json

import pytest

from choreo.letter import state_record
from choreo.record import Outgoing
from choreo.testing import MemoryBroker
from tests.unit import cli_desk
from tests.unit import letters as made
from tests.unit.cli_desk import DESK, choreo


@pytest.fixture
def broker() -> MemoryBroker:
    return cli_desk.fresh()


def died(broker: MemoryBroker, event_id: str, *, offset: int, value: bytes = b'{"payload": {"order_id": "o-1"}}', **others: object) -> None:
    """A letter: its record in the dlq and its state."""
    record, state = made.died(event_id, dlq_offset=len(broker.records("desk.dlq")), offset=offset, value=value)
    place = broker.write(Outgoing("desk.dlq", record.key, record.value, record.headers, 0))
    wanted = {"dlq": {"topic": "desk.dlq", "partition": 0, "offset": place.offset}, **others}
    broker.write(state_record("desk.letters", made.changed(state, **wanted), 1))


# ---- ls -------------------------------------------------------------------------------------------------------------


def test_no_open_letter_is_exit_0(broker: MemoryBroker) -> None:
    said = choreo("dlq", "ls", DESK)

    assert said.code == 0
    assert said.out.startswith("desk: 0 open letters")


def test_open_letters_are_listed_in_source_order_and_are_exit_1(broker: MemoryBroker) -> None:
    died(broker, "e-2", offset=5)
    died(broker, "e-1", offset=3)

    said = choreo("dlq", "ls", DESK)

    assert said.code == 1
    lines = said.out.splitlines()
    assert lines[0].startswith("desk: 2 open letters")
    assert [line.split()[0] for line in lines[2:]] == ["e-1", "e-2"]
    assert "charge-card  orders[0]@3" in lines[2]


def test_letters_are_chosen_by_state_handler_group_and_key(broker: MemoryBroker) -> None:
    died(broker, "e-1", offset=1)
    died(broker, "e-2", offset=2, state="resolved")
    died(broker, "e-3", offset=3, handler="book-payment", fingerprint="77be0000")

    def listed(*words: str) -> list[str]:
        return [letter["event_id"] for letter in json.loads(choreo("dlq", "ls", DESK, "--json", *words).out)["letters"]]

    assert listed() == ["e-1", "e-3"]
    assert listed("--state", "all") == ["e-1", "e-2", "e-3"]
    assert listed("--state", "resolved") == ["e-2"]
    assert listed("--handler", "book-payment") == ["e-3"]
    assert listed("--group", "77be") == ["e-3"]
    assert listed("--key", "o-1") == ["e-1", "e-3"]
    assert listed("--key", "o-2") == []


def test_records_that_are_no_letters_are_listed_and_never_crash(broker: MemoryBroker) -> None:
    broker.write(Outgoing("desk.dlq", b"\xff", b"\x1b[31mwhat is this", [("choreo-dlq-topic", b"\xff"), ("a", None), ("a", b"1")]))
    broker.write(Outgoing("desk.letters", b"letter|x", b"{}"))
    broker.write(Outgoing("desk.replay", None, None))

    said = choreo("dlq", "ls", DESK)

    assert said.code == 0
    assert "opaque     desk.dlq[0]@0" in said.out
    assert "desk.letters[0]@0 is no letter state" in said.out
    assert "desk.replay[0]@0 is no replay entry" in said.out
    assert "\x1b" not in said.out
    document = json.loads(choreo("dlq", "ls", DESK, "--json").out)
    assert [stray["kind"] for stray in document["strays"]] == ["opaque"]
    assert len(document["unreadable_states"]) == 2


def test_an_unknown_service_is_one_line_and_exit_2(broker: MemoryBroker) -> None:
    for topic in ("desk.letters", "desk.dlq", "desk.replay"):
        assert topic in broker.cluster().topics()
    cli_desk.fresh(own_topics=False)

    said = choreo("dlq", "ls", DESK)

    assert said.code == 2
    assert said.err.startswith("error  no service 'desk': Kafka has no topic desk.letters, desk.dlq, desk.replay")
    assert said.err.count("\n") == 1


# ---- show -----------------------------------------------------------------------------------------------------------


def test_a_letter_is_shown_whole(broker: MemoryBroker) -> None:
    died(broker, "e-1", offset=3)

    said = choreo("dlq", "show", DESK, "e-1")

    assert said.code == 0
    for line in (
        "letter     open, failed, of charge-card; group 3fa9c01d",
        "event      order.placed  e-1 by orders/http",
        "origin     orders[0]@3",
        "dlq        desk.dlq[0]@0",
        "died       ReadTimeout gateway.py:41: slow",
        f"do         choreo replay {DESK.split(':')[1]} --id e-1 --handler charge-card",
        "  choreo-source: orders/http",
        '      "order_id": "o-1"',
        '    File "/app/shop/gateway.py", line 41, in post',
    ):
        assert line in said.out


def test_a_letter_is_found_by_the_beginning_of_its_id_its_group_or_its_place(broker: MemoryBroker) -> None:
    died(broker, "0198c2d4-7b1e", offset=3)

    for words in ("0198c2", "3fa9", "desk.dlq[0]@0"):
        assert json.loads(choreo("dlq", "show", DESK, words, "--json").out)["letter"]["event_id"] == "0198c2d4-7b1e"


def test_an_event_that_died_in_two_handlers_is_asked_about(broker: MemoryBroker) -> None:
    died(broker, "e-1", offset=3)
    died(broker, "e-1", offset=3, handler="book-payment")

    said = choreo("dlq", "show", DESK, "e-1")

    assert said.code == 2
    assert "e-1 died in book-payment, charge-card; say which: --handler" in said.err
    assert choreo("dlq", "show", DESK, "e-1", "--handler", "book-payment").code == 0


def test_a_stray_record_is_shown_by_its_place(broker: MemoryBroker) -> None:
    broker.write(Outgoing("desk.dlq", b"\xff", b"\x1b[31mwhat is this", [("a", None)]))

    said = choreo("dlq", "show", DESK, "desk.dlq[0]@0")

    assert said.code == 0
    assert "no letter's state points here" in said.out
    assert "\\x1b[31mwhat is this" in said.out
    assert "a: (null)" in said.out


def test_a_letter_whose_record_is_gone_is_shown_without_it(broker: MemoryBroker) -> None:
    died(broker, "e-1", offset=3)
    broker.trim("desk.dlq", 0, before=1)

    said = choreo("dlq", "show", DESK, "e-1")

    assert said.code == 0
    assert "its record desk.dlq[0]@0 is gone: Kafka's retention deleted it" in said.out


def test_an_unknown_letter_is_exit_2(broker: MemoryBroker) -> None:
    assert choreo("dlq", "show", DESK, "e-7").code == 2
    assert choreo("dlq", "show", DESK, "desk.dlq[0]@7").code == 2


def test_control_characters_of_a_letter_do_not_reach_the_terminal(broker: MemoryBroker) -> None:
    died(broker, "e-1", offset=3, value=b"\x1b]0;owned\x07", message="orders[0]@3: \x1b[31mred", event_type="\x1b[1m")

    shown = "".join(choreo("dlq", command, DESK, *words).out for command, *words in (("show", "e-1"), ("ls",), ("report",)))

    assert "\x1b" not in shown
    assert "\x07" not in shown


# ---- report ---------------------------------------------------------------------------------------------------------


def test_a_report_groups_by_failure_and_says_what_replays_it(broker: MemoryBroker) -> None:
    died(broker, "e-1", offset=1)
    died(broker, "e-2", offset=2)
    died(broker, "e-3", offset=3, handler="book-payment", fingerprint="77be0000", error_type="UniqueViolation")

    said = choreo("dlq", "report", DESK)

    assert said.code == 1
    assert said.out.startswith("desk: 3 letters open")
    assert "3fa9        2  charge-card   ReadTimeout gateway.py:41: slow" in said.out
    assert "77be        1  book-payment  UniqueViolation" in said.out
    assert "3fa9  example  choreo dlq show desk e-1" in said.out
    assert "when fixed  choreo replay desk --group 3fa9" in said.out


def test_a_report_as_json(broker: MemoryBroker) -> None:
    died(broker, "e-1", offset=1)

    (group,) = json.loads(choreo("dlq", "report", DESK, "--json").out)["groups"]

    assert (group["group"], group["failed"], group["replay"]) == ("3fa9", 1, "choreo replay desk --group 3fa9")
    assert len(group["trend"]) == 8


def test_a_report_of_nothing_is_exit_0(broker: MemoryBroker) -> None:
    said = choreo("dlq", "report", DESK)

    assert (said.code, said.out.startswith("desk: no open letter")) == (0, True)
