"""Has everything this delivery wrote been acknowledged? Sends that are tried until they are, or can never be.

The event loop sends and polls the producer itself: a thread of its own would fight for the interpreter once a report
(a hop of a millisecond became five). While reports are out, the loop looks for them every millisecond.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from choreo.broker import Producer, Report
from choreo.errors import BrokerError
from choreo.record import Outgoing
from choreo.telemetry.counters import Counters

_log = logging.getLogger("choreo.sends")

POLL_EVERY_S = 0.001
RETRY_FIRST_S = 0.5
RETRY_MOST_S = 10.0
NEVER = frozenset({"MSG_SIZE_TOO_LARGE", "INVALID_RECORD", "_INVALID_ARG"})
"""The record itself is at fault: sending it again can't help. Everything else is waited out."""

Done = Callable[[BrokerError | None, Sequence[Report]], None]


class _Sending(msgspec.Struct, eq=False):
    """The records of one delivery under way; `then` is called once, when all are acknowledged or one never can be."""

    owner: Sends
    records: Sequence[Outgoing]
    then: Done
    left: int = 0
    reports: list[Report] = []
    error: BrokerError | None = None
    tries: int = 0

    def report(self, report: Report) -> None:
        if report.error is not None:
            self.error = self.error or report.error
        self.reports.append(report)
        self.left -= 1
        if not self.left:
            self.owner.finished(self)


class Sends:
    """What is being written to Kafka by this worker. Owner: the event loop. `failed` hears of what must not happen."""

    def __init__(self, producer: Producer, counters: Counters, failed: Callable[[BaseException], None] | None = None) -> None:
        self._producer = producer
        self._failed = failed
        self._counters = counters
        self._queue: deque[tuple[_Sending, int]] = deque()
        self._under_way = 0
        self._waiting: set[asyncio.TimerHandle] = set()
        self._resting = 0
        self._polling = False
        self._closed = False
        self.troubled: BrokerError | None = None
        """The last error that is being waited out; None when sends go through."""

    @property
    def outstanding(self) -> int:
        """Deliveries whose records are not all acknowledged."""
        return self._under_way

    def send(self, records: Sequence[Outgoing], then: Done) -> None:
        """Writes `records` in order; `then(None, reports)` when all are acknowledged, `then(error, ...)` when one never can be."""
        self._under_way += 1
        self._begin(_Sending(self, records, then))

    def _begin(self, sending: _Sending) -> None:
        sending.left = len(sending.records)
        sending.reports = []
        sending.error = None
        if self._queue:
            self._queue.append((sending, 0))
        else:
            self._push(sending, 0)
        if not self._polling:
            self._polling = True
            asyncio.get_running_loop().call_soon(self._poll)

    def _push(self, sending: _Sending, start: int) -> bool:
        for number in range(start, len(sending.records)):
            try:
                self._producer.send(sending.records[number], sending.report)
            except BufferError:
                # The local queue is full: the rest waits for reports to make room (TRAPS 19).
                self._queue.append((sending, number))
                return False
            except BrokerError as error:
                # A missing or forbidden topic may be raised at once instead of reported (TRAPS 16).
                sending.report(Report(-1, -1, error))
        return True

    def _poll(self) -> None:
        try:
            self._look()
        except Exception as error:  # a callback of the loop has no caller: whoever runs the worker is told
            if self._failed is None:
                raise
            self._failed(error)

    def _look(self) -> None:
        if self._closed:
            self._polling = False
            return
        self._producer.poll(0)
        while self._queue:
            sending, start = self._queue.popleft()
            if not self._push(sending, start):
                self._queue.appendleft(self._queue.pop())
                break
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

    def finished(self, sending: _Sending) -> None:
        """All reports of one sending are in: done, impossible, or once more after a wait."""
        error = sending.error
        if error is None:
            self.troubled = None
            self._under_way -= 1
            sending.then(None, sending.reports)
        elif error.code in NEVER:
            self._under_way -= 1
            sending.then(error, sending.reports)
        else:
            self._again_later(sending, error)

    def _again_later(self, sending: _Sending, error: BrokerError) -> None:
        if self._closed:
            return
        self._counters.broker_errors += 1
        delay_s = min(RETRY_MOST_S, RETRY_FIRST_S * 2**sending.tries)
        sending.tries += 1
        if self.troubled is None or self.troubled.code != error.code:
            _log.warning("%s; its key waits, trying again every %.1f to %.0f s", error, RETRY_FIRST_S, RETRY_MOST_S)
        self.troubled = error
        self._resting += 1

        def again() -> None:
            self._resting -= 1
            self._begin(sending)

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

    def close(self, timeout_s: float) -> int:
        """Flushes within `timeout_s`; how many deliveries stay unacknowledged (they are not settled)."""
        for handle in self._waiting:
            handle.cancel()
        self._producer.flush(timeout_s)
        self._closed = True
        self._producer.close(0)
        return self._under_way
