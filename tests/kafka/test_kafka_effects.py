"""Effects `kafka`: do emits, letters, offsets and what is finished above them commit as one, and does the runtime come through trouble?"""

from __future__ import annotations

from typing import Any

import pytest

from choreo import Service
from tests.kafka.ground import Ground, Sent
from tests.kafka.shop import Paid, Pay, Placed, placed

pytestmark = pytest.mark.kafka


def service_of(ground: Ground, *handlers: Any, **settings: Any) -> Service:
    return ground.service(*handlers, effects="kafka", transactional_id=f"{ground.group}-a", **settings)


def pays(event: Placed, context: Any) -> Paid:
    return Paid(order_id=event.order_id)


async def test_each_event_has_its_child_once_and_all_are_committed(ground_of_each_protocol: Ground) -> None:
    ground = ground_of_each_protocol
    ground.make(orders=3, paid=2)
    ground.put("orders", *(Sent(placed(f"o-{n}"), key=f"o-{n % 20}".encode(), partition=n % 3) for n in range(600)))
    pay = Pay(pays)

    worker = await ground.run(service_of(ground, pay))

    assert len(pay.seen) == 600
    assert len(ground.records("paid")) == 600
    print(worker.counters)
