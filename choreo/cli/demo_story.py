"""What happens in the demo, chapter by chapter, and is its end as it should be?"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import typer

from choreo.cli import demo_screen, dlq, replay, screen
from choreo.cli.demo_shop import Shop, opened
from choreo.flows.render import render
from choreo.flows.search import Bounds, find_flow
from choreo.flows.tree import Flow, Letter, build
from choreo.letter import UNREADABLE
from choreo.record import Outgoing
from choreo.replay.ledger import read_ledger
from choreo.replay.report import report
from services_example.scenario import Faults, Plan, mend_gateway, place, plan, read_books, unfinished, verdict

REST_S = 120.0
LOOK_S = 0.1
REPLAY_S = 15.0
PAYMENTS = "payments"
CHARGE = "charge-card"


class Story:
    """One telling, with its files in `folder`. Owner: the event loop; `_wrong` collects what is not as it should be."""

    def __init__(self, folder: Path, bootstrap: str, prefix: str, orders: int) -> None:
        self._folder = folder
        self._bootstrap = bootstrap
        self._prefix = prefix
        self._plan = first_orders(plan(), orders)
        self._wrong: list[str] = []
        self._chapters = 0

    async def tell(self) -> list[str]:
        """Tells it; what is wrong with its end. Raises ChoreoError."""
        async with opened(self._folder) as shop:
            demo_screen.head(await asyncio.to_thread(shop.broker.cluster().describe), self._plan)
            await self._place_orders(shop)
            if self._plan.faults.gateway_bug:
                await self._look_at_letters()
                await self._replay(shop)
                await self._trace(shop)
            letters = await asyncio.to_thread(open_letters, shop)
            counters = shop.counters()
            self._wrong += unexpected(letters, shop, self._plan)
        # The services have come to their end: nothing changes any more.
        books = read_books(self._folder)
        self._wrong += verdict(self._plan.orders, books)
        self._chapter("Is all well?")
        demo_screen.summary(self._plan, books, letters, counters, self._wrong)
        if self._prefix:
            demo_screen.left_behind(self._bootstrap, self._prefix)
        return self._wrong

    def _chapter(self, title: str) -> None:
        self._chapters += 1
        demo_screen.chapter(self._chapters, title)

    async def _place_orders(self, shop: Shop) -> None:
        self._chapter(f"{len(self._plan.orders)} orders are placed, and trouble begins")
        began_s = time.monotonic()
        placing = asyncio.create_task(self._publish(shop))
        try:
            await self._rest(shop, placing)
        finally:
            placing.cancel()
        books = await shop.books()
        waiting = unfinished(self._plan.orders, books)
        demo_screen.placed(self._plan, waiting, shop.counters(), time.monotonic() - began_s)

    async def _publish(self, shop: Shop) -> None:
        for fault in self._plan.faults.undecodable:
            await shop.write(Outgoing(shop.names(fault.topic), fault.key, fault.value))
        await place(shop.orders, self._plan)

    async def _look_at_letters(self) -> None:
        self._chapter("What is in the way?")
        await command(f"choreo dlq report {PAYMENTS}", lambda: dlq.report_command(PAYMENTS))

    async def _replay(self, shop: Shop) -> None:
        """The letters of the gateway's bug run again, by the very command that the report names."""
        self._chapter("The gateway's people mend their bug. The dead charges run again, each once")
        mend_gateway(self._folder)
        letters = [letter.state for letter in await asyncio.to_thread(open_letters, shop) if letter.state.handler == CHARGE]
        groups = report(letters, datetime.now(UTC)).groups
        if not groups:
            self._wrong.append(f"{PAYMENTS} has no dead letter of {CHARGE}, and {len(self._plan.faults.gateway_bug)} were planned")
        for group in groups:
            code = await command(
                f'choreo replay {PAYMENTS} --group {group.name} --reason "the gateway is mended" --yes',
                lambda name=group.name: replay.replay(  # type: ignore[misc]
                    PAYMENTS, group=name, reason="the gateway is mended", yes=True, timeout_s=REPLAY_S
                ),
            )
            if code:
                self._wrong.append(f"the replay of group {group.name} ended with exit code {code}")
        await self._rest(shop, None)

    async def _trace(self, shop: Shop) -> None:
        """One order that died and was replayed, from its first event to its last."""
        books = await shop.books()
        cancelled = {order.order_id for order in books.orders if order.status == "cancelled"}
        bug = self._plan.faults.gateway_bug
        order_id = next((one for one in bug if one not in cancelled), bug[0])
        event_id = next(event_id for order, event_id in self._plan.publications() if order.order_id == order_id)
        self._chapter(f"Order {order_id}, from its first event to its last")
        flow, read = await asyncio.to_thread(find, shop, event_id)
        lines = render(flow, now=datetime.now(UTC), width=min(120, screen.out().width))
        demo_screen.tree(lines, event_id, read, len(shop.event_topics()))

    async def _rest(self, shop: Shop, placing: asyncio.Task[None] | None) -> None:
        """Until all events have been handled by everybody, REST_S at most."""
        deadline = time.monotonic() + REST_S
        with demo_screen.progress(len(self._plan.orders)) as shown:
            while True:
                if placing is None or placing.done():
                    if placing is not None:
                        placing.result()
                    going_on = await shop.going_on()
                    if not going_on:
                        return
                else:
                    going_on = "orders are being placed"
                    await shop.going_on()  # raises when a worker has stopped
                if time.monotonic() > deadline:
                    self._wrong.append(f"not at rest after {REST_S:.0f} s: {going_on}")
                    return
                left = unfinished(self._plan.orders, await shop.books())
                shown(len(self._plan.orders) - len(left), shop.counters())
                await asyncio.sleep(LOOK_S)


# ---- what the story needs to know -----------------------------------------------------------------------------------


def first_orders(story: Plan, count: int) -> Plan:
    """The plan with its first `count` orders, and the faults among them."""
    orders = story.orders[:count]
    ids = {order.order_id for order in orders}
    faults = story.faults

    def among(planned: Sequence[str]) -> tuple[str, ...]:
        return tuple(order_id for order_id in planned if order_id in ids)

    return Plan(
        orders,
        Faults(
            answer_lost=among(faults.answer_lost),
            gateway_bug=among(faults.gateway_bug),
            over_limit=among(faults.over_limit),
            scarce=among(faults.scarce),
            published_twice=among(faults.published_twice),
            undecodable=faults.undecodable,
        ),
    )


def open_letters(shop: Shop) -> list[Letter]:
    """Every open letter of every service. Blocks."""
    names = [one.service.name for one in shop.running]
    return [Letter(name, state) for name in names for state in read_ledger(shop.broker, name, shop.names).open()]


def unexpected(letters: Sequence[Letter], shop: Shop, story: Plan) -> list[str]:
    """Open letters that should not be, and those that should and are not: one in each service that reads its topic for each
    record that is no event, for no replay mends bytes."""
    found = sorted((service, state.handler, state.key_text() or "") for service, state in letters)
    planned = sorted(
        (one.service.name, UNREADABLE, fault.key.decode())
        for fault in story.faults.undecodable
        for one in shop.running
        if fault.topic in one.service.consumed_topics()
    )
    wrong = [
        f"{service}: the letter of {key} in {handler} is open" for service, handler, key in found if (service, handler, key) not in planned
    ]
    wrong += [
        f"{service}: {key} can't be read, and has no letter" for service, handler, key in planned if (service, handler, key) not in found
    ]
    return wrong + ([f"{len(found)} letters are open, expected {len(planned)}"] if not wrong and len(found) != len(planned) else [])


def find(shop: Shop, flow_id: str) -> tuple[Flow, int]:
    """The flow as Kafka and the services' claims know it, and how many records were read for it. Blocks."""
    reader = shop.broker.reader()
    try:
        evidence, found = find_flow(reader, flow_id, shop.event_topics(), shop.service_topics(), Bounds())
    finally:
        reader.close()
    return build(replace(evidence, handled=shop.handled(build(evidence).events))), found.read


async def command(words: str, run: Callable[[], None]) -> int:
    """Shows the words and runs what they mean, as the command line does; its exit code."""
    demo_screen.prompt(words)
    try:
        await asyncio.to_thread(run)
    except typer.Exit as ended:
        return ended.exit_code
    return 0
