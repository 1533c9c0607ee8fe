"""Which letters does an operator want to run again? Follows ``<service>.replay`` and runs what this member owns.

Every member reads the log from its beginning (no group); the member that owns a letter's source partition is the only
one that runs it, in the lane of its key, for the failing handler alone. A request is begun only when everything in the log
at the moment of the assignment has been read, so that a request another owner finished is not run again. Everything a
request has under way here belongs to one assignment (a `Partition` object): with it, it is forgotten, and the request waits
for whoever gets the partition next. One request for a letter is under way at a time: the next one sees what became of it.

This is the loop's side; the thread that reads is in replay_log.py.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from choreo import failpoint
from choreo.core.guard import SUSPECTS_FROM
from choreo.core.partition import LIVE, Delivery, Partition
from choreo.errors import BrokerError, DecodeError
from choreo.handler import Replay
from choreo.letter import (
    UNREADABLE,
    LetterState,
    ReplayOutcome,
    Request,
    Result,
    letters_topic,
    replay_record,
    replay_topic,
    source_of,
    source_record,
)
from choreo.record import Outgoing, Record, TopicPartition
from choreo.runtime.history import LetterKey
from choreo.runtime.replay_log import Barrier, Follower, Running, letter_of

if TYPE_CHECKING:
    from choreo.runtime.worker import Worker

_log = logging.getLogger("choreo.replay")

MAX_ERROR_CHARS = 1000


class _Asked(NamedTuple):
    """What an outcome says of its request. An event that stands on two source partitions may have died on both, so that two
    letters are called so; an outcome answers both."""

    handler: str
    event_id: str


class Replays:
    """Owner: the event loop. See `choreo.runtime.replay_log.Listener`."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        plan = worker.plan
        self._topic = plan.names(replay_topic(plan.service))
        self._waiting: dict[_Asked, dict[tuple[str, TopicPartition], Request]] = {}
        """By run and source; in the order of the log."""
        self._running: dict[LetterKey, Running] = {}
        self._by_delivery: dict[Delivery, Running] = {}
        self._ready: set[Partition] = set()
        self._follower = Follower(worker.broker, self._topic, plan.names(letters_topic(plan.service)), self)

    def start(self) -> None:
        self._follower.start()

    async def close(self) -> None:
        await self._follower.close()

    def failed(self, error: BaseException) -> None:
        """The follower can't go on, so the worker can't."""
        self._worker.failed(error)

    # ---- partitions -------------------------------------------------------------------------------------------------

    def assigned(self, partitions: Sequence[Partition]) -> None:
        """They are ours: what is requested of them begins when the log has been read up to now."""
        self._follower.orders.append(Barrier(partitions))

    def unfinished(self, partitions: Collection[Partition]) -> bool:
        """Whether something has run here, or was refused, whose state or outcome is not acknowledged yet."""
        return any(running.answering and running.partition in partitions for running in self._running.values())

    def forget(self, partitions: Collection[Partition]) -> None:
        """They are gone: nothing of theirs is written any more; its requests wait for the next owner."""
        self._ready.difference_update(partitions)
        for letter in [letter for letter, running in self._running.items() if running.partition in partitions]:
            del self._running[letter]
        for delivery in [delivery for delivery in self._by_delivery if delivery.partition in partitions]:
            del self._by_delivery[delivery]

    # ---- beginning ----------------------------------------------------------------------------------------------------

    def came(self, entries: Sequence[object]) -> None:
        """The log goes on with these."""
        names: dict[_Asked, None] = {}
        for entry in entries:
            if isinstance(entry, Request):
                names[name := _Asked(entry.handler, entry.event_id)] = None
                self._waiting.setdefault(name, {})[entry.run, source_of(entry)] = entry
            elif isinstance(entry, ReplayOutcome):
                names[_Asked(entry.handler, entry.event_id)] = None
                self._answered(entry)
        self._begin(names)

    def _answered(self, outcome: ReplayOutcome) -> None:
        name = _Asked(outcome.handler, outcome.event_id)
        asked = self._waiting.get(name, {})
        for run, source in [key for key in asked if key[0] == outcome.run]:
            del asked[run, source]
        if not asked:
            self._waiting.pop(name, None)

    def caught_up(self, partitions: Sequence[Partition]) -> None:
        """Everything that was in the log when these were assigned has come."""
        self._ready.update(partition for partition in partitions if partition.state is LIVE)
        self._begin(self._waiting)

    def _begin(self, names: Iterable[_Asked]) -> None:
        """Has the thread fetch the letters of these requests, as far as they are ours and no other is under way for the letter."""
        begun: deque[Running] = deque()
        for name in names:
            for request in self._waiting.get(name, {}).values():
                running = self._take(request)
                if running is not None:
                    begun.append(running)
        if begun:
            self._follower.orders.append(begun)

    def _take(self, request: Request) -> Running | None:
        letter, partition = letter_of(request), self._worker.engine.partitions.get(source_of(request))
        if partition is None or partition not in self._ready or partition.state is not LIVE or letter in self._running:
            return None
        running = self._running[letter] = Running(request, partition)
        return running

    def _is_under_way(self, running: Running) -> bool:
        # By identity: after a revoke the same request may be under way once more, in a new assignment.
        return self._running.get(letter_of(running.request)) is running

    def fetched(self, running: Running, state: LetterState | None, letter: Record | None, why: str) -> None:
        """The letter of a request and its state, or `why` there is none."""
        if not self._is_under_way(running) or running.partition.state is not LIVE:
            return
        request = running.request
        if state is None or letter is None:
            self._finish(running, "refused", why)
            return
        if state.state != "open" and not request.forced:
            self._finish(running, "already-done", "")
            return
        running.state = state
        try:
            record = source_record(letter)
        except DecodeError as error:
            self._finish(running, "refused", str(error))
            return
        deliveries = self._deliveries(record, request.handler, running.partition)
        if not deliveries:
            self._finish(running, "refused", f"no handler {request.handler!r} takes it here; was it renamed? see Handler.aliases")
            return
        if state.kind == "crash-loop":
            self._worker.run_beside(self._run_a_killer(running, deliveries))
        else:
            self._run(running, deliveries)

    async def _run_a_killer(self, running: Running, deliveries: Sequence[Delivery]) -> None:
        """It has ended processes: that one begins again is recorded first, and where two have ended in a row it doesn't."""
        partition = running.partition
        if partition.guard.ended_before >= SUSPECTS_FROM and not running.request.forced:
            why = (
                f"the process has ended {partition.guard.ended_before} times in a row, and this event has ended processes; mend the handler,"
                f" then replay when an event of {partition.id} has been handled, or with --force"
            )
            self._finish(running, "refused", why)
            return
        partition.begun = True
        if await self._worker.commits.recorded(partition) and self._is_under_way(running):
            self._run(running, deliveries)

    def _deliveries(self, record: Record, handler: str, partition: Partition) -> list[Delivery]:
        if handler == UNREADABLE:
            return self._worker.reader.read(record, partition) if record.topic in self._worker.reader.topics else []
        one = self._worker.reader.read_for(record, handler, partition)
        return [] if one is None else [one]

    def _run(self, running: Running, deliveries: Sequence[Delivery]) -> None:
        request = running.request
        running.left = len(deliveries)
        replay = Replay(request.run, request.by, request.reason, request.forced)
        for delivery in deliveries:
            delivery.run = replay
            self._by_delivery[delivery] = running
            self._worker.counters.replayed += 1
            self._worker.replay(delivery)

    # ---- ending -------------------------------------------------------------------------------------------------------

    def closing(self, delivery: Delivery) -> list[Outgoing]:
        """What is written in one transaction with the success of a delivery, where that is the last that its request waits for: the
        letter's state and the outcome."""
        running = self._by_delivery.get(delivery)
        if running is None or running.state is None or running.left != 1 or running.result == "failed-again":
            return []
        running.closed_by = delivery
        attempts = max(running.attempts, delivery.attempts)
        resolved = msgspec.structs.replace(running.state, state="resolved", run=running.request.run, attempts=attempts)
        return [self._worker.letters.resolved(resolved), replay_record(self._topic, _outcome(running, "resolved", attempts, ""))]

    def ended(self, delivery: Delivery, *, duplicate: bool, letter: LetterState | None) -> None:
        """A replayed delivery settled: by success, as a duplicate, or as a letter once more."""
        running = self._by_delivery.pop(delivery, None)
        if running is None or running.state is None:
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
            self._finish(running, "failed-again", running.error)
            return
        running.answering = True
        if running.closed_by is delivery and letter is None:
            _tell(running, running.result, "")
            self._written(running, None)
            return
        resolved = msgspec.structs.replace(running.state, state="resolved", run=running.request.run, attempts=running.attempts)
        self._worker.letters.write_state(resolved, running.partition, lambda _: self._finish(running, running.result, running.error))

    def _finish(self, running: Running, result: Result, error: str) -> None:
        if not self._is_under_way(running):
            return  # its partition is gone: the next owner answers
        if failpoint.ACTIVE:
            failpoint.hit("after_replay_request")
        running.answering = True
        outcome = _outcome(running, result, running.attempts, error)
        _tell(running, result, error)
        self._worker.sends.send((replay_record(self._topic, outcome),), lambda problem, _: self._written(running, problem))

    def _written(self, running: Running, problem: BrokerError | None) -> None:
        if failpoint.ACTIVE:
            failpoint.hit("after_replay_ack")
        request = running.request
        if problem is not None:
            _log.error("the outcome of run %s for %s can't be written: %s", request.run, request.event_id, problem)
        if not self._is_under_way(running):
            return  # the log will tell of it, and take the request away
        del self._running[letter_of(request)]
        name = _Asked(request.handler, request.event_id)
        asked = self._waiting.get(name, {})
        asked.pop((request.run, source_of(request)), None)
        if asked:
            self._begin((name,))
        else:
            self._waiting.pop(name, None)


def _outcome(running: Running, result: Result, attempts: int, error: str) -> ReplayOutcome:
    request = running.request
    return ReplayOutcome(
        run=request.run,
        handler=request.handler,
        event_id=request.event_id,
        result=result,
        attempts=attempts,
        error=error[:MAX_ERROR_CHARS],
        at=datetime.now(UTC),
    )


def _tell(running: Running, result: Result, error: str) -> None:
    request = running.request
    _log.info("run %s: %s of %s: %s%s", request.run, request.event_id, request.handler, result, f": {error}" if error else "")
