"""What do the replay log and the letters say? The thread that follows ``<service>.replay`` and fetches what is asked of it.

The loop's side is replays.py. They meet at `orders`, which the loop fills, and at the loop's own queue of calls.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any, NamedTuple, Protocol

import msgspec

from choreo.broker import Broker, LogReader
from choreo.core.partition import LIVE, Delivery, Partition
from choreo.errors import BrokerError, DecodeError
from choreo.letter import LetterState, Place, Request, Result, read_replay, source_of, state_partition
from choreo.record import Record, TopicPartition
from choreo.runtime.history import LetterKey, letter_states, read_partitions

_log = logging.getLogger("choreo.replay")

READ_S = 0.2
FETCH_S = 15.0
AGAIN_S = 5.0
CLOSE_S = 2.0


class Running(msgspec.Struct, eq=False):
    """One request under way: its letter's state, and what of it has not ended (a letter of handler ``*`` may be several).

    `state` None: the letter is being fetched. `answering`: it has ended, and what became of it is being written. `closed_by`: what became of
    it is in the transaction of this delivery.
    """

    request: Request
    partition: Partition
    state: LetterState | None = None
    left: int = 0
    attempts: int = 0
    result: Result = "already-done"
    error: str = ""
    answering: bool = False
    closed_by: Delivery | None = None


class Barrier(NamedTuple):
    """Everything up to `position` must be read before the requests of these partitions begin."""

    partitions: Sequence[Partition]
    position: int = -1


class Listener(Protocol):
    """The loop's side; each is called on the loop. What it raises goes to `failed`."""

    def came(self, entries: Sequence[object]) -> None:
        """The log goes on with these."""

    def caught_up(self, partitions: Sequence[Partition]) -> None:
        """Everything that was in the log when these were assigned has come."""

    def fetched(self, running: Running, state: LetterState | None, letter: Record | None, why: str) -> None:
        """The letter of a request and its state, or `why` there is none."""

    def failed(self, error: BaseException) -> None:
        """Following can't go on."""


class Follower:
    """Reads the log, and fetches letters. Owner: its thread; the loop appends to `orders` and calls `start` and `close`.

    After an error it goes on where it stood: an order stays in `orders` until it is carried out, a barrier in `_barriers`
    until it is reached, and no record of the log is told twice, for a request whose outcome was told must not be begun.
    """

    def __init__(self, broker: Broker, topic: str, letters: str, listener: Listener) -> None:
        self._broker = broker
        self._log = TopicPartition(topic, 0)
        self._letters = letters
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self.orders: deque[Barrier | deque[Running]] = deque()
        self._barriers: list[Barrier] = []
        self._position = 0
        """One past the last offset of the log that was told, or is not there any more."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="choreo-replay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    async def close(self) -> None:
        """Tells the thread to end, and waits a moment for it."""
        self._stop.set()
        if self._thread.ident is not None:
            # Not in an executor of the loop: handlers' own calls may have taken all of its threads.
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), CLOSE_S)

    def _follow(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    self._read()
                except BrokerError as error:
                    _log.warning("following %s: %s; trying again in %.0f s", self._log.topic, error, AGAIN_S)
                    self._stop.wait(AGAIN_S)
        except BaseException as error:  # noqa: BLE001 - the worker is told and stops; this thread has no caller
            self._tell(self._listener.failed, error)
        finally:
            self._tell(self._ended.set)

    def _read(self) -> None:
        with ExitStack() as stack:
            reader, letters = (stack.enter_context(closing(self._broker.reader())) for _ in range(2))
            reader.assign({self._log: self._position})
            while not self._stop.is_set():
                self._carry_out(reader, letters)
                entries = self._entries(reader.read(READ_S))
                if entries:
                    self._tell(self._listener.came, entries)
                self._reach_barriers(reader)

    def _entries(self, records: Iterable[Record]) -> list[object]:
        entries: list[object] = []
        for record in records:
            self._position = record.offset + 1
            try:
                entries.append(read_replay(record))
            except DecodeError as error:
                _log.warning("%s; left alone", error)
        return entries

    def _carry_out(self, reader: LogReader, letters: LogReader) -> None:
        while self.orders:
            order = self.orders[0]
            if isinstance(order, Barrier):
                first, end = reader.ends(self._log.topic)[self._log]
                self._position = max(self._position, first)
                self._barriers.append(order._replace(position=end))
            else:
                self._fetch(letters, order)
            self.orders.popleft()

    def _reach_barriers(self, reader: LogReader) -> None:
        if not self._barriers:
            return
        position = max(self._position, reader.position()[self._log])
        reached = [barrier for barrier in self._barriers if barrier.position <= position]
        self._barriers = [barrier for barrier in self._barriers if barrier.position > position]
        for barrier in reached:
            self._tell(self._listener.caught_up, barrier.partitions)

    def _fetch(self, reader: LogReader, wanted: deque[Running]) -> None:
        """Tells the state and the dlq record of each, in order; what was told is taken out of `wanted`."""
        states = self._states(reader, {running.partition.id for running in wanted})
        while wanted:
            running = wanted[0]
            if running.partition.state is LIVE:
                self._tell(self._listener.fetched, running, *_found(reader, states.get(letter_of(running.request))))
            wanted.popleft()

    def _states(self, reader: LogReader, sources: set[TopicPartition]) -> dict[LetterKey, LetterState]:
        ends = reader.ends(self._letters)
        wanted = {TopicPartition(self._letters, state_partition(source, len(ends))) for source in sources}
        return letter_states(read_partitions(reader, {p: e for p, e in ends.items() if p in wanted}))

    def _tell(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(self._hear, call, *arguments)
        except RuntimeError:
            # The loop is closed: the worker has ended and nobody is left to be told.
            self._stop.set()

    def _hear(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001 - a callback of the loop has no caller: whoever runs the worker is told
            self._listener.failed(error)


def letter_of(request: Request) -> LetterKey:
    return LetterKey(request.handler, request.event_id, source_of(request))


def _found(reader: LogReader, state: LetterState | None) -> tuple[LetterState | None, Record | None, str]:
    """The state, its letter, and why there is none."""
    if state is None:
        return None, None, "no such letter: it has no state (an abandoned copy is never replayed)"
    try:
        letter = fetch(reader, state.dlq)
    except BrokerError as error:
        if error.retriable:
            raise
        # Its topic is not there, or may not be read: this one is refused, the others behind it go on.
        return state, None, f"its letter {state.dlq} can't be read: {error}"
    return state, letter, f"its letter {state.dlq} is gone: Kafka's retention deleted it, or the topic was made anew"


def fetch(reader: LogReader, place: Place) -> Record | None:
    """The record at `place`; None when it is gone. Raises BrokerError."""
    partition = TopicPartition(place.topic, place.partition)
    first, end = reader.ends(place.topic).get(partition, (0, 0))
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
