"""Which Kafka properties are refused, by whom, and how is that told? In one line that names the property, before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import pytest

from choreo.errors import ConfigurationError
from choreo.kafka.broker import KafkaBroker
from choreo.kafka.cluster import login
from choreo.kafka.settings import CLASSIC_ONLY, CONSUMER_ONLY, MEMBERS_ONLY, PRODUCER_ONLY, REFUSED, GroupProtocol, KafkaSettings, masked
from tests.unit.cli_desk import choreo

NOBODY = "127.0.0.1:1"

REFUSED_BY_LIBRDKAFKA: Mapping[str, tuple[str, str]] = {
    "linger.mss=5": ("linger.mss", "did you mean 'linger.ms'?"),
    "tabasco=5": ("tabasco", "remove it, or see librdkafka's CONFIGURATION.md for its names"),
    "security.protocol=FOO": ("security.protocol", 'Invalid value "FOO"'),
    "max.in.flight=10": ("max.in.flight", "must be set <= 5"),
    "fetch.max.bytes=1000": ("fetch.max.bytes", "must be >= `message.max.bytes`"),
    "compression.type=zzz": ("compression.type", 'Invalid value "zzz"'),
    "linger.ms=-1": ("linger.ms", "outside allowed range 0..900000; correct it"),
    "socket.timeout.ms=abc": ("socket.timeout.ms", "correct it, or leave it out"),
    "debug=zz": ("debug", 'Invalid value "zz"'),
    "group.protocol.type=x": ("group.protocol.type", "correct it, or leave it out"),
    "session.timeout.ms=600000": ("session.timeout.ms", "must be >= `session.timeout.ms`"),
    "ssl.ca.location=/nowhere;security.protocol=SSL": ("ssl.ca.location", "correct it, or leave it out"),
}


def broker(properties: Mapping[str, str | int], group_protocol: GroupProtocol = "auto") -> KafkaBroker:
    return KafkaBroker(KafkaSettings(bootstrap=NOBODY, properties=properties, group_protocol=group_protocol))


def pairs(text: str) -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in text.split(";"))


# ---- by choreo, when the settings are made --------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFUSED)
def test_a_property_that_choreo_relies_on_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        KafkaSettings(properties={name: "x"})

    assert str(caught.value) == f"Kafka property {name}: can't be set; {REFUSED[name]}"


@pytest.mark.parametrize(("name", "value"), [("allow.auto.create.topics", "true"), ("isolation.level", "read_uncommitted")])
def test_topics_by_accident_and_uncommitted_records_are_refused(name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Kafka property {name}: can't be set"):
        KafkaSettings(properties={name: value})


@pytest.mark.parametrize("name", CLASSIC_ONLY)
def test_a_property_of_the_classic_protocol_is_refused_beside_the_other_one(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Kafka property {name}: librdkafka can't combine it with group.protocol=consumer"):
        KafkaSettings(properties={name: "1000"}, group_protocol="consumer")


@pytest.mark.parametrize("name", CLASSIC_ONLY)
def test_a_property_of_the_classic_protocol_chooses_that(name: str) -> None:
    settings = KafkaSettings(properties={name: "1000"})

    assert settings.settled_protocol() == "classic"


@pytest.mark.parametrize("chosen", get_args(GroupProtocol))
def test_the_protocol_is_settled_unless_the_brokers_are_to_be_asked(chosen: GroupProtocol) -> None:
    settings = KafkaSettings(group_protocol=chosen)

    assert settings.settled_protocol() == (None if chosen == "auto" else chosen)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("bootstrap.servers", "CHOREO_BOOTSTRAP"),
        ("metadata.broker.list", "CHOREO_BOOTSTRAP"),
        ("group.protocol", "CHOREO_GROUP_PROTOCOL"),
    ],
)
def test_a_property_with_a_setting_of_its_own_is_refused_by_that_name(name: str, advice: str) -> None:
    with pytest.raises(ConfigurationError, match=advice):
        KafkaSettings(properties={name: "x"})


def test_an_unknown_protocol_and_an_empty_bootstrap_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="group_protocol='modern'; use auto, classic or consumer"):
        KafkaSettings(group_protocol="modern")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="bootstrap is empty"):
        KafkaSettings(bootstrap="")


# ---- by librdkafka, at the first use --------------------------------------------------------------------------------


@pytest.mark.parametrize("given", REFUSED_BY_LIBRDKAFKA)
@pytest.mark.parametrize("client", ["cluster", "producer", "reader", "consumer"])
def test_what_librdkafka_refuses_is_found_by_whichever_client_comes_first(given: str, client: str) -> None:
    name, part = REFUSED_BY_LIBRDKAFKA[given]
    first = broker(pairs(given))

    with pytest.raises(ConfigurationError) as caught:
        first.consumer("payments") if client == "consumer" else getattr(first, client)()

    assert str(caught.value).startswith(f"Kafka property {name}: librdkafka says: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_property_that_goes_with_one_protocol_only_is_refused_when_that_is_the_one() -> None:
    short = {"max.poll.interval.ms": 1_000}
    broker(short, "consumer").consumer("payments").close()

    with pytest.raises(ConfigurationError, match=r"Kafka property max\.poll\.interval\.ms: librdkafka says"):
        broker(short, "classic").consumer("payments")


def test_where_two_properties_don_t_go_together_both_are_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        broker({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "FOO"}).producer()

    assert "Kafka properties security.protocol, sasl.mechanism: librdkafka says: Unsupported SASL mechanism: FOO" in str(caught.value)
    assert "correct them, or leave one of them out" in str(caught.value)


def test_a_value_of_the_wrong_type_is_refused_like_a_wrong_value() -> None:
    with pytest.raises(ConfigurationError, match="Kafka property stats_cb: librdkafka says: expected stats_cb property as a callable"):
        broker({"stats_cb": "x"}).producer()


@pytest.mark.parametrize("given", REFUSED_BY_LIBRDKAFKA)
def test_on_the_command_line_it_is_one_line_and_exit_2(given: str) -> None:
    said = choreo(
        "dlq",
        "report",
        "payments",
        environment={"CHOREO_BOOTSTRAP": NOBODY, "CHOREO_KAFKA_PROPERTIES": given},
    )

    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error  Kafka property {REFUSED_BY_LIBRDKAFKA[given][0]}: librdkafka says: ")
    assert said.err.count("\n") == 1


# ---- what is shown --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("properties", "expected"),
    [
        ({}, ""),
        ({"security.protocol": "plaintext", "sasl.username": "payments"}, ""),
        ({"security.protocol": "SASL_SSL", "sasl.username": "payments", "sasl.password": "s3cret"}, ", SASL_SSL as payments"),
        ({"security.protocol": "sasl_plaintext", "sasl.mechanism": "OAUTHBEARER"}, ", SASL_PLAINTEXT"),
        ({"security.protocol": "ssl", "sasl.username": "payments"}, ", SSL"),
    ],
)
def test_the_screen_says_how_one_gets_in_and_as_whom(properties: Mapping[str, str], expected: str) -> None:
    assert login(KafkaSettings(properties=properties).common()) == expected


# ---- who gets what --------------------------------------------------------------------------------------------------


def test_each_client_gets_the_properties_that_are_its_own() -> None:
    properties: dict[str, str | int] = {"client.id": "c", "linger.ms": 3, "fetch.min.bytes": 4, "group.instance.id": "i"}
    settings = KafkaSettings(properties={**properties})
    clients = {
        "consumer": settings.consumer("payments", "consumer"),
        "reader": settings.reader(),
        "producer": settings.producer(),
        "common": settings.common(),
    }

    actual = {name: properties.keys() & given.keys() for name, given in clients.items()}

    assert actual == {
        "consumer": {"client.id", "fetch.min.bytes", "group.instance.id"},
        "reader": {"client.id", "fetch.min.bytes"},
        "producer": {"client.id", "linger.ms"},
        "common": {"client.id"},
    }


def test_no_property_is_of_consumers_and_of_producers() -> None:
    assert CONSUMER_ONLY.isdisjoint(PRODUCER_ONLY)
    assert MEMBERS_ONLY <= CONSUMER_ONLY


@pytest.mark.parametrize("name", ["sasl.password", "ssl.key.password", "sasl.oauthbearer.client.secret", "ssl.key.pem", "SASL.Password"])
def test_secrets_are_masked(name: str) -> None:
    assert masked(name, "s3cret") == "********"
    assert masked("sasl.username", "payments") == "payments"


def test_what_a_transaction_sends_has_less_time_than_the_transaction() -> None:
    made = KafkaSettings(properties={"delivery.timeout.ms": "120000", "transaction.timeout.ms": 20_000}).transactor("a")

    assert (made["transactional.id"], made["transaction.timeout.ms"], made["delivery.timeout.ms"]) == ("a", 20_000, 12_000)
    assert made["topic.metadata.propagation.max.ms"] <= 12_000
    assert "transaction.timeout.ms" not in KafkaSettings(properties={"transaction.timeout.ms": 20_000}).producer()
    assert "transaction.timeout.ms" not in KafkaSettings(properties={"transaction.timeout.ms": 20_000}).consumer("g", "classic")
