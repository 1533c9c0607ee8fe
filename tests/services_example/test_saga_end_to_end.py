"""The demo's story on the memory broker: four services, 200 orders, every planned fault, the gateway's fix, the replay."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from choreo import Service
from choreo.letter import LetterState, Request, read_state, replay_record
from choreo.record import Outgoing
from choreo.testing import MemoryBroker
from services_example.orders.book import Status
from services_example.orders.service import orders
from services_example.payments.service import payments
from services_example.scenario import mend_gateway, place, plan, read_books, verdict
from services_example.shipping.service import shipping
from services_example.stock.service import stock

DEADLINE_S = 60.0


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def shop(broker: MemoryBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Service]:
    """The four services on one broker; their claims are in the test's folder too."""
    monkeypatch.chdir(tmp_path)
    services = [make(tmp_path) for make in (orders, payments, stock, shipping)]
    for topic in ("orders", "payments", "stock", "shipping"):
        broker.create_topic(topic, partitions=6)
    for service in services:
        service.settings = replace(service.settings, broker=broker)
        for topic in service.own_topics():
            broker.create_topic(topic)
    return services


async def test_two_hundred_orders_end_once_in_spite_of_all_planned_faults(
    shop: list[Service], broker: MemoryBroker, tmp_path: Path
) -> None:
    story = plan()
    async with AsyncExitStack() as running:
        for service in shop:
            await running.enter_async_context(service.running())

        await place(shop[0], story)
        for fault in story.faults.undecodable:
            broker.write(Outgoing(fault.topic, fault.key, fault.value))
        await until(lambda: len(letters(broker, "payments", "charge-card")) == len(story.faults.gateway_bug))
        mend_gateway(tmp_path)
        for letter in letters(broker, "payments", "charge-card"):
            broker.write(replay_record("payments.replay", asked(letter)))
        await until(lambda: verdict(story.orders, read_books(tmp_path)) == [])
        await until(lambda: letters(broker, "payments", "charge-card") == [])
        await until(lambda: all(len(letters(broker, service, "*")) == 1 for service in ("orders", "payments", "stock")))

    ends = Counter(order.status for order in read_books(tmp_path).orders)
    assert ends == {Status.SHIPPED: 180, Status.CANCELLED: 20}


def letters(broker: MemoryBroker, service: str, handler: str) -> list[LetterState]:
    """The open letters of a handler."""
    states: dict[bytes | None, LetterState] = {}
    for record in broker.records(f"{service}.letters"):
        state = read_state(record) if record.value is not None else None
        if isinstance(state, LetterState) and state.handler == handler:
            states[record.key] = state
    return [state for state in states.values() if state.state == "open"]


def asked(letter: LetterState) -> Request:
    return Request(
        run="run-1",
        handler=letter.handler,
        event_id=letter.event_id,
        origin=letter.origin,
        dlq=letter.dlq,
        by="the test",
        reason="the gateway is mended",
        forced=False,
        at=datetime.now(UTC),
    )


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition, at most DEADLINE_S."""
    ends_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends_at, f"not within {DEADLINE_S:g} s"
        await asyncio.sleep(0.1)
