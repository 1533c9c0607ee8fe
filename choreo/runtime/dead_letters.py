"""Is the letter safe? Writes a delivery that died to the dlq, then its state, and only then lets it settle.

dlq acknowledged -> state acknowledged -> settle (DESIGN section 6); with transactions both are in the one that has its end. A letter that can't be written holds its lane: the
sends are tried until they go through, and `troubled` says so; nothing is dropped, no offset passes it. When its partition
is gone, no further step is taken: its next owner has the event, and a state of ours would open a letter that it knows
nothing of. A dlq record without one is an abandoned copy.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import traceback
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import PurePath

from choreo import failpoint
from choreo.broker import Part, Report
from choreo.core.partition import GONE, Delivery, Partition
from choreo.errors import BrokerError, CrashLoopError, DecodeError, told
from choreo.letter import Death, Kind, LetterState, Place, dead_letter, dlq_topic, letter_state, letters_topic, state_record
from choreo.record import Outgoing
from choreo.runtime.atomic import Atomic
from choreo.runtime.sends import Sends

_log = logging.getLogger("choreo.letters")


class DeadLetters:
    """Writes letters and their states for one service. Owner: the event loop.

    `state_partitions` is the number of partitions of ``<service>.letters``.
    """

    def __init__(
        self, service: str, version: str, sends: Sends, names: Callable[[str], str], state_partitions: int, atomic: Atomic | None = None
    ) -> None:
        self._service = service
        self._version = version
        self._host = socket.gethostname()
        self._sends = sends
        self._atomic = atomic
        self._dlq = names(dlq_topic(service))
        self._letters = names(letters_topic(service))
        self._state_partitions = state_partitions

    def write(self, delivery: Delivery, error: Exception, first_failed_at: datetime, then: Callable[[LetterState], None]) -> None:
        """The delivery died of `error`: `then(state)` when both records are acknowledged.

        Also, and nothing more is written, when its partition is gone: settling it, it counts as late.
        """
        self._write(delivery, self._death(delivery, error, first_failed_at), then)

    def _write(self, delivery: Delivery, death: Death, then: Callable[[LetterState], None]) -> None:
        def state(place: Place) -> LetterState:
            return letter_state(delivery.record, place, death, state="open", run="" if delivery.run is None else delivery.run.run)

        def again() -> None:
            self._write(delivery, death, then)

        def written(problem: BrokerError | None, reports: Sequence[Report]) -> None:
            if delivery.partition.state is GONE:
                again()  # which ends it
            elif problem is not None:
                # Too large for the dlq even with its own limits: an operator must raise max.message.bytes; try until then.
                _log.error("%s: its letter can't be written: %s; the key waits, nothing is lost", delivery.record.origin, problem)
                self._sends.later(again)
            elif reports[0].offset < 0:
                # It is there, and Kafka doesn't say where. What no state points to is no letter: so once more.
                again()
            else:
                if failpoint.ACTIVE:
                    failpoint.hit("after_dlq_ack")
                self.write_state(state(Place(self._dlq, reports[0].partition, reports[0].offset)), delivery.partition, then)

        if delivery.partition.state is GONE:
            then(state(Place(self._dlq, -1, -1)))
            return
        if self._atomic is not None:
            self._write_at_once(self._atomic, delivery, death, state, then)
            return
        self._sends.send_while(lambda: delivery.partition.state is not GONE, dead_letter(self._dlq, delivery.record, death), written)

    def _write_at_once(
        self, atomic: Atomic, delivery: Delivery, death: Death, state: Callable[[Place], LetterState], then: Callable[[LetterState], None]
    ) -> None:
        """Letter, state and offset in one transaction."""
        made: list[LetterState] = []

        def following(reports: Sequence[Report]) -> list[Outgoing]:
            made[:] = [state(Place(self._dlq, reports[0].partition, reports[0].offset))]
            return [state_record(self._letters, made[0], self._state_partitions)]

        def ended(problem: BrokerError | None) -> None:
            if problem is None:
                then(made[0])
            else:
                _log.error("%s: its letter can't be written: %s; the key waits, nothing is lost", delivery.record.origin, problem)
                self._sends.later(lambda: self._write(delivery, death, then))

        atomic.write(delivery, Part((dead_letter(self._dlq, delivery.record, death),), following), ended)

    def resolved(self, state: LetterState) -> Outgoing:
        """A letter's state as a record."""
        return state_record(self._letters, state, self._state_partitions)

    def write_state(self, state: LetterState, source: Partition, then: Callable[[LetterState], None]) -> None:
        """Writes a letter's state; `then(state)` when it is acknowledged, or, unwritten, when its `source` is gone."""

        def again() -> None:
            self.write_state(state, source, then)

        def written(problem: BrokerError | None, _: Sequence[Report]) -> None:
            if problem is not None and source.state is not GONE:
                # It holds the record's key, which may be larger than a state may be here: as above, for the other topic.
                _log.error("%s: the state of its letter can't be written: %s; the key waits, nothing is lost", state.origin, problem)
                self._sends.later(again)
                return
            if failpoint.ACTIVE and problem is None:
                failpoint.hit("after_letter_state")
            then(state)

        if source.state is GONE:
            then(state)
            return
        self._sends.send_while(lambda: source.state is not GONE, state_record(self._letters, state, self._state_partitions), written)

    def _death(self, delivery: Delivery, error: Exception, first_failed_at: datetime) -> Death:
        undecodable = isinstance(error, DecodeError)
        kind: Kind = "crash-loop" if isinstance(error, CrashLoopError) else "undecodable" if undecodable else "failed"
        return Death(
            kind=kind,
            handler=delivery.route.name,
            group=self._service,
            event_id=delivery.wire.event_id,
            event_type=event_type_of(delivery),
            error_type=error_type(error),
            message=describe(delivery, error),
            stack="" if undecodable else "".join(traceback.format_exception(error)),
            fingerprint=fingerprint(error),
            attempts=delivery.attempts,
            first_failed_at=first_failed_at,
            last_failed_at=datetime.now(UTC),
            version=self._version,
            host=self._host,
        )


def event_type_of(delivery: Delivery) -> str | None:
    event = delivery.event
    return event.event_type if isinstance(event, DecodeError) else event.type


def error_type(error: Exception) -> str:
    """``ReadTimeout``, without its module: what an operator says aloud."""
    return type(error).__qualname__


def describe(delivery: Delivery, error: Exception) -> str:
    """What happened, against what, and who sent it: ``orders[3]@1842: payload of order.placed: ..., by orders/place-order``."""
    text = f"{delivery.record.origin}: {told(error)}"
    source = delivery.wire.source
    if isinstance(error, DecodeError):
        return f"{text}; fix the producer {source or '(unknown: no choreo-source header)'}, then replay"
    return text


def fingerprint(error: Exception) -> str:
    """The same for failures of one kind: a hash over the error's type and the innermost frame outside of installed packages."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename and "/choreo/runtime/" not in frame.filename]
    where = f"{PurePath(own[-1].filename).name}:{own[-1].lineno}" if own and not isinstance(error, DecodeError) else ""
    detail = f"{error.reason}:{error.path}:{error.event_type}" if isinstance(error, DecodeError) else where
    # "backslashreplace": the name of a file may be no UTF-8.
    return hashlib.sha256(f"{type(error).__qualname__}|{detail}".encode("utf-8", "backslashreplace")).hexdigest()[:8]
