"""Does the order of a key hold while its events fail at random?"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict

import pytest

from choreo import Context, Envelope, Handler, MemoryStore, RetryPolicy, SqliteStore
from choreo.store import Store
from tests.kafka.ground import BOTH_EFFECTS, Ground, Sent
from tests.kafka.shop import Paid, Placed, placed

pytestmark = [pytest.mark.kafka, BOTH_EFFECTS]

EVENTS = 2000
KEYS = 50
SEED = 7


class Ledger(Handler[Placed]):
    """Fails at random before its effect, at times after it; yields at random. Some events never succeed."""

    retry = RetryPolicy(max_attempts=3, base_delay_s=0.01, multiplier=2)

    def __init__(self) -> None:
        self.effects: dict[str, list[int]] = defaultdict(list)
        self.begun: dict[str, list[int]] = defaultdict(list)
        self.running: set[str] = set()
        self.overlaps = 0
        self._chance = random.Random(SEED)

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid | None:
        key, number = event.payload.order_id, event.payload.total_cents
        self.overlaps += key in self.running
        self.running.add(key)
        try:
            self.begun[key].append(number)
            if self._chance.random() < 0.3:
                await asyncio.sleep(self._chance.random() / 200)
            if number % 97 == 0 or self._chance.random() < 0.15:
                raise ValueError("by chance")
            self.effects[key].append(number)
            return Paid(order_id=key, note=str(number))
        finally:
            self.running.discard(key)


@pytest.mark.parametrize("claims", [False, True], ids=["offsets", "claims"])
async def test_two_thousand_events_of_fifty_keys_run_one_at_a_time_and_in_order_through_random_failures(
    ground: Ground, claims: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    ground.make(orders=4, paid=2)
    chance = random.Random(SEED)
    keys = [f"k-{chance.randrange(KEYS)}" for _ in range(EVENTS)]
    partition = {key: int(key.removeprefix("k-")) % 4 for key in keys}
    ground.put("orders", *(Sent(placed(key, number), key.encode(), partition=partition[key]) for number, key in enumerate(keys)))
    ledger = Ledger()
    store: Store | None = SqliteStore(tmp_path_factory.mktemp("claims") / "claims.db") if claims else None

    worker = await ground.run(ground.service(ledger, store=store))

    by_key = {key: [number for number, other in enumerate(keys) if other == key] for key in keys}
    assert {key: list(dict.fromkeys(numbers)) for key, numbers in ledger.begun.items()} == by_key
    assert [key for key, numbers in ledger.begun.items() if numbers != sorted(numbers)] == []
    assert [key for key, numbers in ledger.effects.items() if len(numbers) != len(set(numbers))] == []
    dead = [int(state.origin.offset) for state in ground.states()]
    assert sum(map(len, ledger.effects.values())) + len(dead) == EVENTS
    assert (ledger.overlaps, worker.counters.handled, worker.counters.dead_lettered) == (0, EVENTS - len(dead), len(dead))
    assert worker.counters.retried > 200
    emitted: dict[str, list[int]] = defaultdict(list)
    for record in ground.records("paid"):
        emitted[(record.key or b"").decode()].append(int((record.value or b"").rpartition(b'"note":"')[2].partition(b'"')[0]))
    assert emitted == ledger.effects


async def test_the_order_of_a_key_holds_across_a_restart_in_the_middle(ground: Ground) -> None:
    ground.make(orders=2, paid=1)
    chance = random.Random(SEED + 1)
    keys = [f"k-{chance.randrange(10)}" for _ in range(1000)]
    ground.put("orders", *(Sent(placed(key, number), key.encode(), partition=int(key[2:]) % 2) for number, key in enumerate(keys)))
    ledger, store = Ledger(), MemoryStore()

    async with ground.service(ledger, store=store, drain_s=5).worker() as worker:
        while worker.counters.handled < 200:
            await asyncio.sleep(0.005)
    first_life = {key: list(numbers) for key, numbers in ledger.effects.items()}
    await ground.run(ground.service(ledger, store=MemoryStore(shared_with=store)))

    assert 200 <= sum(map(len, first_life.values())) < 1000
    assert [key for key, numbers in ledger.effects.items() if numbers != sorted(set(numbers))] == []
    assert sum(map(len, ledger.effects.values())) + len(ground.states()) == 1000
