"""Does the reference say what the code says? Names, defaults, headers and words, both ways where a table claims to be complete."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

import choreo
from choreo import Context, Emit, Envelope, Handler, KafkaSettings, Origin, Replay, RetryPolicy, Service, ServiceSettings, envelope, errors
from choreo import failpoint as failpoints
from choreo.core.engine import IN_FLIGHT_BOUND
from choreo.kafka.settings import REFUSED, SECRETS
from choreo.letter import Death, LetterState, Owner, ReplayOutcome, Request, Result, Run, State, dead_letter
from choreo.record import Record
from choreo.telemetry.counters import Counters
from tests.docs.pages import PAGES, names_in, page, rows

REFERENCE = [shown for shown in PAGES if shown.name.startswith("docs/reference/")]
NOW = datetime(2026, 11, 22, tzinfo=UTC)
GLOSSARY = "docs/reference/glossary.md"


def first_column(text: str) -> list[str]:
    """What the first cells of a text's tables name."""
    return [name for row in rows(text) for name in names_in(row[0])]


# ---- settings, counters, errors, failpoints -----------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "left_out"), [(ServiceSettings, {"kafka"}), (KafkaSettings, set[str]())])
def test_the_settings_are_all_there_with_their_defaults(cls: Any, left_out: set[str]) -> None:
    shown = {names_in(row[0])[0]: row[2].strip("`") for row in rows(page("docs/reference/settings.md").section(cls.__name__))}
    fields = {field.name: field for field in dataclasses.fields(cls) if field.name not in left_out}

    assert shown.keys() == fields.keys()
    for name, field in fields.items():
        if isinstance(field.default, str | int | float) and field.default != "":
            expected = f"{field.default:g}" if isinstance(field.default, float) else str(field.default).lower()
            assert (name, shown[name]) == (name, expected)


def test_the_refused_properties_are_all_there() -> None:
    text = page("docs/reference/settings.md").text

    assert [name for name in REFUSED if f"`{name}`" not in text] == []
    assert [word for word in SECRETS if f"`{word}`" not in text] == []


def test_the_bound_of_unfinished_events_is_told_right() -> None:
    assert f"{IN_FLIGHT_BOUND:,}" in page("docs/reference/settings.md").section("Fixed numbers")


def test_the_counters_are_all_there() -> None:
    assert first_column(page("docs/reference/counters.md").text) == list(Counters().as_dict())


def test_the_errors_are_all_there() -> None:
    own = {name for name, cls in vars(errors).items() if inspect.isclass(cls) and issubclass(cls, errors.ChoreoError)}
    shown = first_column(page("docs/reference/errors.md").text.partition("## ")[0])

    assert set(shown) == own - {"ChoreoError"}
    assert "`ChoreoError`" in page("docs/reference/errors.md").text


def test_the_failpoints_and_their_actions_are_all_there() -> None:
    shown = set(first_column(page("docs/how-to/rehearse-a-crash.md").text))

    assert shown == failpoints.NAMES | failpoints.ACTIONS


# ---- handlers -----------------------------------------------------------------------------------------------------------


def test_the_attributes_of_handlers_are_all_there() -> None:
    own = {name for name in Handler.__annotations__ if not name.startswith("_")}

    assert set(first_column(page("docs/reference/handlers.md").section("The class"))) == own


def test_the_arguments_of_the_retry_policy_are_all_there_with_their_defaults() -> None:
    shown = {names_in(row[0])[0]: row[1].strip("`") for row in rows(page("docs/reference/handlers.md").section("RetryPolicy"))}

    assert shown == {field.name: str(field.default) for field in dataclasses.fields(RetryPolicy)}


def test_what_a_context_tells_is_all_there() -> None:
    fields = {field for field in Context.__struct_fields__ if not field.startswith("_")}
    properties = {name for name, value in vars(Context).items() if isinstance(value, property)}
    shown = {name.partition("(")[0] for name in first_column(page("docs/reference/handlers.md").section("Context"))}

    assert shown == fields | properties | {"idempotency_key"}


@pytest.mark.parametrize(("cls", "section"), [(Origin, "Context"), (Replay, "Context"), (Emit, "Emit"), (Envelope, "Envelope")])
def test_the_fields_of_small_values_are_there(cls: Any, section: str) -> None:
    text = page("docs/reference/handlers.md").section(section)

    assert [field for field in cls.__struct_fields__ if not re.search(rf"\b{field}\b", text)] == []


def test_the_arguments_of_a_service_are_all_there() -> None:
    text = page("docs/reference/handlers.md").section("Service")
    arguments = list(inspect.signature(Service).parameters)

    assert [name for name in first_column(text) if "(" not in name] == arguments


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(shown.text for shown in REFERENCE)

    assert [name for name in choreo.__all__ if not re.search(rf"\b{name}\b", text)] == []


# ---- the wire -----------------------------------------------------------------------------------------------------------


def test_every_header_of_an_event_is_there_and_no_other() -> None:
    shown = first_column(page("docs/reference/wire-format.md").section("Headers"))

    assert sorted(shown) == sorted(envelope.EVENT_HEADERS)


def test_every_header_of_a_letter_is_there_and_no_other() -> None:
    death = Death("failed", "h", "g", "e", "t", "E", "m", "s", "f", 1, NOW, NOW, "1", "host")
    letter = dead_letter("billing.dlq", Record("orders", 0, 0, 0, b"k", b"v"), death)
    shown = first_column(page("docs/reference/wire-format.md").section("Letters: `<service>.dlq`"))

    assert sorted(shown) == sorted(name for name, _ in letter.headers)


@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("State: `<service>.letters`", (*LetterState.__struct_fields__, *Owner.__struct_fields__, *State.__args__)),  # type: ignore[attr-defined]
        (
            "Replays: `<service>.replay`",
            (*Run.__struct_fields__, *Request.__struct_fields__, *ReplayOutcome.__struct_fields__, *Result.__args__),  # type: ignore[attr-defined]
        ),
    ],
)
def test_every_field_of_choreos_own_records_is_there(section: str, names: Iterable[str]) -> None:
    text = page("docs/reference/wire-format.md").section(section)

    assert [name for name in names if f"`{name}`" not in text] == []


def test_the_value_in_the_reference_can_be_read() -> None:
    (block,) = page("docs/reference/wire-format.md").blocks("json")

    assert msgspec.json.decode(block.text, type=Envelope[dict[str, object]]).type == "order.placed"


# ---- one concept, one word ----------------------------------------------------------------------------------------------


def test_every_word_of_the_glossary_is_used() -> None:
    text = "\n".join(shown.text for shown in PAGES if shown.name != GLOSSARY).lower()

    assert [word for word, *_ in rows(page(GLOSSARY).text) if not re.search(rf"\b{word}", text)] == []


def test_a_word_that_the_glossary_avoids_is_not_used() -> None:
    avoided = {word.strip() for row in rows(page(GLOSSARY).text) for word in row[2].split(",") if word.strip()}
    used = {
        (shown.name, word)
        for shown in PAGES
        if shown.name != GLOSSARY and not shown.name.startswith("services_example/")
        for word in avoided
        if re.search(rf"\b{word}s?\b", shown.words(), re.IGNORECASE)
    }

    assert used == set()
