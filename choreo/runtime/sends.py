"""Has everything this delivery wrote been acknowledged? Sends that are tried until they are, or can never be.

The event loop sends and polls the producer itself: a thread of its own would fight for the interpreter once a report
(a hop of a millisecond became five). While reports are out, the loop looks for them every millisecond.

Each record is tried by itself: what is acknowledged is never written again, and of one key only one is under way. The next
waits until it is acknowledged, for a record that is refused once would otherwise come to stand behind it (TRAPS 19;
tests/unit/test_sends.py). Between two deliveries of one key the lane sees to that: the first settles when all is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec

from choreo.broker import Producer, Report
from choreo.errors import BrokerError
from choreo.record import Outgoing
from choreo.telemetry.counters import Counters

_log = logging.getLogger("choreo.sends")

POLL_EVERY_S = 0.001
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 10.0
MOST_DOUBLINGS = 16
"""Kafka may be away for hours: 2**1024 is more than a float holds."""
NEVER = frozenset({"MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "_INVALID_ARG"})
"""The record itself is at fault: sending it again can't help. Everything else is waited out."""

Done = Callable[[BrokerError | None, Sequence[Report]], None]


class _Sending(msgspec.Struct, eq=False):
    """One record under way; `then` is called once, when it is acknowledged or never can be."""

    owner: Sends
    record: Outgoing
    then: Done
    wanted: Callable[[], bool] | None = None
    tries: int = 0

    def report(self, report: Report) -> None:
        self.owner.reported(self, report)


class _Together(msgspec.Struct, eq=False):
    """Several records of one call; `then` is called once, when nothing of them is under way any more."""

    then: Done
    keys_left: int
    reports: list[Report] = []
    error: BrokerError | None = None

    def key_ended(self, error: BrokerError | None, reports: Sequence[Report]) -> None:
        self.reports.extend(reports)
        self.error = self.error or error
        self.keys_left -= 1
        if not self.keys_left:
            self.then(self.error, self.reports)


class _OfOneKey(msgspec.Struct, eq=False):
    """Several records of one key; each is begun when the one before is acknowledged.

    None is begun after one that can never be written, of whatever key: who sent them will send all of them again.
    """

    owner: Sends
    together: _Together
    rest: deque[Outgoing]

    def begin_next(self) -> None:
        self.owner.send((self.rest.popleft(),), self._ended)

    def _ended(self, error: BrokerError | None, reports: Sequence[Report]) -> None:
        if error is not None or self.together.error is not None or not self.rest:
            self.together.key_ended(error, reports)
        else:
            self.together.reports.extend(reports)
            self.begin_next()


class Sends:
    """What is being written to Kafka by this worker. Owner: the event loop. `failed` hears of what must not happen.

    `patient`: an error that time may mend is waited out, for ever. Otherwise the first one that the producer reports is the
    answer; it has tried for its delivery.timeout.ms by then.
    """

    def __init__(
        self, producer: Producer, counters: Counters, failed: Callable[[BaseException], None] | None = None, *, patient: bool = True
    ) -> None:
        self._producer = producer
        self._failed = failed
        self._counters = counters
        self._patient = patient
        self._queue: deque[_Sending] = deque()
        self._under_way = 0
        self._waiting: set[asyncio.TimerHandle] = set()
        self._awaited: set[asyncio.Future[Sequence[Report]]] = set()
        self._quiet = asyncio.Event()
        self._resting = 0
        self._polling = False
        self._closed = False
        self._told: dict[str, str] = {}
        """What was said last of each topic that can't be written now: its error's code."""
        self.troubled: BrokerError | None = None
        """The last error that is being waited out; None when sends go through."""

    @property
    def outstanding(self) -> int:
        """Records that were begun and are not acknowledged."""
        return self._under_way

    def send(self, records: Sequence[Outgoing], then: Done) -> None:
        """Writes `records`, those of one key in order. `then(None, reports)` when all are acknowledged, the reports in the order
        in which they came; `then(error, ...)` when one never can be. After `close`, neither: what was sent is not settled."""
        if len(records) == 1:
            self.send_while(None, records[0], then)
        else:
            self._send_together(records, then)

    def send_while(self, wanted: Callable[[], bool] | None, record: Outgoing, then: Done) -> None:
        """Writes one record, and tries again only as long as it is `wanted` (None: for ever); then `then(error, ())`."""
        self._under_way += 1
        self._begin(_Sending(self, record, then, wanted))

    def _send_together(self, records: Sequence[Outgoing], then: Done) -> None:
        keys = by_key(records)
        together = _Together(then, len(keys) + 1)
        for of_one_key in keys:
            if len(of_one_key) == 1:
                self.send(of_one_key, together.key_ended)
            else:
                _OfOneKey(self, together, deque(of_one_key)).begin_next()
        # The one more: a record that is refused at once must not end it before the others have begun.
        together.key_ended(None, ())

    async def acknowledged(self, records: Sequence[Outgoing]) -> Sequence[Report]:
        """Writes `records`; returns when all are acknowledged. Raises BrokerError when one never can be, and when the sends are
        closed before: then it is unknown which of them were written."""
        if self._closed:
            raise BrokerError(f"{_writing(records)}: the producer is closed", code="_STATE", retriable=False)
        waiting: asyncio.Future[Sequence[Report]] = asyncio.get_running_loop().create_future()

        def then(error: BrokerError | None, reports: Sequence[Report]) -> None:
            if waiting.done():
                return
            if error is None:
                waiting.set_result(reports)
            else:
                waiting.set_exception(error)

        self._awaited.add(waiting)
        try:
            self.send(records, then)
            return await waiting
        except _ClosedError as error:
            raise BrokerError(f"{_writing(records)}: {error}", code="UNKNOWN") from error
        finally:
            self._awaited.discard(waiting)

    def _begin(self, sending: _Sending) -> None:
        if self._closed:
            return
        if self._queue or not self._push(sending):
            self._queue.append(sending)
        if not self._polling:
            self._polling = True
            asyncio.get_running_loop().call_soon(self._poll)

    def _push(self, sending: _Sending) -> bool:
        try:
            self._producer.send(sending.record, sending.report)
        except BufferError:
            # The local queue is full: it waits for reports to make room, and all that come behind it (TRAPS 19).
            return False
        except BrokerError as error:
            # A missing or forbidden topic may be raised at once instead of reported (TRAPS 16).
            sending.report(Report(-1, -1, error))
        except (ValueError, TypeError) as error:
            # The client's binding refuses a text (with a NUL, a lone surrogate): this record, and no other.
            refused = BrokerError(f"{_writing((sending.record,))}: {error}", code="_INVALID_ARG", retriable=False)
            sending.report(Report(-1, -1, refused))
        return True

    def _poll(self) -> None:
        try:
            self._look()
        except Exception as error:  # a callback of the loop has no caller: whoever waits, or runs the worker, is told
            self._polling = False
            self._end_waits(error)
            if self._failed is None:
                raise
            self._failed(error)

    def _look(self) -> None:
        if self._closed:
            self._polling = False
            return
        self._producer.poll(0)
        while self._queue and self._push(self._queue[0]):
            self._queue.popleft()
        if self._under_way > self._resting:
            asyncio.get_running_loop().call_later(POLL_EVERY_S, self._poll)
        else:
            self._polling = False

    def hear(self) -> None:
        """Takes what the producer has to say, also while nothing is sent: else its errors pile up and come late."""
        if not self._closed:
            self._producer.poll(0)

    def poll_now(self) -> None:
        """Looks for reports at once; called between turns so that a busy loop sees them early."""
        if self._polling and not self._closed:
            self._producer.poll(0)

    def reported(self, sending: _Sending, report: Report) -> None:
        """What became of one record: done, impossible, or once more after a wait."""
        error = report.error
        if error is None:
            self.troubled = None
            if self._told:
                self._told.pop(sending.record.topic, None)
            self._ended(sending, None, (report,))
        elif error.code in NEVER or not (self._patient or self._closed):
            self._ended(sending, error, (report,))
        else:
            self._again_later(sending, error)

    def _ended(self, sending: _Sending, error: BrokerError | None, reports: Sequence[Report]) -> None:
        self._under_way -= 1
        if not self._under_way:
            self._quiet.set()
        sending.then(error, reports)

    def _again_later(self, sending: _Sending, error: BrokerError) -> None:
        if self._closed:
            # A close says nothing about the record: it is neither done nor failed, and is not settled.
            return
        self._counters.broker_errors += 1
        delay_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2 ** min(sending.tries, MOST_DOUBLINGS))
        sending.tries += 1
        if self._told.get(sending.record.topic) != error.code:
            self._told[sending.record.topic] = error.code
            _log.warning("%s; its key waits, trying again every %.1f to %.0f s", error, RETRY_FIRST_S, RETRY_MOST_S)
        self.troubled = error
        self._resting += 1

        def again() -> None:
            self._resting -= 1
            if sending.wanted is None or sending.wanted():
                self._begin(sending)
            else:
                self._ended(sending, error, ())

        self.later(again, delay_s)

    def later(self, call: Callable[[], None], delay_s: float | None = None) -> None:
        """Calls after `delay_s` seconds (RETRY_MOST_S), unless the sends were closed before."""
        if self._closed:
            return

        def now() -> None:
            self._waiting.discard(handle)
            call()

        handle = asyncio.get_running_loop().call_later(RETRY_MOST_S if delay_s is None else delay_s, now)
        self._waiting.add(handle)

    async def drain(self, timeout_s: float) -> bool:
        """Waits, while the loop goes on, until nothing is under way; whether that came within `timeout_s`."""
        ends_at = asyncio.get_running_loop().time() + timeout_s
        while self._under_way and (left_s := ends_at - asyncio.get_running_loop().time()) > 0:
            # Again, for what has ended may have begun the next of its key.
            self._quiet.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), left_s)
        return not self._under_way

    def close(self, timeout_s: float) -> int:
        """Flushes within `timeout_s`, and blocks; how many records stay unacknowledged. They are not settled, and whoever awaits
        them gets a BrokerError. A second call does nothing."""
        if self._closed:
            return self._under_way
        self._producer.flush(timeout_s)
        self._closed = True
        for handle in self._waiting:
            handle.cancel()
        self._producer.close(0)
        self._end_waits(_ClosedError("closed before it was acknowledged"))
        return self._under_way

    def _end_waits(self, error: Exception) -> None:
        for waiting in self._awaited:
            if not waiting.done():
                waiting.set_exception(error)


class _ClosedError(Exception):
    """The sends were closed before the report came."""


def _writing(records: Iterable[Outgoing]) -> str:
    return f"writing to {', '.join(dict.fromkeys(record.topic for record in records))}"


def by_key(records: Iterable[Outgoing]) -> list[list[Outgoing]]:
    """The records of each key of a topic, in order; one without a key stands alone, for it has no order."""
    groups: list[list[Outgoing]] = []
    known: dict[tuple[str, bytes], list[Outgoing]] = {}
    for record in records:
        if record.key is None:
            groups.append([record])
        elif (group := known.get((record.topic, record.key))) is not None:
            group.append(record)
        else:
            known[record.topic, record.key] = group = [record]
            groups.append(group)
    return groups
