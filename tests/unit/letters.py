"""Letters, runs and their records, made up: for tests of what reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from choreo.letter import (
    Death,
    LetterState,
    Place,
    ReplayEntry,
    ReplayOutcome,
    Request,
    Result,
    Run,
    dead_letter,
    letter_state,
    replay_record,
    state_record,
)
from choreo.record import Outgoing, Record, TopicPartition
from choreo.replay.ledger import Ledger

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
STACK = 'Traceback (most recent call last):\n  File "/app/shop/gateway.py", line 41, in post\n    raise ReadTimeout\nReadTimeout: slow\n'
PLAIN = LetterState(
    state="open",
    kind="failed",
    handler="charge-card",
    event_id="e-1",
    event_type="order.placed",
    dlq=Place("shop.dlq", 0, 0),
    origin=Place("orders", 0, 0),
    key="by0x",
    error_type="ReadTimeout",
    message="orders[0]@0: slow",
    fingerprint="3fa9c01d",
    attempts=3,
    first_failed_at=NOON,
    last_failed_at=NOON,
    version="2.3.0",
)


def letter(event_id: str = "e-1", *, partition: int = 0, offset: int = 0, **others: object) -> LetterState:
    """A letter of the event at that place of `orders`; its record is at the same place of the dlq."""
    places = {"origin": Place("orders", partition, offset), "dlq": Place("shop.dlq", partition, offset)}
    return msgspec.structs.replace(PLAIN, **{"event_id": event_id, **places, **others})


def ledger(*letters: LetterState, held: int = 1_000) -> Ledger:
    """A ledger of these letters, whose dlq has `held` records in each of its partitions."""
    ends = {TopicPartition("shop.dlq", number): (0, held) for number in range(8)}
    return Ledger(service="shop", letters=letters, runs={}, dlq_ends=ends)


def request(run: str, state: LetterState) -> Request:
    """The request for one letter."""
    return Request(
        run=run,
        handler=state.handler,
        event_id=state.event_id,
        origin=state.origin,
        dlq=state.dlq,
        by="ana",
        reason="fixed",
        forced=False,
        at=NOON,
    )


def outcome(run: str, state: LetterState, result: Result = "resolved") -> ReplayOutcome:
    """What became of it."""
    return ReplayOutcome(run=run, handler=state.handler, event_id=state.event_id, result=result, attempts=1, at=NOON)


def begun(run: str, letters: int) -> Run:
    """The first record of a run."""
    return Run(run=run, by="ana", reason="fixed", forced=False, letters=letters, at=NOON)


def stored(outgoing: Outgoing, offset: int = 0, partition: int | None = None) -> Record:
    """The record as a reader gets it."""
    number = partition if partition is not None else outgoing.partition or 0
    return Record(outgoing.topic, number, offset, 0, outgoing.key, outgoing.value, outgoing.headers)


def states(*letters: LetterState) -> list[Record]:
    """Records of a ``.letters`` of one partition, in that order."""
    return [stored(state_record("shop.letters", state, 1), offset) for offset, state in enumerate(letters)]


def log(*entries: ReplayEntry) -> list[Record]:
    """Records of ``.replay``."""
    return [stored(replay_record("shop.replay", entry), offset) for offset, entry in enumerate(entries)]


def died(
    event_id: str, *, dlq_offset: int, offset: int = 0, key: bytes = b"o-1", value: bytes = b'{"payload": {}}'
) -> tuple[Outgoing, LetterState]:
    """A letter's record for the dlq and its state: `orders[0]@offset` died, and its record will stand at `shop.dlq[0]@dlq_offset`."""
    record = Record("orders", 0, offset, 1_000, key, value, [("choreo-id", event_id.encode()), ("choreo-source", b"orders/http")])
    death = Death(
        kind="failed",
        handler="charge-card",
        group="shop",
        event_id=event_id,
        event_type="order.placed",
        error_type="ReadTimeout",
        message=f"{record.origin}: slow",
        stack=STACK,
        fingerprint="3fa9c01d",
        attempts=3,
        first_failed_at=NOON,
        last_failed_at=NOON + timedelta(seconds=8),
        version="2.3.0",
        host="node-1",
    )
    state = letter_state(record, Place("shop.dlq", 0, dlq_offset), death, state="open", run="")
    return dead_letter("shop.dlq", record, death), state


def changed(state: LetterState, /, **changes: object) -> LetterState:
    """The state with these fields in place of its own, places as mappings."""
    return msgspec.convert({**msgspec.to_builtins(state), **changes}, LetterState)
