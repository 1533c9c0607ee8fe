"""All of it or nothing: the `Transactor` port over confluent_kafka's transactional producer (KIP-98, KIP-447).

An error after which nobody can say whether the commit counts ends the client (TRAPS 21): `open` makes a new one with the same id, which
makes the coordinator decide what is open. One that came before the commit was asked for means that nothing is there, whoever aborts it.

A broker refuses a batch as a whole when it is larger than the topic takes, and librdkafka's report doesn't say which record is to blame:
the same transaction is run once more with batches of one record, and what is refused then is too large.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka import TopicPartition as Place

from choreo import failpoint
from choreo.broker import FENCED, Ended, Part, Report, Work
from choreo.errors import BrokerError
from choreo.kafka.errors import broker_error
from choreo.record import Outgoing

_log = logging.getLogger("choreo.kafka")

ANY_PARTITION = -1
"""The partitioner's choice (murmur2 of the key)."""
CALL_S = 5.0
"""How long one call of the client may block; it is made again where that may help."""
FLUSH_S = 0.1
OPEN_S = 20.0
STEP_S = 30.0
"""How long a step is tried again before the transaction is given up: longer than the broker lets it be open."""
_FAILED = (SystemError, KafkaException)
_SIZES = frozenset({"MSG_SIZE_TOO_LARGE"})
_PURGED = frozenset({"_PURGE_QUEUE", "_PURGE_INFLIGHT"})
"""Reports of what was given up with its transaction."""
_RECORDS_FAULT = frozenset({"MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "_INVALID_ARG"})


class _Written:
    """What came of the records of one run."""

    def __init__(self, parts: int) -> None:
        self.reports: list[list[Report | None]] = [[] for _ in range(parts)]
        self.out = 0
        self.refused: dict[int, BrokerError] = {}
        """By part: why a record of it can never be written."""
        self.hindered: dict[int, BrokerError] = {}
        """By part: why one could not be, though it might another time."""

    def expects(self, part: int, record: Outgoing) -> Callable[[KafkaError | None, Message], None]:
        """What to call when it is acknowledged, or not."""
        mine = self.reports[part]
        at = len(mine)
        mine.append(None)
        self.out += 1

        def reported(error: KafkaError | None, message: Message) -> None:
            self.out -= 1
            if error is None:
                offset = message.offset()
                mine[at] = Report(message.partition(), -1 if offset is None else offset, None)  # type: ignore[arg-type]
            else:
                self.failed(part, broker_error(error, f"writing to {record.topic}"))

        return reported

    def failed(self, part: int, error: BrokerError) -> None:
        if error.code in _RECORDS_FAULT:
            self.refused.setdefault(part, error)
        elif error.code not in _PURGED:
            self.hindered.setdefault(part, error)

    @property
    def failed_already(self) -> bool:
        return bool(self.refused or self.hindered)


class _GivenUpError(Exception):
    """A record could not be written: the transaction is to be aborted."""


class KafkaTransactor:
    """See `choreo.broker.Transactor`. Owner: the thread that opens it."""

    def __init__(self, properties: Mapping[str, Any], logger: logging.Logger) -> None:
        self._properties = dict(properties)
        self._id = str(properties["transactional.id"])
        self._logger = logger
        self._errors: deque[KafkaError] = deque()
        self._client: Producer | None = None
        self._careful = False
        """Whether the client writes batches of one record."""
        self._closed = False

    def open(self) -> None:
        self._open(careful=False)

    def _open(self, *, careful: bool) -> None:
        if self._closed:
            raise BrokerError("the transactor is closed", code="_STATE", retriable=False)
        self._end_client()
        properties = {**self._properties, **({"batch.num.messages": 1} if careful else {})}
        self._client = client = Producer({**properties, "error_cb": self._errors.append}, logger=self._logger)
        self._careful = careful
        problem: BrokerError | None = None
        try:
            _patiently(lambda: client.init_transactions(CALL_S), OPEN_S)
        except _FAILED as error:
            problem = _problem(error, f"transactional.id {self._id}: beginning")
        if problem is not None:
            self._end_client()
            raise problem  # out here, for what it was raised from would keep the client

    def run(self, work: Work) -> Ended:
        try:
            if self._careful:
                self._open(careful=False)
            ended = self._run(work)
            if not _SIZES.isdisjoint(error.code for error in ended.refused.values()):
                self._open(careful=True)
                ended = self._run(work)
        except BrokerError as error:
            return Ended("aborted", error)
        finally:
            self._tell_errors()
        return ended

    def _run(self, work: Work) -> Ended:
        client = self._client
        if client is None:
            return Ended("aborted", BrokerError(f"transactional.id {self._id}: it has to be opened first", code="_STATE"))
        if failpoint.ACTIVE:
            failpoint.hit("before_kafka_tx")
        written = _Written(len(work.parts))
        asked = False
        try:
            client.begin_transaction()
            self._write(client, work.parts, written)
            if work.offsets:
                places = [Place(p.topic, p.partition, c.offset, metadata=c.metadata) for p, c in work.offsets.items()]
                _patiently(lambda: client.send_offsets_to_transaction(places, work.identity, CALL_S), STEP_S)
            if failpoint.ACTIVE:
                failpoint.hit("in_kafka_tx")
            # The commit flushes as well, but not so that one sees a record fail, and before it is asked for, all is aborted for sure.
            self._flush(client, written)
            asked = True
            _patiently(lambda: client.commit_transaction(CALL_S), STEP_S)
        except _GivenUpError:
            return self._aborted(client, None, written, asked=False)
        except _FAILED as error:
            return self._aborted(client, error, written, asked=asked)
        except BaseException:
            self._end_client()  # a part's `then`
            raise
        if failpoint.ACTIVE:
            failpoint.hit("after_kafka_commit")
        return Ended("committed")

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _write(self, client: Producer, parts: Sequence[Part], written: _Written) -> None:
        for number, part in enumerate(parts):
            for record in part.records:
                self._produce(client, number, record, written)
        if any(part.then is not None for part in parts):
            self._write_what_follows(client, parts, written)

    def _write_what_follows(self, client: Producer, parts: Sequence[Part], written: _Written) -> None:
        self._flush(client, written)
        for number, part in enumerate(parts):
            if part.then is None:
                continue
            reports = [report for report in written.reports[number] if report is not None and report.offset >= 0]
            if len(reports) < len(part.records):
                # Not acknowledged in time, or so late that Kafka doesn't say where it stands.
                why = f"transactional.id {self._id}: where its letter stands was not said in time"
                written.hindered[number] = BrokerError(why, code="_TIMED_OUT")
                raise _GivenUpError
            for record in part.then(reports):
                self._produce(client, number, record, written)

    def _flush(self, client: Producer, written: _Written) -> None:
        """Waits until all that was written is acknowledged, or one is not."""
        until_s = time.monotonic() + STEP_S
        while written.out and not written.failed_already and time.monotonic() < until_s:
            client.flush(FLUSH_S)
        if written.failed_already:
            raise _GivenUpError

    def _produce(self, client: Producer, number: int, record: Outgoing, written: _Written) -> None:
        headers: Any = record.headers if type(record.headers) is list else list(record.headers)
        partition = ANY_PARTITION if record.partition is None else record.partition
        reported = written.expects(number, record)
        while True:
            try:
                client.produce(record.topic, record.value, record.key, partition, headers=headers, on_delivery=reported)
                return
            except BufferError:
                client.poll(0.05)  # the local queue is full: what is acknowledged makes room
                continue
            except KafkaException as error:
                problem = broker_error(error, f"writing to {record.topic}")
                if problem.fatal:
                    raise
                written.failed(number, problem)
            except (ValueError, TypeError) as error:
                # The client's binding refuses a text (with a NUL, a lone surrogate).
                written.failed(number, BrokerError(f"writing to {record.topic}: {error}", code="_INVALID_ARG", retriable=False))
            raise _GivenUpError

    # ---- ending badly -----------------------------------------------------------------------------------------------

    def _aborted(self, client: Producer, error: Exception | None, written: _Written, *, asked: bool) -> Ended:
        """`asked`: whether the commit was asked for."""
        inner = error.args[0] if isinstance(error, KafkaException) and error.args else None
        problem = None if error is None else _problem(error, f"transactional.id {self._id}")
        if error is not None and (not isinstance(inner, KafkaError) or inner.fatal() or not (inner.txn_requires_abort() or not asked)):
            self._end_client()
            return Ended("unknown" if asked else "aborted", problem, dict(written.refused), dict(written.hindered))
        try:
            _patiently(lambda: client.abort_transaction(CALL_S), STEP_S)
        except _FAILED as failure:
            self._end_client()
            return Ended("unknown" if asked else "aborted", problem or _problem(failure, f"transactional.id {self._id}: aborting"))
        blamed = {**written.hindered, **written.refused}
        return Ended("aborted", next(iter(blamed.values()), problem), dict(written.refused), dict(written.hindered))

    def _end_client(self) -> None:
        """Drops it: its `close` would wait for a coordinator that may not answer. Nobody may keep a reference to it."""
        client, self._client = self._client, None
        if client is not None:
            with suppress(*_FAILED):  # one that has failed for good says so once more
                client.purge(blocking=False)
                client.poll(0)

    def _tell_errors(self) -> None:
        while self._errors:
            _log.warning("%s", broker_error(self._errors.popleft(), f"transactional.id {self._id}"))

    def close(self) -> None:
        self._closed = True
        self._end_client()


def _patiently(call: Callable[[], object], for_s: float) -> None:
    """Calls until it goes through, as long as the client says that another call may help."""
    until_s = time.monotonic() + for_s
    while True:
        try:
            call()
            return
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > until_s:
                raise


def _problem(error: Exception, what: str) -> BrokerError:
    if isinstance(error, KafkaException):
        found = broker_error(error, what)
        if found.code == FENCED:
            return BrokerError(f"{found}; it took too long, or another process has this transactional.id", code=FENCED, retriable=False)
        return found
    return BrokerError(f"{what}: librdkafka failed: {error}", fatal=True)
