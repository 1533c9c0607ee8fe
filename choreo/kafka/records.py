"""A librdkafka message as a Record."""

from __future__ import annotations

from confluent_kafka import Message

from choreo.record import Record


def record_of(message: Message) -> Record:
    """Copies what Kafka gave us; headers stay a list, None values stay None (TRAPS 6, 25)."""
    return Record(
        message.topic(),  # type: ignore[arg-type]
        message.partition(),  # type: ignore[arg-type]
        message.offset(),  # type: ignore[arg-type]
        message.timestamp()[1],
        message.key(),
        message.value(),
        message.headers() or (),  # type: ignore[arg-type]
    )
