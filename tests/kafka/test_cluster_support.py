"""Can the tests trust the Kafka they stand on? Brokers that start, lose nothing when killed, and know who may do what."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as ClientPartition

from choreo.record import TopicPartition
from tests.support.commits import CommitWatch
from tests.support.kafka_access import KafkaAccess, group_settings
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import MakeTopic, Names
from tests.support.nemesis import Nemesis, kill_broker, restart_broker, stop_broker
from tests.support.process import WorkerProcess
from tests.support.producer import Load, TestProducer, produce_events, random_events
from tests.support.waiting import wait_for

pytestmark = pytest.mark.kafka

START_LIMIT_S = 60.0
KILLED = "killed-and-started"


def test_a_broker_keeps_its_records_when_it_is_killed_and_started_again(tmp_path: Path) -> None:
    with KafkaCluster(1, base_dir=tmp_path) as cluster:
        assert cluster.start_s < START_LIMIT_S
        kafka = cluster.access()
        kafka.create_topic(KILLED, partitions=2)
        produced = produce_events(kafka, KILLED, random_events(50, keys=5, seed=1))
        first_life = cluster.pid(1)

        cluster.kill(1)
        cluster.start(1)

        assert cluster.pid(1) != first_life
        assert {(r.partition, r.offset, r.value) for r in kafka.read_all(KILLED)} == {(e.partition, e.offset, e.value) for e in produced}
        cluster.terminate(1)
        assert cluster.running == []
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_broker_answers_nobody_until_it_is_continued(tmp_path: Path) -> None:
    with KafkaCluster(1, base_dir=tmp_path) as cluster:
        producer = Producer(cluster.access().config())
        cluster.stop(1)
        producer.produce("choreo-test-probe", b"while it stands still")
        held_back = producer.flush(1.5)

        cluster.cont(1)

        assert held_back == 1
        assert producer.flush(30) == 0


def test_what_was_acknowledged_is_in_the_log_where_kafka_said(kafka: KafkaAccess, make_topic: MakeTopic) -> None:
    topic = make_topic(partitions=3)

    produced = produce_events(kafka, topic, random_events(500, keys=20, seed=2))

    log = {(record.partition, record.offset): record for record in kafka.read_all(topic)}
    assert {place: (record.key, record.value, record.headers) for place, record in log.items()} == {
        (event.partition, event.offset): (event.key, event.value, list(event.headers)) for event in produced
    }
    assert kafka.ends(topic) == {TopicPartition(topic, n): (0, sum(event.partition == n for event in produced)) for n in range(3)}


def test_keys_go_where_java_sends_them(kafka: KafkaAccess, make_topic: MakeTopic) -> None:
    topic = make_topic(partitions=6)

    produced = produce_events(kafka, topic, [(key, 1) for key in ("a", "order-17", "k-3")])

    # org.apache.kafka.common.utils.Utils.toPositive(murmur2(key)) % 6
    assert [event.partition for event in produced] == [java_partition(event.key or b"", 6) for event in produced]


def test_bytes_that_are_no_event_are_written_as_they_are(kafka: KafkaAccess, make_topic: MakeTopic) -> None:
    topic = make_topic()
    odd = [(None, None, []), (b"", b"", [("empty", b""), ("null", None), ("empty", b"\xff\xfe")]), (b"\x00", b"\xc3\x28", [])]

    with TestProducer(kafka) as producer:
        for key, value, headers in odd:
            producer.raw(topic, key, value, headers)

    assert [(record.key, record.value, record.headers) for record in kafka.read_all(topic)] == odd


def test_topics_are_made_with_their_settings_and_never_by_accident(kafka: KafkaAccess, make_topic: MakeTopic, names: Names) -> None:
    topic = make_topic("letters", partitions=2, cleanup_policy="compact")

    assert kafka.partitions(topic) == [TopicPartition(topic, 0), TopicPartition(topic, 1)]
    assert kafka.partitions(names.topic("never-made")) == []


def test_a_dead_members_partitions_move_after_its_short_session(
    kafka: KafkaAccess, make_topic: MakeTopic, names: Names, group_protocol: str, tmp_path: Path
) -> None:
    topic, group = make_topic(), names.group()
    kafka.set_session(group, session_ms=1500, heartbeat_ms=300)
    produced = produce_events(kafka, topic, [("k", 1)])
    script = Path(__file__).with_name("polling_member.py")
    settings = group_settings(group, group_protocol, session_ms=1500)
    with WorkerProcess(script, kafka.bootstrap, group, group_protocol, topic, log=tmp_path / "member.log") as member:
        member.wait_ready()

        member.kill9()

        heir = Consumer(kafka.config(settings))
        heir.subscribe([topic])
        killed_at = time.monotonic()
        got = wait_for(lambda: heir.poll(0.1), "the record of the dead member", deadline_s=30)
        took_s = time.monotonic() - killed_at
        heir.close()
    assert got is not None
    assert got.value() == produced[0].value
    assert took_s < 10


def test_commits_are_watched_as_they_happen(kafka: KafkaAccess, make_topic: MakeTopic, names: Names) -> None:
    topic, group = make_topic(), names.group()
    produce_events(kafka, topic, [("k", amount) for amount in range(10)])
    place = TopicPartition(topic, 0)
    consumer = Consumer(kafka.config(group_settings(group, "classic")))

    with CommitWatch(kafka, group, [topic]) as watch:
        for offset in (3, 7, 2):
            consumer.commit(offsets=[ClientPartition(topic, 0, offset)], asynchronous=False)
            wait_for(lambda offset=offset: kafka.committed(group, [topic])[place] == offset, "the commit", deadline_s=10)  # type: ignore[misc]
            wait_for(lambda offset=offset: watch.commits and watch.commits[-1].offset == offset, "the watch", deadline_s=10)  # type: ignore[misc]
    consumer.close()

    assert [(commit.partition, commit.offset) for commit in watch.commits] == [(place, 3), (place, 7), (place, 2)]
    assert kafka.lag(group, [topic]) == 8


def test_without_an_acl_a_user_may_do_nothing(kafka_sasl: KafkaCluster, names: Names) -> None:
    topic = kafka_sasl.access().create_topic(names.topic())

    with TestProducer(kafka_sasl.access("payments")) as payments:
        payments.event(topic, "k", 1)
        refused = payments.flush(10)
    allowed = kafka_sasl.permissions.allow("payments", "WRITE", topic=names.prefix, prefixed=True)
    written = produce_events(kafka_sasl.access("payments"), topic, [("k", 2)])
    kafka_sasl.permissions.disallow(allowed)
    with TestProducer(kafka_sasl.access("payments")) as payments:
        payments.event(topic, "k", 3)
        refused_again = payments.flush(10)

    assert [event.outcome for event in (*refused, *written, *refused_again)] == ["fail", "ok", "fail"]
    assert [record.offset for record in kafka_sasl.access().read_all(topic)] == [0]


def test_a_wrong_password_is_refused_and_a_new_one_works(kafka_sasl: KafkaCluster) -> None:
    wrong = KafkaAccess(kafka_sasl.bootstrap, "jars", kafka_sasl.security("clerk", "wrong"))
    right = KafkaAccess(kafka_sasl.bootstrap, "jars", kafka_sasl.security("clerk", "new-secret"))

    kafka_sasl.permissions.set_password("clerk", "new-secret")

    with pytest.raises(KafkaException):
        wrong.admin.list_topics(timeout=3)
    assert right.admin.list_topics(timeout=10).brokers


@pytest.mark.chaos
@pytest.mark.long
@pytest.mark.timeout(300)
def test_three_brokers_lose_nothing_to_a_nemesis(kafka3: KafkaCluster, names: Names, tmp_path: Path) -> None:
    kafka = kafka3.access()
    topic = kafka.create_topic(names.topic(), partitions=3)
    leader = kafka.leader(topic, 0)
    others = [node for node in kafka3.node_ids if node != leader]
    faults = [
        kill_broker(kafka3, leader, hold_s=(1, 4)),
        stop_broker(kafka3, others[0], hold_s=(1, 4)),
        restart_broker(kafka3, others[1]),
    ]
    history = tmp_path / "nemesis.jsonl"

    with Load(kafka, topic, keys=10, rate_per_s=100, seed=5) as load, Nemesis(faults, history=history, duration_s=12) as nemesis:
        nemesis.join()
    kafka3.heal()

    written = {(record.partition, record.offset): record.value for record in kafka.read_all(topic)}
    acknowledged = [event for event in load.produced if event.outcome == "ok"]
    assert len(acknowledged) > 500
    assert [event for event in acknowledged if written.get((event.partition, event.offset)) != event.value] == []
    assert {line["operation"] for line in nemesis.journal.read()} >= {"seed", "inject", "heal", "healed"}


def java_partition(key: bytes, partitions: int) -> int:
    """Kafka's own partitioner, written down from Utils.murmur2."""
    mask, multiplier = 0xFFFFFFFF, 0x5BD1E995
    found = (0x9747B28C ^ len(key)) & mask
    for start in range(0, len(key) - 3, 4):
        word = int.from_bytes(key[start : start + 4], "little") * multiplier & mask
        word = (word ^ (word >> 24)) * multiplier & mask
        found = (found * multiplier & mask) ^ word
    tail = key[len(key) & ~3 :]
    if tail:
        found = (found ^ int.from_bytes(tail, "little")) * multiplier & mask
    found = (found ^ (found >> 13)) * multiplier & mask
    return ((found ^ (found >> 15)) & 0x7FFFFFFF) % partitions
