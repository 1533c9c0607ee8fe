"""Which value counts, who set it, and which are refused? Flag > environment > code > default."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from choreo.errors import ConfigurationError
from choreo.kafka.settings import EMBEDDED, KafkaSettings
from choreo.settings import ServiceSettings, resolve
from tests.unit.cli_desk import DESK, choreo

CODE = ServiceSettings()


def origin(name: str, code: ServiceSettings, environ: dict[str, str], flags: dict[str, Any]) -> tuple[str, str]:
    """The value that counts, and who set it."""
    (found,) = [setting for setting in resolve(code, environ, flags).origins if setting.name == name]
    return found.value, found.origin


# ---- who goes before whom -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "environ", "flags", "expected"),
    [
        (ServiceSettings(), {}, {}, ("256", "default")),
        (ServiceSettings(concurrency=64), {}, {}, ("64", "code")),
        (ServiceSettings(concurrency=64), {"CHOREO_CONCURRENCY": "32"}, {}, ("32", "environment CHOREO_CONCURRENCY")),
        (ServiceSettings(concurrency=64), {"CHOREO_CONCURRENCY": "32"}, {"concurrency": 16}, ("16", "flag --concurrency")),
        (ServiceSettings(), {"CHOREO_CONCURRENCY": "32"}, {"concurrency": None}, ("32", "environment CHOREO_CONCURRENCY")),
    ],
)
def test_a_flag_goes_before_the_environment_before_code_before_the_default(
    code: ServiceSettings, environ: dict[str, str], flags: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert origin("concurrency", code, environ, flags) == expected
    assert str(resolve(code, environ, flags).settings.concurrency) == expected[0]


@pytest.mark.parametrize(
    ("environ", "flags", "expected"),
    [
        ({}, {}, ("kafka:9092", "code")),
        ({"CHOREO_BOOTSTRAP": "other:9092"}, {}, ("other:9092", "environment CHOREO_BOOTSTRAP")),
        ({"CHOREO_BOOTSTRAP": "other:9092"}, {"bootstrap": "third:9092"}, ("third:9092", "flag --bootstrap")),
    ],
)
def test_the_same_holds_for_the_settings_of_kafka(environ: dict[str, str], flags: dict[str, Any], expected: tuple[str, str]) -> None:
    code = ServiceSettings(kafka=KafkaSettings(bootstrap="kafka:9092"))

    assert origin("bootstrap", code, environ, flags) == expected


def test_properties_of_the_environment_are_laid_over_those_of_code_one_by_one() -> None:
    code = ServiceSettings(kafka=KafkaSettings(properties={"linger.ms": 5, "client.id": "mine"}))
    environ = {"CHOREO_KAFKA_PROPERTIES": "client.id=theirs; sasl.password=a=b"}

    actual = resolve(code, environ)

    assert actual.settings.kafka.properties == {"linger.ms": 5, "client.id": "theirs", "sasl.password": "a=b"}
    assert [(s.name, s.value, s.origin) for s in actual.origins if s.name.startswith("kafka ")] == [
        ("kafka client.id", "theirs", "environment CHOREO_KAFKA_PROPERTIES"),
        ("kafka linger.ms", "5", "code"),
        ("kafka sasl.password", "********", "environment CHOREO_KAFKA_PROPERTIES"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("# a comment\n a = 1 \n\nb=2;c=3", {"a": "1", "b": "2", "c": "3"}),
        ('{"a": 1, "b": true}', {"a": 1, "b": True}),
    ],
)
def test_properties_are_lines_or_a_json_object(text: str, expected: dict[str, object]) -> None:
    assert resolve(CODE, {"CHOREO_KAFKA_PROPERTIES": text}).settings.kafka.properties == expected


@pytest.mark.parametrize(
    ("text", "why"), [("linger.ms", "'linger.ms' is no name=value"), ("{,", "unexpected character"), ("[1]", "is no name=value")]
)
def test_properties_that_are_neither_are_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"CHOREO_KAFKA_PROPERTIES=.*{why}"):
        resolve(CODE, {"CHOREO_KAFKA_PROPERTIES": text})


@pytest.mark.parametrize(
    ("text", "expected"),
    [("true", True), ("1", True), ("Yes", True), ("on", True), ("false", False), ("0", False), ("no", False), ("off", False), ("", False)],
)
def test_yes_and_no_have_several_words(text: str, expected: bool) -> None:
    assert resolve(CODE, {"CHOREO_STRICT": text}).settings.strict is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("latest", "latest"),
        ("refuse", "refuse"),
        ("2026-11-22T03:00:00Z", datetime(2026, 11, 22, 3, tzinfo=UTC)),
    ],
)
def test_a_start_is_a_word_or_a_time(text: str, expected: object) -> None:
    assert resolve(CODE, {"CHOREO_START": text}).settings.start == expected


# ---- files ----------------------------------------------------------------------------------------------------------


def test_a_variable_may_name_a_file_that_holds_the_value(tmp_path: Path) -> None:
    secret = tmp_path / "kafka.properties"
    secret.write_text("sasl.username=payments\nsasl.password=s3cret\n")
    environ = {"CHOREO_KAFKA_PROPERTIES_FILE": str(secret)}

    actual = resolve(CODE, environ)

    assert actual.settings.kafka.properties == {"sasl.username": "payments", "sasl.password": "s3cret"}
    assert "s3cret" not in str(actual.origins)


def test_the_last_line_break_of_a_file_is_not_part_of_the_value(tmp_path: Path) -> None:
    (tmp_path / "bootstrap").write_text("kafka:9092\n")

    actual = resolve(CODE, {"CHOREO_BOOTSTRAP_FILE": str(tmp_path / "bootstrap")})

    assert actual.settings.kafka.bootstrap == "kafka:9092"


def test_a_file_that_can_t_be_read_is_refused_by_the_variable_s_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"CHOREO_BOOTSTRAP_FILE=.*nowhere: can't be read: No such file"):
        resolve(CODE, {"CHOREO_BOOTSTRAP_FILE": str(tmp_path / "nowhere")})


def test_a_file_for_what_is_no_setting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="CHOREO_FAILURE_FILE is no setting of choreo"):
        resolve(CODE, {"CHOREO_FAILURE_FILE": __file__})


# ---- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("concurrency", 1, 10_000), ("threads", 1, 1_000), ("drain_s", 0, 3_600), ("start_deadline_s", 0, 86_400)],
)
def test_a_number_has_a_range(name: str, least: int, most: int) -> None:
    for sound in (least, most):
        assert getattr(replace(CODE, **{name: sound}), name) == sound  # type: ignore[arg-type]
    for wrong in (least - 1, most + 1):
        with pytest.raises(ConfigurationError, match=f"{name}={wrong}; use {least} to {most}"):
            replace(CODE, **{name: wrong})  # type: ignore[arg-type]


def test_what_is_no_number_at_all_is_out_of_range() -> None:
    with pytest.raises(ConfigurationError, match="drain_s=nan; use 0 to 3600"):
        resolve(CODE, {"CHOREO_DRAIN_S": "nan"})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"start": "newest"}, "start='newest'; use earliest, latest, refuse, or a time"),
        ({"start": datetime(2026, 11, 22)}, "has no time zone"),  # noqa: DTZ001 - that is the mistake
        ({"start": datetime(2026, 11, 22, tzinfo=UTC), "kafka": KafkaSettings(bootstrap=EMBEDDED)}, "can't find offsets by time"),
        ({"effects": "transaction"}, "is what a handler asks for by its type"),
        ({"effects": "kafka", "kafka": KafkaSettings(bootstrap=EMBEDDED)}, "keeps no offsets of transactions; run a Kafka"),
        ({"effects": "none"}, "effects='none'; use claims, offsets or kafka"),
        ({"transactional_id": "a"}, 'is for effects="kafka"'),
        ({"effects": "kafka", "transactional_id": ""}, "transactional_id=''"),
    ],
)
def test_a_word_that_means_nothing_is_refused_with_those_that_do(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        ServiceSettings(**given)


@pytest.mark.parametrize(
    ("variable", "text"),
    [("CHOREO_CONCURRENCY", "many"), ("CHOREO_DRAIN_S", "1 min"), ("CHOREO_STRICT", "maybe"), ("CHOREO_START", "soon")],
)
def test_a_value_that_can_t_be_read_is_refused_by_the_variable_s_name(variable: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{variable}={text}: "):
        resolve(CODE, {variable: text})


def test_a_variable_that_is_no_setting_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match="CHOREO_CONCURENCY is no setting of choreo; did you mean 'CHOREO_CONCURRENCY'"):
        resolve(CODE, {"CHOREO_CONCURENCY": "8"})


@pytest.mark.parametrize(
    "variable",
    ["CHOREO_KAFKA_PORT", "CHOREO_KAFKA_JARS", "CHOREO_TEST_BOOTSTRAP", "CHOREO_FAILPOINT", "CHOREO_WORKER", "CHOREO_STATUS", "PATH"],
)
def test_a_variable_that_is_somebody_elses_is_left_alone(variable: str) -> None:
    assert resolve(CODE, {variable: "9192"}).settings == CODE


def test_the_port_of_the_compose_file_stops_no_command() -> None:
    said = choreo("config", DESK, environment={"CHOREO_KAFKA_PORT": "9192"})

    assert (said.code, said.err) == (0, "")
