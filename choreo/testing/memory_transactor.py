"""The transactor of the memory broker: records and a group's offsets, all of it or nothing. The `Transactor` port.

As on Kafka the records are in the log from the moment they are written, and nobody reads them, nor what others write behind them,
until the transaction is decided; an aborted one leaves their offsets behind. `Part.then` is called with no lock held.
"""

from __future__ import annotations

from collections.abc import Sequence

from choreo.broker import FENCED, METADATA_TOO_LARGE, Ended, Report, Work
from choreo.errors import BrokerError
from choreo.record import Outgoing
from choreo.testing.memory_group import MAX_METADATA_CHARS
from choreo.testing.memory_log import Undecided
from choreo.testing.memory_state import MemoryState


class MemoryTransactor:
    """See `choreo.broker.Transactor`. Owner: the thread that makes the call; only `open` of another with its id comes in between."""

    def __init__(self, state: MemoryState, transactional_id: str) -> None:
        self._state = state
        self._id = transactional_id
        self._opening: int | None = None
        """Which opening of the id is this one's; None while it has to be opened."""
        self._keyless_turn = 0
        self._closed = False

    def open(self) -> None:
        with self._state.changed:
            self._opening = None
            if self._closed:
                raise BrokerError(f"{self._named()}: the transactor is closed; make another", code="_STATE", retriable=False)
            error = self._state.take_fault("open", "")
            if error is not None:
                raise error
            self._abort_what_is_open()
            self._opening = self._state.openings[self._id] = self._state.openings.get(self._id, 0) + 1

    def run(self, work: Work) -> Ended:
        with self._state.changed:
            error = self._unfit()
            if error is not None:
                return self._ended(Ended("aborted", error))
            undecided = self._state.undecided[self._id] = Undecided()
        written = _Written(work)
        try:
            self._write(work, undecided, written)
            with self._state.changed:
                self._wait_while_held()
                return self._ended(self._decided(work, undecided, written))
        finally:
            with self._state.changed:
                self._over(undecided)  # also where `then` raised

    def close(self) -> None:
        with self._state.changed:
            if self._owns_the_id():
                self._abort_what_is_open()
            self._closed, self._opening = True, None

    # ---- its id ---------------------------------------------------------------------------------------------------------

    def _named(self) -> str:
        return f"transactional.id {self._id}"

    def _owns_the_id(self) -> bool:
        return self._opening is not None and self._opening == self._state.openings[self._id]

    def _unfit(self) -> BrokerError | None:
        """Why it can't run anything; None when it can."""
        if self._opening is None:
            return BrokerError(f"{self._named()}: it has to be opened first", code="_STATE")
        return None if self._owns_the_id() else BrokerError(f"{self._named()}: opened by another since", code=FENCED, retriable=False)

    def _abort_what_is_open(self) -> None:
        undecided = self._state.undecided.get(self._id)
        if undecided is not None:
            self._over(undecided)

    def _over(self, undecided: Undecided) -> None:
        """Aborts it, where it isn't decided."""
        undecided.abort()
        if self._state.undecided.get(self._id) is undecided:
            del self._state.undecided[self._id]
        self._state.changed.notify_all()

    def _ended(self, ended: Ended) -> Ended:
        if ended.outcome == "unknown" or (ended.error is not None and ended.error.code == FENCED):
            self._opening = None
        return ended

    # ---- writing --------------------------------------------------------------------------------------------------------

    def _write(self, work: Work, undecided: Undecided, written: _Written) -> None:
        """All parts' records, then what follows them; stops where one can't be written, or the id is another's."""
        for number, part in enumerate(work.parts):
            self._append(number, part.records, undecided, written)
        for number, part in enumerate(work.parts):
            if part.then is not None and not written.failed and undecided.over is None:
                self._append(number, part.then(tuple(written.reports[number])), undecided, written)

    def _append(self, number: int, records: Sequence[Outgoing], undecided: Undecided, written: _Written) -> None:
        for outgoing in records:
            with self._state.changed:
                if undecided.over is not None:
                    return
                try:
                    _check_topic(outgoing)
                    log = self._state.log_for(outgoing, self._keyless_turn)
                except BrokerError as error:
                    written.fail(number, error)
                    continue
                self._keyless_turn += outgoing.key is None
                record = undecided.add(log, outgoing, self._state.now_ms())
                written.reports[number].append(Report(record.partition, record.offset, None))

    # ---- deciding -------------------------------------------------------------------------------------------------------

    def _wait_while_held(self) -> None:
        self._state.held_transactions += 1
        try:
            while self._state.hold_transactions and not self._closed:
                self._state.changed.wait()
        finally:
            self._state.held_transactions -= 1

    def _decided(self, work: Work, undecided: Undecided, written: _Written) -> Ended:
        error = self._unfit()
        if error is not None:
            return Ended("aborted", error)
        bad = self._state.bad_ends.popleft() if self._state.bad_ends else None
        if bad is not None and not bad.committed:
            return Ended(bad.outcome, bad.error)
        if written.failed:
            return Ended("aborted", written.first_error, written.refused, written.hindered)
        error = self._refusal_of_offsets(work)
        if error is not None:
            return Ended("aborted", error)
        undecided.commit()
        if work.offsets:
            # Not Group.commit: Kafka compares them with nothing.
            self._state.group(work.group).committed.update(work.offsets)
        return Ended("committed") if bad is None else Ended(bad.outcome, bad.error)

    def _refusal_of_offsets(self, work: Work) -> BrokerError | None:
        if not work.offsets:
            return None
        what = f"{self._named()}: group {work.group}"
        code = self._state.group(work.group).refusal(work.identity)
        if code is not None:
            return BrokerError(f"{what}: {code}: the group knows this member no more, or by another generation", code=code)
        for partition, committed in work.offsets.items():
            if len(committed.metadata) > MAX_METADATA_CHARS:
                message = f"{what}: {partition}: a text of over {MAX_METADATA_CHARS} characters; write less"
                return BrokerError(message, code=METADATA_TOO_LARGE, retriable=False)
            if not 0 <= partition.partition < self._state.partition_counts().get(partition.topic, 0):
                return BrokerError(f"{what}: {partition}: no such partition", code="UNKNOWN_TOPIC_OR_PART", retriable=False)
        return None


class _Written:
    """What came of the records of one run, by the number of their part."""

    def __init__(self, work: Work) -> None:
        self.reports: list[list[Report]] = [[] for _ in work.parts]
        self.refused: dict[int, BrokerError] = {}
        self.hindered: dict[int, BrokerError] = {}

    @property
    def failed(self) -> bool:
        return bool(self.refused or self.hindered)

    @property
    def first_error(self) -> BrokerError:
        return next(iter({**self.refused, **self.hindered}.values()))

    def fail(self, number: int, error: BrokerError) -> None:
        """A record that is too large always will be; a topic that isn't there may be made."""
        kind = self.refused if error.code in ("MSG_SIZE_TOO_LARGE", "_INVALID_ARG") else self.hindered
        kind.setdefault(number, error)


def _check_topic(record: Outgoing) -> None:
    """Raises where Kafka's client doesn't take the name: a NUL, half of a character."""
    if "\0" in record.topic or record.topic.encode(errors="ignore").decode() != record.topic:
        raise BrokerError(f"{record.topic!r} can't be the name of a topic", code="_INVALID_ARG", retriable=False)
