"""Effects `kafka`, whatever happens: members come and go, are lost and killed, transactions are aborted, held, or end nobody knows how.

In the end each event has one child, or one open letter; the children of a key are in its order; everything is committed. The seed is
printed; CHOREO_SEED repeats a run's choices (not the threads' timing).
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from contextlib import AsyncExitStack

import pytest

from choreo.core.retry import RetryPolicy
from choreo.envelope import CAUSATION_ID, Envelope, header_text
from choreo.errors import PermanentError, TransientError
from choreo.handler import Context, Handler
from choreo.runtime import atomic, intake
from choreo.runtime.worker import Worker
from choreo.testing import MemoryBroker
from tests.chaos.scene import full, seed_of_run
from tests.runtime.shop import SHOP, Paid, Placed, place, shop_broker
from tests.runtime.test_kafka_effects import shop, states

RUNS = 60 if full() else 6
STEPS = 40
KEYS = 5
PARTITIONS = 3
END_S = 20.0


class Random(Handler[Placed]):
    """Pays, fails now and then, and for good where its event says so."""

    retry = RetryPolicy(max_attempts=20, base_delay_s=0.0)

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid:
        if self._chance.random() < 0.3:
            await asyncio.sleep(self._chance.random() * 0.01)
        if context.event_id.startswith("bad"):
            raise PermanentError("no")
        if self._chance.random() < 0.1:
            raise TransientError("not this time")
        return Paid(order_id=event.payload.order_id)


class World:
    """The broker, up to three members, and what was placed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.broker: MemoryBroker = shop_broker(partitions=PARTITIONS)
        self.members: dict[str, tuple[AsyncExitStack, Worker]] = {}
        self.placed: list[tuple[str, str]] = []
        self.highest: Counter[object] = Counter()

    async def start(self, name: str) -> None:
        if name in self.members:
            return
        stack = AsyncExitStack()
        service = shop(self.broker, Random(self.chance), transactional_id=f"shop-{name}", drain_s=0.3)
        self.members[name] = (stack, await stack.enter_async_context(service.worker()))

    async def stop(self, name: str) -> None:
        if name in self.members:
            stack, _ = self.members.pop(name)
            await stack.aclose()

    async def step(self) -> None:
        chance, broker = self.chance, self.broker
        match chance.choice(["place"] * 5 + ["start", "stop", "kill", "lose", "abort", "unknown", "hold", "release", "fence", "pause"]):
            case "place":
                for _ in range(chance.randint(1, 12)):
                    number = len(self.placed)
                    event_id = f"{'bad' if chance.random() < 0.1 else 'e'}{number}"
                    key = f"k{chance.randrange(KEYS)}"
                    self.placed.append((event_id, key))
                    place(broker, event_id, key=key)
            case "start":
                await self.start(chance.choice("abc"))
            case "stop" if self.members:
                broker.release_transactions()
                await self.stop(chance.choice(sorted(self.members)))
            case "kill" | "lose" as what if self.members:
                consumers = broker.consumers(SHOP)
                if consumers:
                    (broker.kill if what == "kill" else broker.lose)(chance.choice(consumers))
                if what == "kill":
                    broker.release_transactions()
            case "abort":
                broker.fail_transactions(chance.choice(["NOT_ENOUGH_REPLICAS", "ILLEGAL_GENERATION"]), times=chance.randint(1, 3))
            case "fence":
                broker.fail_transactions("_TIMED_OUT", retriable=True)
            case "unknown":
                broker.fail_transactions("_TIMED_OUT", outcome="unknown", committed=chance.random() < 0.5)
            case "hold":
                broker.hold_transactions()
            case "release":
                broker.release_transactions()
            case _:
                pass
        self.look()
        await asyncio.sleep(chance.random() * 0.03)

    def look(self) -> None:
        """No committed offset goes back."""
        for where, offset in self.broker.committed(SHOP).items():
            assert offset >= self.highest[where], f"{where} went back from {self.highest[where]} to {offset}"
            self.highest[where] = offset

    async def end(self) -> None:
        """All is mended; one member is enough."""
        self.broker.heal()
        for name in list(self.members):
            await self.stop(name)
        await self.start("end")
        until_s = asyncio.get_running_loop().time() + END_S
        while sum(self.broker.committed(SHOP).values()) < len(self.placed):
            _, worker = self.members["end"]
            if worker.failure.done():
                worker.failure.result()
            assert asyncio.get_running_loop().time() < until_s, f"stuck: {self.broker.committed(SHOP)} of {len(self.placed)}"
            self.look()
            await asyncio.sleep(0.005)
        await self.stop("end")

    def check(self) -> None:
        of_key: dict[bytes | None, list[str]] = defaultdict(list)
        for record in self.broker.records("answers"):
            of_key[record.key].append(header_text(dict(record.headers)[CAUSATION_ID]) or "")
        children = Counter(event_id for ids in of_key.values() for event_id in ids)
        good = [event_id for event_id, _ in self.placed if not event_id.startswith("bad")]
        assert children == Counter(good), {
            "lost": [one for one in good if not children[one]],
            "doubled": [one for one, times in children.items() if times > 1],
        }
        opened = Counter(state.event_id for state in states(self.broker) if state.state == "open")
        assert opened == Counter(event_id for event_id, _ in self.placed if event_id.startswith("bad"))
        in_order = defaultdict(list)
        for event_id, key in self.placed:
            if not event_id.startswith("bad"):
                in_order[key].append(event_id)
        for key, ids in in_order.items():
            found = [event_id for every in of_key.values() for event_id in every if event_id in set(ids)]
            assert found == ids, f"{key}: {found} instead of {ids}"


@pytest.mark.timeout(60 * RUNS)
async def test_each_event_has_its_child_or_its_letter_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "AGAIN_FIRST_S", 0.01)
    monkeypatch.setattr(atomic, "AGAIN_MOST_S", 0.05)
    monkeypatch.setattr(intake, "REBUILD_MOST_S", 0.02)
    seed = seed_of_run()
    for number in range(RUNS):
        world = World(seed + number)
        print(f"run {number}: seed {seed + number}")
        await world.start("a")
        for _ in range(STEPS):
            await world.step()
        await world.end()
        world.check()
