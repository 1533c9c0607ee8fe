"""What becomes of sends when librdkafka's producer fails for good? TRAPS 14, with a client that fails on demand, and with a real one."""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError, KafkaException

from choreo.broker import Report
from choreo.kafka import producer as producer_module
from choreo.kafka.embedded import EmbeddedBroker
from choreo.kafka.producer import KafkaProducer
from choreo.kafka.settings import EMBEDDED, KafkaSettings
from choreo.record import Outgoing
from tests.support.mock_cluster import _POINTER, _librdkafka
from tests.support.waiting import wait_for

DEADLINE_S = 20.0
FATAL = KafkaError(KafkaError._FATAL, "lost its sequence", fatal=True)
PASSING = KafkaError(KafkaError._TRANSPORT, "connection refused")
TOO_LARGE = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)
Delivered = Callable[[KafkaError | None, Any], None]


class Written:
    """What a delivery report says of a record that was written."""

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return 7


class StubClient:
    """confluent_kafka.Producer as far as KafkaProducer uses it. It reports what `says` says, when it is polled."""

    made: list[StubClient] = []
    silent = False

    def __init__(self, properties: Mapping[str, Any], logger: logging.Logger) -> None:
        self.properties = properties
        self.sent: list[tuple[bytes, Delivered]] = []
        self.fails: BaseException | None = None
        self.errors: list[KafkaError] = []
        self.says: KafkaError | None = None
        self.purged = self.closed = False
        StubClient.made.append(self)

    def produce(self, topic: str, value: bytes, *_: object, headers: object, on_delivery: Delivered) -> None:
        self.sent.append((value, on_delivery))

    def poll(self, timeout_s: float) -> int:
        for error in self.errors:
            self.properties["error_cb"](error)
        self.errors.clear()
        if self.fails is not None:
            raise self.fails
        return 0 if self.silent else self.report()

    def report(self) -> int:
        sent, self.sent = self.sent, []
        for _, delivered in sent:
            delivered(self.says, Written())
        return len(sent)

    def flush(self, timeout_s: float) -> int:
        self.poll(timeout_s)
        return len(self.sent)

    def purge(self) -> None:
        self.purged = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[StubClient]]:
    """The clients that were made, in order."""
    monkeypatch.setattr(producer_module, "Producer", StubClient)
    StubClient.made = []
    yield StubClient.made
    StubClient.made = []


@pytest.fixture
def producer(clients: list[StubClient]) -> KafkaProducer:
    return KafkaProducer({"linger.ms": 0}, logging.getLogger("test"))


def a_record(value: bytes) -> Outgoing:
    return Outgoing("orders", b"o", value)


class Outcomes:
    """What was reported of each record, by value."""

    def __init__(self, producer: KafkaProducer) -> None:
        self._producer = producer
        self.heard: list[tuple[bytes, str]] = []
        self.reports: list[Report] = []

    def send(self, *values: bytes) -> None:
        for value in values:
            self._producer.send(a_record(value), lambda report, value=value: self._take(value, report))  # type: ignore[misc]

    def _take(self, value: bytes, report: Report) -> None:
        self.reports.append(report)
        self.heard.append((value, "written" if report.error is None else report.error.code))


def fails_with(error: BaseException) -> Callable[[StubClient], None]:
    def fail(client: StubClient) -> None:
        client.fails = error

    return fail


def says_in_error_cb(client: StubClient) -> None:
    client.errors = [PASSING, FATAL]
    client.silent = True


WAYS = pytest.mark.parametrize(
    "fail",
    [fails_with(SystemError("returned a result with an exception set")), fails_with(KafkaException(FATAL)), says_in_error_cb],
    ids=["SystemError out of poll", "KafkaException out of poll", "error_cb"],
)
CALLS = pytest.mark.parametrize("call", [KafkaProducer.poll, KafkaProducer.flush])


@WAYS
@CALLS
def test_what_is_out_is_reported_as_unknown_once_and_what_comes_next_goes_through_a_new_client(
    producer: KafkaProducer, clients: list[StubClient], fail: Callable[[StubClient], None], call: Callable[[KafkaProducer, float], int]
) -> None:
    outcomes = Outcomes(producer)
    outcomes.send(b"1", b"2")
    fail(clients[0])

    call(producer, 0)
    outcomes.send(b"3")
    call(producer, 0)

    assert sorted(outcomes.heard[:2]) == [(b"1", "UNKNOWN"), (b"2", "UNKNOWN")]
    assert outcomes.heard[2:] == [(b"3", "written")]
    assert [report.error.retriable for report in outcomes.reports if report.error is not None] == [True, True]
    assert (len(clients), clients[0].purged, clients[1].properties["linger.ms"]) == (2, True, 0)
    assert producer.flush(0) == 0


@WAYS
def test_late_reports_of_the_client_that_failed_change_nothing(
    producer: KafkaProducer, clients: list[StubClient], fail: Callable[[StubClient], None]
) -> None:
    outcomes = Outcomes(producer)
    outcomes.send(b"1", b"2")
    fail(clients[0])
    producer.poll(0)
    outcomes.send(b"3")

    clients[0].report()
    clients[0].says = TOO_LARGE
    clients[0].report()

    assert (len(outcomes.heard), len(clients)) == (2, 2)
    producer.poll(0)
    assert (len(outcomes.heard), outcomes.heard[2]) == (3, (b"3", "written"))


def test_a_report_may_send_again_through_the_new_client(producer: KafkaProducer, clients: list[StubClient]) -> None:
    outcomes = Outcomes(producer)
    producer.send(a_record(b"1"), lambda report: outcomes.send(b"1 again"))
    clients[0].fails = SystemError("failed")

    producer.poll(0)
    producer.poll(0)

    assert outcomes.heard == [(b"1 again", "written")]
    assert [len(client.sent) for client in clients] == [1, 0]


def test_records_that_were_written_alone_are_unknown_as_well(
    producer: KafkaProducer, clients: list[StubClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StubClient, "silent", True)
    outcomes = Outcomes(producer)
    outcomes.send(b"1")
    clients[0].says = TOO_LARGE
    clients[0].report()

    clients[0].fails = SystemError("failed")
    producer.poll(0)
    (_, alone, _) = clients
    alone.report()

    assert (outcomes.heard, alone.purged) == ([(b"1", "UNKNOWN")], True)
    clients[2].says = TOO_LARGE
    outcomes.send(b"2")
    clients[2].report()
    assert [[value for value, _ in client.sent] for client in clients] == [[], [], [], [b"2"]]


def test_a_user_who_may_write_nowhere_reads_that_instead_of_an_unknown_outcome(producer: KafkaProducer, clients: list[StubClient]) -> None:
    outcomes = Outcomes(producer)
    outcomes.send(b"1")
    clients[0].errors, clients[0].silent = [KafkaError(KafkaError.CLUSTER_AUTHORIZATION_FAILED, "no PID", fatal=True)], True

    producer.poll(0)

    assert outcomes.heard == [(b"1", "CLUSTER_AUTHORIZATION_FAILED")]
    assert [report.error.retriable for report in outcomes.reports if report.error is not None] == [False]


def test_an_error_that_mends_itself_is_no_reason_for_a_new_client(
    producer: KafkaProducer, clients: list[StubClient], caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = Outcomes(producer)
    outcomes.send(b"1")
    clients[0].errors = [PASSING]

    producer.poll(0)

    assert (outcomes.heard, len(clients)) == ([(b"1", "written")], 1)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_close_counts_and_reports_what_it_drops(producer: KafkaProducer, clients: list[StubClient]) -> None:
    outcomes = Outcomes(producer)
    outcomes.send(b"1", b"2")
    clients[0].silent = True

    left = producer.close(0)
    again = producer.close(0)

    assert (left, again, clients[0].purged, clients[0].closed) == (2, 0, True, True)
    assert sorted(outcomes.heard) == [(b"1", "UNKNOWN"), (b"2", "UNKNOWN")]


def test_a_client_that_fails_while_it_is_closed_keeps_nobody_waiting(producer: KafkaProducer, clients: list[StubClient]) -> None:
    outcomes = Outcomes(producer)
    outcomes.send(b"1")
    clients[0].fails = SystemError("failed")

    producer.close(0)

    assert outcomes.heard == [(b"1", "UNKNOWN")]
    assert clients[1].closed


# ---- the real client ------------------------------------------------------------------------------------------------------


def fail_for_good(client: Any) -> None:
    """librdkafka's own way to try this; tests/support/mock_cluster.py says what stands where."""
    handle = ctypes.c_void_p.from_address(id(client) + 2 * _POINTER)
    code = _librdkafka().rd_kafka_test_fatal_error(handle, KafkaError.INVALID_PRODUCER_EPOCH, b"as the test asked")
    assert code == 0, f"the client was broken already: error {code}"


@CALLS
def test_a_real_client_that_failed_for_good_is_replaced(call: Callable[[KafkaProducer, float], int]) -> None:
    topic = f"topic-{uuid4().hex}"
    producer = EmbeddedBroker(KafkaSettings(bootstrap=EMBEDDED), [topic]).producer()
    before, out, after = [list[Report]() for _ in range(3)]
    producer.send(Outgoing(topic, b"o", b"before"), before.append)
    assert producer.flush(DEADLINE_S) == 0

    broken = producer._client
    producer.send(Outgoing(topic, b"o", b"out"), out.append)
    fail_for_good(broken)
    wait_for(lambda: call(producer, 0.1) is not None and producer._client is not broken, "a new client", deadline_s=DEADLINE_S)
    producer.send(Outgoing(topic, b"o", b"after"), after.append)
    left = producer.flush(DEADLINE_S)
    producer.close(0)

    # What was out may have arrived before the failure.
    assert (len(before), len(out), len(after), left) == (1, 1, 1, 0)
    assert (before[0].error, after[0].error) == (None, None)
    assert out[0].error is None or out[0].error.retriable
