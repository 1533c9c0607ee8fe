"""What does a member on real Kafka make of what its client does within a rebalance, and of commits that are refused? With a client
that does what a test tells it; the real ones are in tests/conformance and tests/kafka."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Place

from choreo.broker import METADATA_TOO_LARGE, REBALANCE_FAILED, Start
from choreo.errors import BrokerError
from choreo.kafka import commits as commits_module
from choreo.kafka import consumer as consumer_module
from choreo.kafka.consumer import KafkaConsumer
from choreo.record import Committed, TopicPartition

P0, P1 = TopicPartition("orders", 0), TopicPartition("orders", 1)
TIMED_OUT = KafkaError(KafkaError._TIMED_OUT)
REFUSED = KafkaError(KafkaError.GROUP_AUTHORIZATION_FAILED)
Told = Callable[["StubClient", list[Place]], None]


class Message:
    """A record as the client gives it."""

    def __init__(self, partition: TopicPartition, offset: int) -> None:
        self._place = (partition, offset)

    def topic(self) -> str:
        return self._place[0].topic

    def partition(self) -> int:
        return self._place[0].partition

    def offset(self) -> int:
        return self._place[1]

    def error(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)

    def key(self) -> bytes:
        return b"k"

    def value(self) -> bytes:
        return b"{}"

    def headers(self) -> None:
        return None


class StubClient:
    """confluent_kafka.Consumer as far as KafkaConsumer uses it. What is put into `during_poll` and `during_consume` happens within
    the next calls, one each; each call gives the messages that it answers."""

    made: list[StubClient] = []

    def __init__(self, properties: Mapping[str, Any], logger: logging.Logger) -> None:
        self.during_poll: deque[Callable[[], list[Message]]] = deque()
        self.during_consume: deque[Callable[[], list[Message]]] = deque()
        self.group_has: dict[TopicPartition, int] = {}
        self.fails: list[KafkaError] = []
        """What the next calls that may fail raise: committed, incremental_assign, commit."""
        self.asked: list[str] = []
        self.stored: list[tuple[TopicPartition, int]] = []
        self.by_name: list[tuple[TopicPartition, int, str]] = []
        self.texts: dict[TopicPartition, str] = {}
        self.there: dict[TopicPartition, tuple[int, str]] = {}
        self.too_long = 1_000_000
        self.commits = 0
        self._answer: Callable[[KafkaError | None, list[Place]], None] = properties["on_commit"]
        StubClient.made.append(self)

    def subscribe(self, topics: Sequence[str], on_assign: Told, on_revoke: Told, on_lost: Told) -> None:
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost

    # ---- what Kafka does ----------------------------------------------------------------------------------------------

    def assign(self, *partitions: TopicPartition) -> None:
        self._on_assign(self, [Place(*partition) for partition in partitions])

    def revoke(self, *partitions: TopicPartition) -> None:
        self._on_revoke(self, [Place(*partition) for partition in partitions])

    def lose(self, *partitions: TopicPartition) -> None:
        self._on_lost(self, [Place(*partition) for partition in partitions])

    def answer_commit(self, error: KafkaError | None, **offsets: int) -> None:
        """Of the commit under way; offsets by partition: ``p0=5``."""
        self._answer(error, [Place("orders", int(name[1:]), offset) for name, offset in offsets.items()])

    # ---- what it is asked ---------------------------------------------------------------------------------------------

    def poll(self, timeout_s: float) -> Message | None:
        messages = self.during_poll.popleft()() if self.during_poll else []
        return messages[0] if messages else None

    def consume(self, count: int, timeout_s: float) -> list[Message]:
        return self.during_consume.popleft()() if self.during_consume else []

    def committed(self, places: list[Place], timeout: float) -> list[Place]:
        self._may_fail("committed")
        return [Place(p.topic, p.partition, self.group_has.get(TopicPartition(p.topic, p.partition), -1001)) for p in places]

    def incremental_assign(self, places: list[Place]) -> None:
        self._may_fail("incremental_assign")

    def incremental_unassign(self, places: list[Place]) -> None: ...

    def pause(self, places: list[Place]) -> None: ...

    def resume(self, places: list[Place]) -> None: ...

    def store_offsets(self, *, offsets: list[Place]) -> None:
        for place in offsets:
            partition = TopicPartition(place.topic, place.partition)
            self.stored.append((partition, place.offset))
            self.texts[partition] = place.metadata or ""

    def commit(self, *, asynchronous: bool, offsets: Sequence[Place] = ()) -> list[Place]:
        self._may_fail("commit")
        self.commits += asynchronous
        named = [(TopicPartition(place.topic, place.partition), place.offset, place.metadata or "") for place in offsets]
        self.by_name += named
        if asynchronous:
            return []
        wanted = named or [(partition, offset, self.texts[partition]) for partition, offset in self.stored]
        if any(len(text) > self.too_long for _, _, text in wanted):
            raise KafkaException(TOO_LONG)
        self.there.update((partition, (offset, text)) for partition, offset, text in wanted)
        self.stored.clear()
        return [Place(partition.topic, partition.partition, offset) for partition, offset, _ in wanted]

    def _may_fail(self, what: str) -> None:
        self.asked.append(what)
        if self.fails:
            raise KafkaException(self.fails.pop(0))


class Listener:
    """Begins at the committed offset, else at 0; answers nothing to commit."""

    def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
        return {partition: found.offset if found else 0 for partition, found in committed.items()}

    def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
        return {}

    def lost(self, partitions: Sequence[TopicPartition]) -> None: ...


class Clock:
    """The time, in place of the module `time`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(commits_module, "time", clock)
    return clock


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> KafkaConsumer:
    """A member that has been assigned orders[0]."""
    monkeypatch.setattr(consumer_module, "Consumer", StubClient)
    monkeypatch.setattr(StubClient, "made", [])
    consumer = KafkaConsumer({"group.id": "shop"}, logging.getLogger("test"))
    consumer.subscribe(["orders"], Listener())
    StubClient.made[0].assign(P0)
    StubClient.made[0].asked.clear()
    return consumer


@pytest.fixture
def client(consumer: KafkaConsumer) -> StubClient:
    (client,) = StubClient.made
    return client


def polled(consumer: KafkaConsumer) -> list[tuple[TopicPartition, int]]:
    """One poll: what it handed over."""
    return [(batch.partition, record.offset) for batch in consumer.poll(500, 0) for record in batch.records]


# ---- what happens within a rebalance --------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", ["poll", "consume"])
def test_a_rebalance_whose_committed_offsets_can_not_be_looked_up_ends_the_client(
    consumer: KafkaConsumer, client: StubClient, within: str
) -> None:
    def assign_another() -> list[Message]:
        client.fails = [TIMED_OUT] * 3
        client.assign(P1)
        return []

    if within == "consume":
        client.during_poll.append(lambda: [Message(P0, 2)])
        client.during_consume.append(assign_another)
    else:
        client.during_poll.append(assign_another)

    with pytest.raises(BrokerError, match="_TIMED_OUT") as failed:
        consumer.poll(500, 0)

    assert (failed.value.code, failed.value.retriable) == (REBALANCE_FAILED, False)
    assert client.asked == ["committed"] * 3


def test_an_assignment_that_the_client_refuses_ends_it(consumer: KafkaConsumer, client: StubClient) -> None:
    class RefusesToAssign(Listener):
        def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
            client.fails = [KafkaError(KafkaError._STATE)]
            return super().assigned(committed)

    def assign_another() -> list[Message]:
        consumer.subscribe(["orders"], RefusesToAssign())
        client.assign(P1)
        return []

    client.during_poll.append(assign_another)

    with pytest.raises(BrokerError, match="_STATE") as failed:
        consumer.poll(500, 0)

    assert (failed.value.code, failed.value.retriable) == (REBALANCE_FAILED, False)


def test_what_the_listener_waits_out_elsewhere_ends_the_client_within_a_rebalance(consumer: KafkaConsumer, client: StubClient) -> None:
    class HasNoEnds(Listener):
        def assigned(self, committed: Mapping[TopicPartition, Committed | None]) -> Mapping[TopicPartition, Start]:
            raise BrokerError("ends of orders: not now", code="_TRANSPORT")

    def assign_another() -> list[Message]:
        client.assign(P1)
        return []

    consumer.subscribe(["orders"], HasNoEnds())
    client.during_poll.append(assign_another)

    with pytest.raises(BrokerError, match="not now") as failed:
        consumer.poll(500, 0)

    assert (failed.value.code, failed.value.retriable) == (REBALANCE_FAILED, False)


@pytest.mark.parametrize("go", [StubClient.lose, StubClient.revoke], ids=["lost", "revoked"])
def test_a_record_taken_before_its_partition_went_and_came_back_is_not_handed_over(
    consumer: KafkaConsumer, client: StubClient, go: Callable[[StubClient, TopicPartition], None]
) -> None:
    def goes_and_comes_back() -> list[Message]:
        go(client, P0)
        client.group_has[P0] = 9
        client.assign(P0, P1)
        return [Message(P0, 9), Message(P1, 0)]

    client.during_poll.append(lambda: [Message(P0, 7)])
    client.during_consume.append(goes_and_comes_back)

    handed_over = polled(consumer)

    assert handed_over == [(P0, 9), (P1, 0)]


# ---- commits that are refused ---------------------------------------------------------------------------------------------


def test_a_commit_that_is_refused_is_asked_again_after_growing_waits(consumer: KafkaConsumer, client: StubClient, clock: Clock) -> None:
    consumer.commit({P0: Committed(7)})
    asked_too_early: list[float] = []
    asked: list[float] = []
    waits_s = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 10.0]

    for wait_s in waits_s:
        client.answer_commit(REFUSED, p0=7)
        before = client.commits
        clock.now_s += wait_s - 0.01
        consumer.poll(500, 0)
        consumer.commit({P0: Committed(7)})
        asked_too_early += [wait_s] * (client.commits - before)
        clock.now_s += 0.02
        consumer.poll(500, 0)
        asked += [wait_s] * (client.commits - before)

    assert (asked_too_early, asked) == ([], waits_s)
    assert [(result.offsets, result.error and result.error.code) for result in consumer.commit_results()] == [
        ({P0: Committed(7)}, "GROUP_AUTHORIZATION_FAILED")
    ] * len(waits_s)


def test_the_waits_begin_anew_after_a_commit_that_went_well(consumer: KafkaConsumer, client: StubClient, clock: Clock) -> None:
    consumer.commit({P0: Committed(7)})
    for wait_s in (0.1, 0.2, 0.4):
        client.answer_commit(REFUSED, p0=7)
        clock.now_s += wait_s + 0.01
        consumer.poll(500, 0)
    client.answer_commit(None, p0=7)

    consumer.commit({P0: Committed(8)})
    client.answer_commit(REFUSED, p0=8)
    consumer.poll(500, 0)
    at_once = client.commits
    clock.now_s += 0.11
    consumer.poll(500, 0)

    assert (at_once, client.commits) == (5, 6)


def test_what_is_asked_again_are_the_newest_offsets(consumer: KafkaConsumer, client: StubClient, clock: Clock) -> None:
    consumer.commit({P0: Committed(7)})
    client.answer_commit(REFUSED, p0=7)

    consumer.commit({P0: Committed(8)})
    consumer.commit({P0: Committed(9)})
    clock.now_s += 0.11
    consumer.poll(500, 0)

    assert (client.stored, client.commits) == ([(P0, 7), (P0, 9)], 2)


def test_a_commit_that_could_not_even_be_begun_is_asked_again(consumer: KafkaConsumer, client: StubClient, clock: Clock) -> None:
    client.fails = [TIMED_OUT]
    consumer.commit({P0: Committed(7)})
    (refused,) = consumer.commit_results()

    clock.now_s += 0.11
    consumer.poll(500, 0)
    client.answer_commit(None, p0=7)
    (done,) = consumer.commit_results()

    assert (refused.offsets, refused.error and refused.error.code) == ({P0: Committed(7)}, "_TIMED_OUT")
    assert (done.offsets, done.error, client.commits) == ({P0: Committed(7)}, None, 1)


@pytest.mark.parametrize("go", [StubClient.lose, StubClient.revoke], ids=["lost", "revoked"])
def test_a_commit_that_was_refused_is_not_repeated_for_an_assignment_that_is_over(
    consumer: KafkaConsumer, client: StubClient, clock: Clock, go: Callable[[StubClient, TopicPartition], None]
) -> None:
    def goes_and_comes_back() -> list[Message]:
        go(client, P0)
        client.group_has[P0] = 9
        client.assign(P0)
        return []

    client.assign(P1)
    consumer.commit({P0: Committed(5), P1: Committed(3)})
    client.during_poll.append(goes_and_comes_back)

    consumer.poll(500, 0)
    client.answer_commit(TIMED_OUT, p0=5, p1=3)
    clock.now_s += 0.11
    consumer.poll(500, 0)

    assert client.stored == [(P0, 5), (P1, 3), (P1, 3)]


# ---- what stands beside an offset -----------------------------------------------------------------------------------------


TOO_LONG = KafkaError(KafkaError.OFFSET_METADATA_TOO_LARGE)


def test_a_text_beside_the_same_offset_goes_out_by_name(consumer: KafkaConsumer, client: StubClient) -> None:
    consumer.commit({P0: Committed(7, "a")})
    client.answer_commit(None, p0=7)

    consumer.commit({P0: Committed(7, "b")})

    assert (client.stored, client.by_name) == ([(P0, 7)], [(P0, 7, "b")])


def test_what_librdkafka_left_out_of_a_request_is_not_taken_for_committed(consumer: KafkaConsumer, client: StubClient) -> None:
    client.assign(P1)
    consumer.commit({P0: Committed(7, "a"), P1: Committed(3, "b")})

    client.answer_commit(None, p0=7)
    results = consumer.commit_results()
    consumer.poll(500, 0)

    assert [result.offsets for result in results] == [{P0: Committed(7, "a")}]
    assert client.by_name == [(P1, 3, "b")]


def test_texts_take_turns_with_offsets_that_move_all_the_time(consumer: KafkaConsumer, client: StubClient) -> None:
    client.assign(P1)
    consumer.commit({P1: Committed(3, "a")})
    client.answer_commit(None, p1=3)
    consumer.poll(500, 0)

    consumer.commit({P0: Committed(1), P1: Committed(3, "b")})
    for offset in range(2, 6):
        client.answer_commit(None, p0=offset - 1, p1=3)
        consumer.commit({P0: Committed(offset)})

    assert (P1, 3, "b") in client.by_name


def test_a_text_that_is_too_long_is_told_and_not_tried_again(consumer: KafkaConsumer, client: StubClient, clock: Clock) -> None:
    consumer.commit({P0: Committed(7, "x" * 5000)})
    client.answer_commit(TOO_LONG, p0=7)
    clock.now_s += 60
    consumer.poll(500, 0)

    (told,) = consumer.commit_results()

    assert (told.offsets, told.error and told.error.code, client.commits) == ({P0: Committed(7, "x" * 5000)}, METADATA_TOO_LARGE, 1)


def test_a_request_takes_so_much_text_and_the_rest_goes_with_the_next(
    consumer: KafkaConsumer, client: StubClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits_module, "MOST_TEXT", 100)
    client.assign(P1)

    consumer.commit({P0: Committed(7, "x" * 80), P1: Committed(3, "y" * 80)})
    first = list(client.stored)
    client.answer_commit(None, p0=7)
    consumer.poll(500, 0)

    assert (first, client.stored) == ([(P0, 7)], [(P0, 7), (P1, 3)])


def test_at_a_revoke_an_offset_whose_text_is_too_long_is_committed_without_it_and_the_others_with_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Leaves(Listener):
        def revoked(self, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, Committed]:
            return {P0: Committed(7, "x" * 5000), P1: Committed(3, "y")}

    monkeypatch.setattr(consumer_module, "Consumer", StubClient)
    monkeypatch.setattr(StubClient, "made", [])
    consumer = KafkaConsumer({"group.id": "shop"}, logging.getLogger("test"))
    consumer.subscribe(["orders"], Leaves())
    (client,) = StubClient.made
    client.assign(P0, P1)
    client.too_long = 4096

    client.revoke(P0, P1)

    assert client.there == {P0: (7, ""), P1: (3, "y")}


def test_what_others_wait_for_is_still_wanted_when_a_revokes_commit_fails(
    consumer: KafkaConsumer, client: StubClient, clock: Clock
) -> None:
    client.assign(P1)
    consumer.commit({P0: Committed(1)})
    consumer.commit({P1: Committed(3, "asked")})  # waits for the one under way
    client.fails = [TIMED_OUT]

    client.revoke(P0)
    client.answer_commit(None, p0=1)
    consumer.poll(500, 0)

    assert (P1, 3) in client.stored


def test_one_whose_text_is_too_long_is_found_among_those_of_its_request(consumer: KafkaConsumer, client: StubClient) -> None:
    client.assign(P1)
    consumer.commit({P0: Committed(7, "x" * 5000), P1: Committed(3, "y")})
    client.answer_commit(TOO_LONG, p0=7, p1=3)
    consumer.poll(500, 0)
    client.answer_commit(TOO_LONG, p0=7)
    consumer.poll(500, 0)
    client.answer_commit(None, p1=3)

    results = [(result.offsets, result.error and result.error.code) for result in consumer.commit_results()]

    assert results == [({P0: Committed(7, "x" * 5000)}, METADATA_TOO_LARGE), ({P1: Committed(3, "y")}, None)]
