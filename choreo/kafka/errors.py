"""Which of Kafka's errors can be waited out, and which mean a wrong property? librdkafka's and the broker's codes as ours."""

from __future__ import annotations

import re
from collections.abc import Callable

from confluent_kafka import KafkaError, KafkaException

from choreo.errors import BrokerError, told

_CREATING = re.compile(r"^Failed to create [a-z ]+: ")

# Not retriable: waiting does not help, somebody must act.
_FINAL = frozenset(
    {
        "_AUTHENTICATION",
        "_SSL",
        "_INVALID_ARG",
        "_UNKNOWN_TOPIC",
        "_FENCED",
        "CLUSTER_AUTHORIZATION_FAILED",
        "FENCED_INSTANCE_ID",
        "GROUP_AUTHORIZATION_FAILED",
        "INVALID_CONFIG",
        "INVALID_GROUP_ID",
        "INVALID_PARTITIONS",
        "INVALID_RECORD",
        "INVALID_TOPIC_EXCEPTION",
        "MSG_SIZE_TOO_LARGE",
        "OFFSET_METADATA_TOO_LARGE",
        "SASL_AUTHENTICATION_FAILED",
        "TOPIC_ALREADY_EXISTS",
        "TOPIC_AUTHORIZATION_FAILED",
        "TOPIC_EXCEPTION",
        "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        "UNKNOWN_TOPIC_OR_PART",
        "UNRELEASED_INSTANCE_ID",
        "UNSUPPORTED_FOR_MESSAGE_FORMAT",
        "UNSUPPORTED_VERSION",
    }
)
_ADVICE = {
    "_AUTHENTICATION": "check sasl.username and sasl.password",
    "SASL_AUTHENTICATION_FAILED": "check sasl.username and sasl.password",
    "_SSL": "check the ssl.* properties",
    "_ALL_BROKERS_DOWN": "is Kafka up, and is CHOREO_BOOTSTRAP right?",
    "_TRANSPORT": "is Kafka up, and is CHOREO_BOOTSTRAP right?",
    "_TIMED_OUT": "is Kafka up, and is CHOREO_BOOTSTRAP right?",
    "_RESOLVE": "is the host name in CHOREO_BOOTSTRAP right?",
    "UNKNOWN_TOPIC_OR_PART": "make it with: choreo topics apply",
    "_UNKNOWN_TOPIC": "make it with: choreo topics apply",
    "_UNKNOWN_PARTITION": "make it with: choreo topics apply",
    "TOPIC_AUTHORIZATION_FAILED": "the user needs READ, WRITE or DESCRIBE on it",
    "GROUP_AUTHORIZATION_FAILED": "the user needs READ on the consumer group",
    "CLUSTER_AUTHORIZATION_FAILED": "the user needs IDEMPOTENT_WRITE or the operation's right on the cluster",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "the user needs WRITE and DESCRIBE on the transactional id",
    "MSG_SIZE_TOO_LARGE": "raise the topic's max.message.bytes or send less",
    "GROUP_ID_NOT_FOUND": "it has members of the other group protocol, which the brokers don't let be beside one another "
    "(group.consumer.migration.policy): end those first, or set group_protocol",
    "FENCED_INSTANCE_ID": "another member has the same group.instance.id; give each its own",
    "UNRELEASED_INSTANCE_ID": "another member has the same group.instance.id; give each its own",
}

# What a client that has failed for good says of it: in words only, its code is _FATAL. Those that matter.
_REASONS = {
    name: str(KafkaError(getattr(KafkaError, name)).str())
    for name in ("FENCED_INSTANCE_ID", "UNRELEASED_INSTANCE_ID", "GROUP_ID_NOT_FOUND")
}


def why_refused(make: Callable[[], object]) -> str | None:
    """What librdkafka, or its Python client, says against the properties that `make` builds a client with; None when it takes
    them. Raises BrokerError for what is not their fault (no threads left)."""
    try:
        make()
    except KafkaException as error:
        inner = error.args[0] if error.args else None
        if not isinstance(inner, KafkaError) or inner.code() != KafkaError._INVALID_ARG:
            raise broker_error(error, "making a Kafka client") from error
        return _CREATING.sub("", " ".join(str(inner.str()).split()))
    except (TypeError, ValueError) as error:
        return " ".join(told(error).split())
    return None


def broker_error(error: KafkaError | KafkaException, what: str) -> BrokerError:
    """What happened against `what`, and what to do about it."""
    inner = error.args[0] if isinstance(error, KafkaException) and error.args else error
    if not isinstance(inner, KafkaError):
        return BrokerError(f"{what}: {error}")
    code = inner.name()
    if code == "_FATAL":
        code = next((name for name, text in _REASONS.items() if text in str(inner.str())), code)
    advice = _ADVICE.get(code)
    text = f"{what}: {code}: {inner.str()}" + (f"; {advice}" if advice else "")
    fatal = bool(inner.fatal()) or inner.code() == KafkaError._FATAL
    return BrokerError(text, code=code, retriable=not fatal and code not in _FINAL, fatal=fatal)
