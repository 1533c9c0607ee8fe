"""What stands beside a group's committed offsets? Looked at from outside, and read as a member that begins would read it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection
from confluent_kafka import TopicPartition as ClientPartition

from choreo.core.offset_map import Begun, OffsetMap, left_of, read_map
from choreo.record import TopicPartition
from tests.support.kafka_access import REQUEST_S, KafkaAccess
from tests.support.waiting import wait_for

A_REQUEST = 100
"""Partitions a commit: the broker refuses one as a whole that is over a megabyte."""


def topic_id(kafka: KafkaAccess, topic: str) -> bytes:
    """The id that the brokers gave a topic when it was made: 16 bytes."""
    asked = kafka.admin.describe_topics(TopicCollection([topic]), request_timeout=REQUEST_S)
    found = asked[topic].result(REQUEST_S * 2).topic_id
    halves = (found.get_most_significant_bits(), found.get_least_significant_bits())
    return b"".join((half & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "big") for half in halves)


def maps(kafka: KafkaAccess, group: str, topic: str, *, partitions: Collection[int] | None = None) -> dict[int, OffsetMap]:
    """The maps that count, by partition; of these only where it is said."""
    number = topic_id(kafka, topic)
    found: dict[int, OffsetMap] = {}
    for (_, partition), (offset, text) in kafka.committed_with_metadata(group, [topic]).items():
        wanted = offset is not None and (partitions is None or partition in partitions)
        read = read_map(text, topic_id=number, offset=offset or 0) if wanted else None
        if isinstance(read, OffsetMap):
            found[partition] = read
    return found


def finished(found: OffsetMap) -> set[int]:
    """The offsets that a map says are finished above the committed one."""
    return set(range(found.offset, found.reach or found.offset)) - found.unfinished.keys()


def begun(found: OffsetMap | None, offset: int, handler: int) -> Begun | None:
    """What a map, if it is there, says has begun of an event; None: nothing of it, or it is through."""
    return None if found is None or offset >= (found.reach or 0) else left_of(found, offset, handler)


def wait_for_begun(
    kafka: KafkaAccess, group: str, topic: str, partition: int, offset: int, handler: int, attempts: int, *, deadline_s: float
) -> None:
    """Returns when the group's metadata says that so many attempts of one handler at one event have begun."""

    def recorded() -> bool:
        told = begun(maps(kafka, group, topic).get(partition), offset, handler)
        return told is not None and told.attempts >= attempts

    wait_for(recorded, f"{attempts} attempts at {topic}[{partition}]@{offset} are recorded", deadline_s=deadline_s)


def put_offsets(kafka: KafkaAccess, group: str, places: Mapping[TopicPartition, tuple[int, str]], *, deadline_s: float = 30.0) -> None:
    """Sets a group's offsets and what stands beside them, as a tool does that mirrors or restores a group. It must have no member."""
    wanted = [ClientPartition(place.topic, place.partition, offset, metadata=text) for place, (offset, text) in places.items()]
    requests = [wanted[at : at + A_REQUEST] for at in range(0, len(wanted), A_REQUEST)]
    client = Consumer(kafka.config({"group.id": group, "enable.auto.commit": False}))

    def put() -> bool:
        try:
            answers = [place for request in requests for place in client.commit(offsets=request, asynchronous=False) or ()]
            return all(place.error is None for place in answers)
        except KafkaException as error:
            # The last member has only just left.
            assert error.args[0].code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP), error
            return False

    try:
        wait_for(put, f"offsets of {group} are set", deadline_s=deadline_s)
    finally:
        client.close()
