"""Which letters does an operator want to run again? Follows ``<service>.replay`` and runs what this member owns.

Every member reads the log from its beginning (no group); the member that owns a letter's source partition is the only
one that runs it, in the lane of its key, for the failing handler alone. A request is begun only when everything in the log
at the moment of the assignment has been read, so that a request another owner finished is not run again.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from choreo import failpoint
from choreo.broker import LogReader
from choreo.core.engine import Delivery, Partition
from choreo.errors import BrokerError, DecodeError
from choreo.handler import Replay
from choreo.letter import (
    UNREADABLE,
    LetterState,
    Place,
    ReplayOutcome,
    Request,
    Result,
    letters_topic,
    read_replay,
    replay_record,
    replay_topic,
    source_record,
    state_partition,
)
from choreo.record import Record, TopicPartition
from choreo.runtime.history import letter_states, read_partitions

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.replay")

READ_S = 0.2
FETCH_S = 15.0
AGAIN_S = 5.0


class _Id(NamedTuple):
    run: str
    handler: str
    event_id: str


class _Running(msgspec.Struct):
    """One request under way: its letter's state, and what of it has not ended (a letter of handler ``*`` may be several)."""

    request: Request
    state: LetterState
    left: int
    attempts: int = 0
    result: Result = "already-done"
    error: str = ""


class _Barrier(NamedTuple):
    """Everything up to `position` must be read before the requests of these partitions begin."""

    partitions: tuple[TopicPartition, ...]
    position: int


class Replays:
    """Owner: the event loop; `_follow` runs in a thread of its own and meets it at `_todo` and call_soon_threadsafe."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        plan = worker.plan
        self._topic = plan.names(replay_topic(plan.service))
        self._letters = plan.names(letters_topic(plan.service))
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[_Id, Request] = {}
        self._running: dict[_Id, _Running] = {}
        self._by_delivery: dict[int, _Id] = {}
        self._ready: set[TopicPartition] = set()
        self._todo: deque[_Barrier | tuple[Request, ...]] = deque()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="choreo-replay", daemon=True)

    # ---- the loop's side ----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """They are ours: what is requested of them begins when the log has been read up to now."""
        self._ready.difference_update(partitions)
        self._todo.append(_Barrier(tuple(partitions), -1))

    async def close(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            await self._loop.run_in_executor(None, self._thread.join, READ_S * 10)

    def _came(self, entries: Sequence[object]) -> None:
        for entry in entries:
            if isinstance(entry, Request):
                self._waiting[_Id(entry.run, entry.handler, entry.event_id)] = entry
            elif isinstance(entry, ReplayOutcome):
                self._waiting.pop(_Id(entry.run, entry.handler, entry.event_id), None)
        self._begin()

    def _caught_up(self, partitions: Sequence[TopicPartition]) -> None:
        self._ready.update(partitions)
        self._begin()

    def _begin(self) -> None:
        """Has the thread fetch the letters of every request that is ours and not under way."""
        mine = [
            (id_, request)
            for id_, request in self._waiting.items()
            if id_ not in self._running
            and (source := TopicPartition(request.origin.topic, request.origin.partition)) in self._ready
            and source in self._worker.engine.partitions
        ]
        if mine:
            for id_, request in mine:
                self._running[id_] = _Running(request, _NOTHING, 0)
            self._todo.append(tuple(request for _, request in mine))

    def _fetched(self, request: Request, state: LetterState | None, letter: Record | None, why: str) -> None:
        id_ = _Id(request.run, request.handler, request.event_id)
        running = self._running.get(id_)
        partition = self._worker.engine.partitions.get(TopicPartition(request.origin.topic, request.origin.partition))
        if running is None or partition is None:
            self._running.pop(id_, None)
            return
        if state is None or letter is None:
            self._finish(id_, "refused", why)
            return
        if state.state != "open" and not request.forced:
            self._finish(id_, "already-done", "")
            return
        running.state = state
        try:
            record = source_record(letter)
        except DecodeError as error:
            self._finish(id_, "refused", str(error))
            return
        deliveries = self._deliveries(record, request.handler, partition)
        if not deliveries:
            self._finish(id_, "refused", f"no handler {request.handler!r} takes it here; was it renamed? see Handler.aliases")
            return
        running.left = len(deliveries)
        replay = Replay(request.run, request.by, request.reason, request.forced)
        for delivery in deliveries:
            delivery.run = replay
            self._by_delivery[id(delivery)] = id_
            self._worker.counters.replayed += 1
            self._worker.replay(delivery)

    def _deliveries(self, record: Record, handler: str, partition: Partition) -> list[Delivery]:
        if handler == UNREADABLE:
            return self._worker.reader.read(record, partition) if record.topic in self._worker.reader.topics else []
        one = self._worker.reader.read_for(record, handler, partition)
        return [] if one is None else [one]

    def ended(self, delivery: Delivery, *, duplicate: bool, letter: LetterState | None) -> None:
        """A replayed delivery settled: by success, as a duplicate, or as a letter once more."""
        id_ = self._by_delivery.pop(id(delivery), None)
        running = None if id_ is None else self._running.get(id_)
        if id_ is None or running is None:
            return
        running.left -= 1
        running.attempts = max(running.attempts, delivery.attempts)
        if letter is not None:
            running.result, running.error = "failed-again", letter.message
            same = (letter.handler, letter.event_id) == (running.state.handler, running.state.event_id)
        else:
            same = False
            if not duplicate and running.result != "failed-again":
                running.result = "resolved"
        if running.left:
            return
        if running.result == "failed-again" and same:
            self._finish(id_, "failed-again", running.error)
            return
        resolved = msgspec.structs.replace(running.state, state="resolved", run=id_.run, attempts=running.attempts)
        self._worker.letters.write_state(resolved, lambda _: self._finish(id_, running.result, running.error))

    def _finish(self, id_: _Id, result: Result, error: str) -> None:
        running = self._running[id_]
        if failpoint.ACTIVE:
            failpoint.hit("after_replay_request")
        outcome = ReplayOutcome(
            run=id_.run,
            handler=id_.handler,
            event_id=id_.event_id,
            result=result,
            attempts=running.attempts,
            error=error[:1000],
            at=datetime.now(UTC),
        )
        _log.info("run %s: %s of %s: %s%s", id_.run, id_.event_id, id_.handler, result, f": {error}" if error else "")

        def written(problem: BrokerError | None, _: object) -> None:
            if failpoint.ACTIVE:
                failpoint.hit("after_replay_ack")
            if problem is not None:
                _log.error("the outcome of run %s for %s can't be written: %s", id_.run, id_.event_id, problem)
            self._running.pop(id_, None)
            self._waiting.pop(id_, None)

        self._worker.sends.send((replay_record(self._topic, outcome),), written)

    # ---- the thread's side --------------------------------------------------------------------------------------

    def _follow(self) -> None:
        while not self._stop.is_set():
            reader, letters = self._worker.broker.reader(), self._worker.broker.reader()
            try:
                self._read(reader, letters)
            except BrokerError as error:
                _log.warning("following %s: %s; trying again in %.0f s", self._topic, error, AGAIN_S)
                self._stop.wait(AGAIN_S)
            finally:
                reader.close()
                letters.close()

    def _read(self, reader: LogReader, letters: LogReader) -> None:
        log = TopicPartition(self._topic, 0)
        reader.assign({log: 0})
        barriers: list[_Barrier] = []
        while not self._stop.is_set():
            while self._todo:
                order = self._todo.popleft()
                if isinstance(order, _Barrier):
                    barriers.append(order._replace(position=reader.ends(self._topic)[log][1]))
                else:
                    self._fetch(letters, order)
            entries = []
            for record in reader.read(READ_S):
                try:
                    entries.append(read_replay(record))
                except DecodeError as error:
                    _log.warning("%s; left alone", error)
            if entries:
                self._tell(self._came, entries)
            if barriers:
                position = reader.position()[log]
                for barrier in [b for b in barriers if b.position <= position]:
                    barriers.remove(barrier)
                    self._tell(self._caught_up, barrier.partitions)

    def _fetch(self, reader: LogReader, requests: Sequence[Request]) -> None:
        """The state and the dlq record of each request, in order."""
        states = self._states(reader, {TopicPartition(r.origin.topic, r.origin.partition) for r in requests})
        for request in requests:
            state = states.get((request.handler, request.event_id))
            if state is None:
                self._tell(self._fetched, request, None, None, "no such letter: it has no state (an abandoned copy is never replayed)")
                continue
            letter = fetch(reader, state.dlq)
            self._tell(self._fetched, request, state, letter, f"its letter {state.dlq} is gone: Kafka's retention deleted it")

    def _states(self, reader: LogReader, sources: set[TopicPartition]) -> dict[tuple[str, str], LetterState]:
        ends = reader.ends(self._letters)
        wanted = {TopicPartition(self._letters, state_partition(source, len(ends))) for source in sources}
        return letter_states(read_partitions(reader, {p: e for p, e in ends.items() if p in wanted}))

    def _tell(self, call: object, *arguments: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *arguments)  # type: ignore[arg-type]
        except RuntimeError:
            self._stop.set()


def fetch(reader: LogReader, place: Place) -> Record | None:
    """The record at `place`; None when it is gone. Raises BrokerError."""
    partition = TopicPartition(place.topic, place.partition)
    first, end = reader.ends(place.topic)[partition]
    if not first <= place.offset < end:
        return None
    reader.assign({partition: place.offset})
    for _ in range(int(FETCH_S / 0.1)):
        for record in reader.read(0.1):
            if record.offset >= place.offset:
                return record if record.offset == place.offset else None
        if reader.position()[partition] > place.offset:
            return None
    raise BrokerError(f"reading {place} took longer than {FETCH_S:.0f} s", code="_TIMED_OUT")


_NOTHING = LetterState(
    state="open",
    kind="failed",
    handler="",
    event_id="",
    dlq=Place("", 0, 0),
    origin=Place("", 0, 0),
    first_failed_at=datetime.fromtimestamp(0, UTC),
    last_failed_at=datetime.fromtimestamp(0, UTC),
)
