"""A member of the service `payments` as production runs it: `Service.run()`, settings from CHOREO_* variables.

Its handlers' Conduct is in the environment. Says READY once partitions are assigned, at its end COUNTS and its counters.
Also a module for ``choreo run tests.chaos.worker_main:payments``.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Generic, TypeVar

import psycopg

from choreo import (
    ChoreoError,
    ConfigurationError,
    Context,
    Envelope,
    Event,
    Handler,
    PermanentError,
    PostgresStore,
    RetryPolicy,
    Service,
    ServiceSettings,
    SqliteStore,
    TransientError,
)
from choreo.runtime.worker import Worker
from choreo.service import Started
from choreo.store import Store
from choreo.telemetry.logs import StepFormatter
from tests.chaos.attempts import AttemptsFile
from tests.chaos.conduct import CANT_GO_ON, CHILD_TYPE, CUT_SHORT, DONE, HANDLER, REFUSED, SERVICE, Conduct
from tests.chaos.forked import KeptPublisher, try_in_a_child
from tests.support.databases import INTO_POSTGRES, INTO_SQLITE, effect
from tests.support.effects import EffectsLedger
from tests.support.process import READY
from tests.support.producer import EVENT_TYPE

T = TypeVar("T")
LOOK_AGAIN_S = 0.01
# Variables of the test run that choreo would take for misspelt settings.
NOT_SETTINGS = ("CHOREO_SEED", "CHOREO_FULL", "CHOREO_KAFKA_PORT")


class Booked(Event, type=EVENT_TYPE, topic="orders", key="key"):
    key: str
    amount: int


class Noted(Event, type=CHILD_TYPE, topic="notes", key="key"):
    key: str
    amount: int


class _Booking:
    """What both handlers do: write down the call, hold, work, die, have the effect, emit."""

    def __init__(self, conduct: Conduct, kept: KeptPublisher) -> None:
        self.conduct = conduct
        self._kept = kept
        self._ledger = None if conduct.ledger is None else EffectsLedger(Path(conduct.ledger))
        self._attempts = AttemptsFile(Path(conduct.attempts))
        self._has_locked = False

    def call(self, context: Context[Any]) -> AbstractContextManager[None]:
        return nullcontext() if self._ledger is None or not self.conduct.calls else self._ledger.call(HANDLER, context.event_id)

    def end_the_process(self, context: Context[Any]) -> None:
        if context.event_id in self.conduct.ending:
            if self.conduct.ended_by == "abort":
                os.abort()
            os.kill(os.getpid(), signal.SIGKILL)

    def before(self, event: Booked, context: Context[Any]) -> None:
        self.end_the_process(context)
        while self.must_wait(event):
            time.sleep(LOOK_AGAIN_S)
        if self.conduct.work_s:
            time.sleep(self.conduct.work_s)

    async def wait(self, event: Booked, context: Context[Any]) -> None:
        self.end_the_process(context)
        while self.must_wait(event):
            try:
                await asyncio.sleep(LOOK_AGAIN_S)
            except asyncio.CancelledError:
                if event.key not in self.conduct.stubborn:
                    raise
        if self.conduct.work_s:
            await asyncio.sleep(self.conduct.work_s)

    def must_wait(self, event: Booked) -> bool:
        return event.key in (*self.conduct.held, *self.conduct.stubborn) and not Path(self.conduct.gate).exists()

    def effect(self, event: Booked, context: Context[Any]) -> Noted | None:
        if event.key in self.conduct.killing and not Path(self.conduct.killed).exists():
            Path(self.conduct.killed).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if event.key in self.conduct.locking and not self._has_locked:
            self._has_locked = True
            ctypes.PyDLL(None).usleep(int(self.conduct.locked_s * 1e6))  # a PyDLL's calls keep the lock
        if event.key in self.conduct.failing:
            raise PermanentError(f"{event.key} is to fail")
        if event.key in self.conduct.shaky:
            raise TransientError(f"{event.key} is to fail this time", retry_after_s=self.conduct.again_s)
        if event.key in self.conduct.forking:
            print("FORKED", json.dumps(try_in_a_child(self._kept, Noted(key=event.key, amount=event.amount))), flush=True)
        if self._ledger is not None:
            self._attempts.record(context.event_id, context.attempt)
        if self._ledger is not None and not self.conduct.transaction:
            self._ledger.record(HANDLER, context.event_id, event.key, event.amount)
        return Noted(key=event.key, amount=event.amount) if self.conduct.emits else None


class Books(Handler[Booked, T], Generic[T]):
    """What all of them have in common: how often they try, and for how long."""

    timeout_s = 600.0

    def __init__(self, booking: _Booking) -> None:
        self._booking = booking
        self.retry = RetryPolicy(max_attempts=booking.conduct.max_attempts, base_delay_s=0.05)


class Book(Books[None]):
    name = HANDLER

    async def handle(self, event: Envelope[Booked], context: Context) -> Noted | None:
        booked, booking = event.payload, self._booking
        with booking.call(context):
            await booking.wait(booked, context)
            return booking.effect(booked, context)


class BookOnThread(Books[None]):
    name = HANDLER

    def handle(self, event: Envelope[Booked], context: Context) -> Noted | None:
        booked, booking = event.payload, self._booking
        with booking.call(context):
            booking.before(booked, context)
            return booking.effect(booked, context)


class BookInSqlite(Books[sqlite3.Connection]):
    name = HANDLER

    def handle(self, event: Envelope[Booked], context: Context[sqlite3.Connection]) -> Noted | None:
        with self._booking.call(context):
            self._booking.before(event.payload, context)
            context.transaction.execute(INTO_SQLITE, effect(HANDLER, context.event_id, event.payload.key, event.payload.amount))
            return self._booking.effect(event.payload, context)


class BookInPostgresPlainly(Books[psycopg.Connection]):
    name = HANDLER

    def handle(self, event: Envelope[Booked], context: Context[psycopg.Connection]) -> Noted | None:
        with self._booking.call(context):
            self._booking.before(event.payload, context)
            context.transaction.execute(INTO_POSTGRES, effect(HANDLER, context.event_id, event.payload.key, event.payload.amount))
            return self._booking.effect(event.payload, context)


class BookInPostgres(Books[psycopg.AsyncConnection]):
    name = HANDLER

    async def handle(self, event: Envelope[Booked], context: Context[psycopg.AsyncConnection]) -> Noted | None:
        with self._booking.call(context):
            await self._booking.wait(event.payload, context)
            await context.transaction.execute(INTO_POSTGRES, effect(HANDLER, context.event_id, event.payload.key, event.payload.amount))
            return self._booking.effect(event.payload, context)


def _handler(booking: _Booking) -> Handler[Booked, Any]:
    match booking.conduct.transaction:
        case "sqlite3":
            return BookInSqlite(booking)
        case "psycopg":
            return BookInPostgresPlainly(booking)
        case "psycopg-async":
            return BookInPostgres(booking)
        case _:
            return BookOnThread(booking) if booking.conduct.on_thread else Book(booking)


def _store(address: str | None) -> Store | None:
    if address is None:
        return None
    return PostgresStore(address) if address.startswith("postgresql:") else SqliteStore(address)


def payments() -> Service:
    conduct = Conduct.of_this_process()
    kept = KeptPublisher()
    booking = _Booking(conduct, kept)
    service = Service(
        SERVICE,
        handlers=[_handler(booking)],
        publishes=[Noted],
        store=_store(conduct.store),
        resources=[kept] if conduct.forking else [],
        settings=ServiceSettings(effects=None if conduct.store is not None else "kafka" if conduct.atomic else "offsets"),
    )
    kept.service = service
    return service


async def run(service: Service) -> int:
    """Its exit code."""
    workers: list[Worker] = []
    watching: list[asyncio.Task[None]] = []

    def started(what: Started) -> None:
        workers.append(what.worker)
        watching.append(asyncio.get_running_loop().create_task(say_when_assigned(what.worker)))

    try:
        clean = await service.run(started=started)
    except ConfigurationError as error:
        print(f"choreo: {error}", flush=True)
        return REFUSED
    except ChoreoError as error:
        print(f"choreo: {error}", flush=True)
        return CANT_GO_ON
    finally:
        for task in watching:
            task.cancel()
        for worker in workers:
            print("COUNTS", json.dumps(worker.counters.as_dict()), flush=True)
    return DONE if clean else CUT_SHORT


async def say_when_assigned(worker: Worker) -> None:
    while not worker.engine.partitions:
        await asyncio.sleep(LOOK_AGAIN_S)
    print(READY, flush=True)


async def run_and_exit(service: Service) -> None:
    # As `choreo run` does: what won't end (a handler that ignores its cancellation) must not hold the process.
    code = await run(service)
    sys.stdout.flush()
    if code != DONE:
        os._exit(code)


def main() -> None:
    for variable in NOT_SETTINGS:
        os.environ.pop(variable, None)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(StepFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    asyncio.run(run_and_exit(payments()))


if __name__ == "__main__":
    main()
