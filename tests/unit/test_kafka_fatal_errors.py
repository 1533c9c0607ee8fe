"""Is it said what a client failed of for good? librdkafka's code for that is _FATAL, and the reason stands in its text."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from choreo.kafka.errors import broker_error
from choreo.runtime.intake import FINAL, PASSES


def fatal(text: str) -> KafkaError:
    return KafkaError(KafkaError._FATAL, f"Fatal error: {text}: ConsumerGroupHeartbeat fatal error: {text}", fatal=True)


@pytest.mark.parametrize("code", ["FENCED_INSTANCE_ID", "UNRELEASED_INSTANCE_ID"])
def test_two_members_of_one_name_are_told_so_and_no_new_client_is_built(code: str) -> None:
    error = broker_error(fatal(KafkaError(getattr(KafkaError, code)).str()), "group payments")

    assert (error.code, error.fatal, error.retriable) == (code, True, False)
    assert str(error).endswith("; another member has the same group.instance.id; give each its own")
    assert error.code in FINAL


def test_a_group_of_the_other_protocol_is_waited_for() -> None:
    error = broker_error(fatal(KafkaError(KafkaError.GROUP_ID_NOT_FOUND).str()), "group payments")

    assert (error.fatal, error.code in PASSES) == (True, True)
    assert "end those first, or set group_protocol" in str(error)


def test_any_other_reason_stays_what_it_is() -> None:
    error = broker_error(fatal("something else"), "group payments")

    assert (error.code, error.fatal, error.retriable) == ("_FATAL", True, False)
