"""Is the letter safe? Writes a delivery that died to the dlq, then its state, and only then lets it settle.

dlq acknowledged -> state acknowledged -> settle (DESIGN section 6). A letter that can't be written holds its lane: the
sends are tried until they go through, and `troubled` says so; nothing is dropped, no offset passes it.
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
from choreo.broker import Report
from choreo.core.engine import Delivery
from choreo.errors import BrokerError, DecodeError, told
from choreo.letter import Death, LetterState, Place, dead_letter, dlq_topic, letter_state, letters_topic, state_record
from choreo.runtime.sends import Sends

_log = logging.getLogger("choreo.letters")


class DeadLetters:
    """Writes letters and their states for one service. Owner: the event loop.

    `state_partitions` is the number of partitions of ``<service>.letters``.
    """

    def __init__(self, service: str, version: str, sends: Sends, names: Callable[[str], str], state_partitions: int) -> None:
        self._service = service
        self._version = version
        self._host = socket.gethostname()
        self._sends = sends
        self._dlq = names(dlq_topic(service))
        self._letters = names(letters_topic(service))
        self._state_partitions = state_partitions

    def write(self, delivery: Delivery, error: Exception, first_failed_at: datetime, then: Callable[[LetterState], None]) -> None:
        """The delivery died of `error`: `then(state)` when both records are acknowledged."""
        death = self._death(delivery, error, first_failed_at)
        replay = delivery.run
        run = "" if replay is None else replay.run

        def written(problem: BrokerError | None, reports: Sequence[Report]) -> None:
            if problem is not None:
                # Too large for the dlq even with its own limits: an operator must raise max.message.bytes; try until then.
                _log.error("%s: its letter can't be written: %s; the key waits, nothing is lost", delivery.record.origin, problem)
                self._sends.later(lambda: self.write(delivery, error, first_failed_at, then))
                return
            if reports[0].offset < 0:
                # It is there, and Kafka doesn't say where. What no state points to is no letter: so once more.
                self.write(delivery, error, first_failed_at, then)
                return
            if failpoint.ACTIVE:
                failpoint.hit("after_dlq_ack")
            place = Place(self._dlq, reports[0].partition, reports[0].offset)
            self.write_state(letter_state(delivery.record, place, death, state="open", run=run), then)

        self._sends.send((dead_letter(self._dlq, delivery.record, death),), written)

    def write_state(self, state: LetterState, then: Callable[[LetterState], None]) -> None:
        """Writes a letter's state; `then(state)` when it is acknowledged."""

        def written(problem: BrokerError | None, _: Sequence[Report]) -> None:
            if problem is not None:
                # It holds the record's key, which may be larger than a state may be here: as above, for the other topic.
                _log.error("%s: the state of its letter can't be written: %s; the key waits, nothing is lost", state.origin, problem)
                self._sends.later(lambda: self.write_state(state, then))
                return
            if failpoint.ACTIVE:
                failpoint.hit("after_letter_state")
            then(state)

        self._sends.send((state_record(self._letters, state, self._state_partitions),), written)

    def _death(self, delivery: Delivery, error: Exception, first_failed_at: datetime) -> Death:
        undecodable = isinstance(error, DecodeError)
        return Death(
            kind="undecodable" if undecodable else "failed",
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
    return hashlib.sha256(f"{type(error).__qualname__}|{detail}".encode()).hexdigest()[:8]
