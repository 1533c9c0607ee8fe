"""One service on one Kafka in one test: its topics, what went in, and what came out of it."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as ClientPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    ResourceType,
)

from choreo import Handler, KafkaSettings, Service, ServiceSettings
from choreo.letter import (
    LetterState,
    ReplayEntry,
    ReplayOutcome,
    Request,
    Run,
    dlq_headers,
    dlq_topic,
    letters_topic,
    read_replay,
    read_state,
    replay_record,
    replay_topic,
    without_dlq_headers,
)
from choreo.operations.topics import LETTERS_CONFIG, REPLAY_CONFIG, dlq_config
from choreo.record import Headers, Record, TopicPartition
from choreo.runtime.worker import Worker
from choreo.store import Store
from tests.support.kafka_access import REQUEST_S, KafkaAccess, as_record
from tests.support.names import Names
from tests.support.process import WorkerProcess
from tests.support.producer import SETTINGS
from tests.support.waiting import wait_for

T = TypeVar("T")

SERVICE = "payments"
BOTH_EFFECTS = pytest.mark.parametrize("effects", ["offsets", "kafka"])
"""For a whole module: what its tests say holds with transactions, too."""
CATCH_UP_S = 30.0
LOOK_AGAIN_S = 0.01
MAX_SENT_BYTES = 20_000_000


class Sent(NamedTuple):
    """A record to be written as it is."""

    value: bytes | None
    key: bytes | None = b"o-1"
    headers: Headers = ()
    partition: int = 0


class Letter(NamedTuple):
    """A record of the dead-letter topic: the bytes as they came, and what the `choreo-dlq-*` headers say."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    why: Mapping[str, str]


class Ground:
    """Owns the topics of the service `payments`: choreo's own, as ``choreo topics apply`` makes them, and those a test asks for.

    Logical names get the test's own prefix, and so does the group. `protocol` is the group's, `effects` are the service's where it
    has no store, `kafka` is the cluster as the test sees it.
    """

    def __init__(self, kafka: KafkaAccess, names: Names, protocol: str = "auto", effects: str = "offsets") -> None:
        self.kafka = kafka
        self.protocol = protocol
        self.effects = effects
        self.prefix = f"{names.prefix}."
        self.group = self.prefix + SERVICE
        self.dlq, self.letters, self.replays = (self.prefix + topic(SERVICE) for topic in (dlq_topic, letters_topic, replay_topic))
        self._made: list[str] = []
        # Not idempotent: that takes half a second to begin with.
        self._producer = Producer(
            kafka.config({**SETTINGS, "enable.idempotence": False, "max.in.flight": 1, "message.max.bytes": MAX_SENT_BYTES})
        )

    # ---- topics -------------------------------------------------------------------------------------------------------

    def make(self, *, largest: int = 0, **topics: int) -> None:
        """Makes choreo's own topics and these, each with so many partitions; `largest` is their max.message.bytes, 0 the broker's."""
        limit = {"max.message.bytes": str(largest)} if largest else {}
        wanted = [NewTopic(self.topic(name), count, config=limit) for name, count in topics.items()]
        wanted.append(NewTopic(self.dlq, 1, config=dict(dlq_config(largest))))
        wanted.append(NewTopic(self.letters, 1, config=dict(LETTERS_CONFIG)))
        wanted.append(NewTopic(self.replays, 1, config=dict(REPLAY_CONFIG)))
        for topic, made in self.kafka.admin.create_topics(wanted, request_timeout=REQUEST_S).items():
            made.result(REQUEST_S * 2)
            self._made.append(topic)
        for topic in self._made:
            wait_for(lambda topic=topic: self._serves(topic), f"{topic} serves", deadline_s=30)  # type: ignore[misc]

    def topic(self, name: str) -> str:
        """The broker's name of a logical topic."""
        return self.prefix + name

    def grow(self, name: str, total: int) -> None:
        """Gives a logical topic so many partitions."""
        topic = self.topic(name)
        self.kafka.admin.create_partitions([NewPartitions(topic, total)], request_timeout=REQUEST_S)[topic].result(REQUEST_S * 2)
        wait_for(lambda: len(self._producer.list_topics(topic).topics[topic].partitions) == total, f"{topic} has {total}", deadline_s=30)

    def configure(self, topic: str, settings: Mapping[str, str]) -> None:
        """Sets these settings of a topic of the broker's; returns when the broker knows them."""
        entries = [ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        for changed in self.kafka.admin.incremental_alter_configs([resource], request_timeout=REQUEST_S).values():
            changed.result(REQUEST_S * 2)

        def known() -> bool:
            wanted = ConfigResource(ResourceType.TOPIC, topic)
            found = self.kafka.admin.describe_configs([wanted], request_timeout=REQUEST_S)[wanted].result(REQUEST_S * 2)
            return all(found[name].value == value for name, value in settings.items())

        wait_for(known, f"{topic} has {dict(settings)}", deadline_s=30)

    def delete(self) -> None:
        """Deletes what it made."""
        self.kafka.delete_topics(self._made)

    def _serves(self, topic: str) -> bool:
        found = self.kafka.admin.list_topics(topic, timeout=REQUEST_S).topics[topic]
        return (
            found.error is None and all(partition.leader >= 0 for partition in found.partitions.values()) and bool(self.kafka.ends(topic))
        )

    # ---- what goes in -------------------------------------------------------------------------------------------------

    def put(self, topic: str, *records: Sent) -> list[Record]:
        """Writes these bytes to a logical topic; the records as Kafka has them, in order."""
        return self.put_at(topic, 0, *records)

    def put_at(self, topic: str, timestamp_ms: int, *records: Sent) -> list[Record]:
        """The same with a record timestamp; 0 is now."""
        written: list[Record] = []

        def report(error: KafkaError | None, message: Message) -> None:
            assert error is None, f"{topic}: {error}"
            written.append(as_record(message))

        for value, key, headers, partition in records:
            self._producer.produce(
                self.topic(topic), value, key, partition, headers=list(headers), on_delivery=report, timestamp=timestamp_ms
            )
            self._producer.poll(0)
        assert self._producer.flush(REQUEST_S) == 0
        return written

    # ---- the service --------------------------------------------------------------------------------------------------

    def service(
        self, *handlers: Handler[Any, Any], store: Store | None = None, properties: Mapping[str, Any] | None = None, **settings: Any
    ) -> Service:
        """The service `payments` on these topics; its effects are `effects` unless it has a store."""
        kafka = KafkaSettings(
            bootstrap=self.kafka.bootstrap,
            properties={**self.kafka.security, **(properties or {})},
            group_protocol=self.protocol,  # type: ignore[arg-type]
        )
        effects = {} if store is not None else {"effects": self.effects}
        if {**effects, **settings}.get("effects") == "kafka":
            settings.setdefault("transactional_id", f"{self.group}-one")
        chosen = ServiceSettings(**{"kafka": kafka, "topic_prefix": self.prefix, **effects, **settings})
        return Service(SERVICE, handlers=handlers, store=store, settings=chosen)

    async def run(self, service: Service, *, deadline_s: float = CATCH_UP_S) -> Worker:
        """Runs it until its group has committed all there is; the worker, which has stopped cleanly."""
        async with service.worker() as worker:
            await self.caught_up(worker, deadline_s=deadline_s)
        assert worker.clean
        return worker

    async def caught_up(self, worker: Worker, *, deadline_s: float = CATCH_UP_S) -> None:
        """Returns when the group has committed all there is. Raises what the worker failed of."""
        topics = worker.reader.topics
        ends_at = time.monotonic() + deadline_s
        while (lag := await asyncio.to_thread(self.kafka.lag, self.group, topics)) != 0:
            if worker.failure.done():
                worker.failure.result()
            assert time.monotonic() < ends_at, (
                f"{self.group} did not catch up within {deadline_s:g} s: lag {lag}, {worker.counters.as_dict()}"
            )
            await asyncio.sleep(LOOK_AGAIN_S)

    def process(self, target: str, log: Path, *arguments: str, **environment: str) -> WorkerProcess:
        """``choreo run`` of a service of these tests, ``tests.kafka.shop:payments``, that is not started yet."""
        settings = {
            "CHOREO_BOOTSTRAP": self.kafka.bootstrap,
            "CHOREO_GROUP_PROTOCOL": self.protocol,
            "CHOREO_TOPIC_PREFIX": self.prefix,
            "CHOREO_KAFKA_PROPERTIES": json.dumps(self.kafka.security),
            "CHOREO_EFFECTS": "offsets",
            **environment,
        }
        return WorkerProcess(["-m", "choreo", "run", target, *arguments], log=log, environment=settings)

    async def forget_group(self) -> None:
        """Deletes the group with its committed offsets, as their expiry would."""

        def deleted() -> bool:
            try:
                self.kafka.admin.delete_consumer_groups([self.group], request_timeout=REQUEST_S)[self.group].result(REQUEST_S * 2)
            except KafkaException as error:
                # The last member has only just left.
                assert error.args[0].code() == KafkaError.NON_EMPTY_GROUP, error
                return False
            return True

        await becomes(deleted, f"{self.group} is deleted")

    async def read_again(self, topic: str, *, offset: int = 0) -> None:
        """Sets the group's committed offsets of a logical topic, to the beginning unless told, as an operator's tool would."""
        places = [ClientPartition(p.topic, p.partition, offset) for p in self.kafka.partitions(self.topic(topic))]

        def set_back() -> bool:
            request = ConsumerGroupTopicPartitions(self.group, places)
            asked = self.kafka.admin.alter_consumer_group_offsets([request], request_timeout=REQUEST_S)
            try:
                return all(place.error is None for place in asked[self.group].result(REQUEST_S * 2).topic_partitions or ())
            except KafkaException as error:
                # The last member has only just left.
                assert error.args[0].code() in (KafkaError.UNKNOWN_MEMBER_ID, KafkaError.NON_EMPTY_GROUP), error
                return False

        await becomes(set_back, f"{self.group} begins {topic} again")

    def delete_before(self, topic: str, offset: int) -> None:
        """Deletes the records of partition 0 of a logical topic below `offset`, as retention would."""
        place = ClientPartition(self.topic(topic), 0, offset)
        self.kafka.admin.delete_records([place], request_timeout=REQUEST_S)[place].result(REQUEST_S * 2)

    def ask(self, *letters: LetterState, forced: bool = False) -> str:
        """An operator's request to run these letters again, as ``choreo replay`` writes it; the run's id."""
        run, at = secrets.token_hex(4), datetime.now(UTC)
        entries: list[ReplayEntry] = [Run(run=run, by="ana", reason="fixed", forced=forced, letters=len(letters), at=at)]
        for letter in letters:
            entries.append(
                Request(
                    run=run,
                    handler=letter.handler,
                    event_id=letter.event_id,
                    origin=letter.origin,
                    dlq=letter.dlq,
                    by="ana",
                    reason="fixed",
                    forced=forced,
                    at=at,
                )
            )
        records = [replay_record(self.replays, entry) for entry in entries]
        self.put(self.replays.removeprefix(self.prefix), *(Sent(record.value, record.key) for record in records))
        return run

    async def answered(self, run: str, count: int, worker: Worker) -> list[ReplayOutcome]:
        """The outcomes of a run, when there are `count`."""

        def outcomes() -> list[ReplayOutcome]:
            return [entry for entry in self.replay_log() if isinstance(entry, ReplayOutcome) and entry.run == run]

        ends_at = time.monotonic() + CATCH_UP_S
        while len(found := await asyncio.to_thread(outcomes)) < count:
            if worker.failure.done():
                worker.failure.result()
            assert time.monotonic() < ends_at, f"run {run}: {found} of {count} outcomes after {CATCH_UP_S:g} s"
            await asyncio.sleep(LOOK_AGAIN_S)
        return found

    # ---- what comes out -----------------------------------------------------------------------------------------------

    def records(self, topic: str) -> list[Record]:
        """Everything in a logical topic."""
        return self.kafka.read_all(self.topic(topic))

    def committed(self, topic: str, partition: int = 0) -> int | None:
        """The group's committed offset."""
        return self.kafka.committed(self.group, [self.topic(topic)])[TopicPartition(self.topic(topic), partition)]

    def dead(self) -> list[Letter]:
        """The records of the dead-letter topic, oldest first."""
        return [
            Letter(record.key, record.value, without_dlq_headers(record.headers), dlq_headers(record))
            for record in self.kafka.read_all(self.dlq)
        ]

    def states(self) -> list[LetterState]:
        """What ``.letters`` says of letters, oldest first."""
        states = [read_state(record) for record in self.kafka.read_all(self.letters)]
        return [state for state in states if isinstance(state, LetterState)]

    def replay_log(self) -> list[ReplayEntry]:
        """The entries of ``.replay``, oldest first."""
        return [read_replay(record) for record in self.kafka.read_all(self.replays)]


async def becomes(condition: Callable[[], T], what: str, *, worker: Worker | None = None, deadline_s: float = 15.0) -> T:
    """The first true answer of `condition`, asked on the event loop, where the worker goes on. Raises what the worker failed of."""
    ends_at = time.monotonic() + deadline_s
    while not (answer := condition()):
        if worker is not None and worker.failure.done():
            worker.failure.result()
        if time.monotonic() >= ends_at:
            raise TimeoutError(f"not within {deadline_s:g} s: {what}; the last answer was {answer!r}")
        await asyncio.sleep(LOOK_AGAIN_S)
    return answer
