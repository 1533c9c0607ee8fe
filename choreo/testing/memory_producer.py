"""The producer of the memory broker: acknowledges at once, unless a test holds or fails what is sent. The `Producer` port."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

from choreo.broker import Report
from choreo.errors import BrokerError
from choreo.record import Outgoing
from choreo.testing.memory_log import PartitionLog
from choreo.testing.memory_state import MemoryState

_Callback: TypeAlias = Callable[[Report], None]


class MemoryProducer:
    """See `choreo.broker.Producer`. Owner: the thread that sends."""

    def __init__(self, state: MemoryState) -> None:
        self._state = state
        self._held: deque[tuple[PartitionLog, Outgoing, _Callback]] = deque()
        self._reports: deque[tuple[_Callback, Report]] = deque()
        self._keyless_turn = 0
        self._closed = False

    def send(self, record: Outgoing, report: _Callback) -> None:
        if self._closed:
            raise BrokerError(f"{record.topic}: this producer is closed; make another", code="_STATE", retriable=False)
        with self._state.changed:
            if self._out() >= self._state.queue_records:
                raise BufferError(f"{self._out()} records are unreported, the most this producer holds; poll, then send again")
            log = self._state.log_for(record, self._keyless_turn)
            self._keyless_turn += record.key is None
            self._held.append((log, record, report))
            self._write_released()

    def _out(self) -> int:
        return len(self._held) + len(self._reports)

    def _write_released(self) -> None:
        held, self._held = self._held, deque()
        for log, record, report in held:
            if record.topic in self._state.held_topics:
                self._held.append((log, record, report))
                continue
            error = self._state.take_fault("send", record.topic)
            if error is not None:
                self._reports.append((report, Report(log.partition.partition, -1, error)))
            else:
                written = self._state.append(log, record)
                self._reports.append((report, Report(written.partition, written.offset, None)))

    def poll(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        with self._state.changed:
            self._write_released()
            while not self._reports and (left_s := deadline - time.monotonic()) > 0:
                self._state.changed.wait(left_s)
                self._write_released()
        return self._report()

    def _report(self) -> int:
        count = 0
        while self._reports:
            callback, report = self._reports.popleft()
            count += 1
            callback(report)
        return count

    def flush(self, timeout_s: float) -> int:
        deadline = time.monotonic() + timeout_s
        while True:
            self.poll(0)
            left_s = deadline - time.monotonic()
            if not self._held or left_s <= 0:
                return self._out()
            with self._state.changed:
                if all(record.topic in self._state.held_topics for _, record, _ in self._held):
                    self._state.changed.wait(left_s)

    def close(self, timeout_s: float) -> int:
        if self._closed:
            return 0
        self._closed = True
        left = self.flush(timeout_s)
        for log, record, report in self._held:
            error = BrokerError(f"{record.topic}: dropped, not acknowledged before the producer was closed", code="_PURGE_QUEUE")
            self._reports.append((report, Report(log.partition.partition, -1, error)))
        self._held.clear()
        self._report()
        return left
