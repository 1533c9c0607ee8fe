"""What becomes of a letter that an operator asks to run again?"""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from choreo import Context, Envelope, Event, Handler, MemoryStore
from choreo.envelope import child_id
from choreo.letter import ReplayOutcome, Request, state_record
from tests.kafka.ground import BOTH_EFFECTS, Ground, Sent
from tests.kafka.shop import Book, Paid, Pay, Placed, envelope, placed

pytestmark = [pytest.mark.kafka, BOTH_EFFECTS]

HEADERS = [("choreo-id", b"e-1"), ("choreo-correlation-id", b"flow-1")]


class OrderPainted(Event, type="order.painted", topic="orders", key="order_id"):
    order_id: str


class Painted(Handler[OrderPainted]):
    async def handle(self, event: Envelope[OrderPainted], context: Context) -> None: ...


class Repaired:
    """What a handler does that fails until it is repaired."""

    def __init__(self) -> None:
        self.done = False

    def __call__(self, placed: Placed, context: Context) -> Paid:
        if not self.done:
            raise ValueError("not yet")
        return Paid(order_id=placed.order_id)


def said(outcomes: list[ReplayOutcome]) -> list[tuple[str, str, int]]:
    return [(outcome.handler, outcome.result, outcome.attempts) for outcome in outcomes]


async def test_a_letter_whose_handler_was_repaired_is_resolved_once_and_its_children_are_those_of_its_event(ground: Ground) -> None:
    ground.make(orders=2, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS, partition=1))
    repaired = Repaired()
    pay, bystander, store = Pay(repaired), Book(), MemoryStore()
    await ground.run(ground.service(pay, bystander, store=store))

    repaired.done = True
    async with ground.service(pay, bystander, store=MemoryStore(shared_with=store)).worker() as worker:
        outcomes = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert said(outcomes) == [("pay", "resolved", 1)]
    assert [state.state for state in ground.states()] == ["open", "resolved"]
    replayed = pay.seen[-1].context
    assert replayed.replay is not None
    assert (replayed.replay.run, replayed.replay.by, replayed.replay.reason, replayed.replay.forced) == (
        outcomes[0].run,
        "ana",
        "fixed",
        False,
    )
    assert (replayed.event_id, replayed.flow_id, replayed.attempt) == ("e-1", "flow-1", 1)
    assert (replayed.origin.topic, replayed.origin.partition, replayed.origin.offset) == (ground.topic("orders"), 1, 0)
    (paid,) = ground.records("paid")
    assert dict(paid.headers)["choreo-id"] == child_id("e-1", "payments", "pay", "", "order.paid", "o-1", "0").encode()
    assert len(bystander.seen) == 1


async def test_a_letter_that_fails_again_stays_open_with_its_first_origin_and_its_new_attempts(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    pay = Pay(Repaired())

    async with ground.service(pay, store=MemoryStore()).worker() as worker:
        await ground.caught_up(worker)
        outcomes = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert said(outcomes) == [("pay", "failed-again", 3)]
    assert outcomes[0].error == f"{ground.topic('orders')}[0]@0: not yet"
    first, second = ground.dead()
    assert (second.key, second.value, second.headers) == (first.key, first.value, first.headers)
    assert (second.why["topic"], second.why["offset"]) == (ground.topic("orders"), "0")
    before, after = ground.states()
    assert (before.state, after.state, after.run, after.dlq.offset) == ("open", "open", outcomes[0].run, 1)


@pytest.mark.parametrize("claims", [True, False], ids=["claims", "offsets"])
async def test_the_same_letter_asked_for_thrice_runs_once(ground: Ground, claims: bool) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    repaired = Repaired()
    pay = Pay(repaired)

    async with ground.service(pay, store=MemoryStore() if claims else None).worker() as worker:
        await ground.caught_up(worker)
        repaired.done = True
        (letter,) = ground.states()
        runs = [ground.ask(letter) for _ in range(3)]
        outcomes = [said(await ground.answered(run, 1, worker)) for run in runs]

    assert sorted(result for ((_, result, _),) in outcomes) == ["already-done", "already-done", "resolved"]
    assert len(ground.records("paid")) == 1
    assert len(pay.seen) == 4


async def test_a_replay_of_what_succeeded_meanwhile_does_not_run(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    repaired = Repaired()
    pay = Pay(repaired)

    async with ground.service(pay, store=MemoryStore()).worker() as worker:
        await ground.caught_up(worker)
        repaired.done = True
        ground.put("orders", Sent(placed(), headers=HEADERS))  # the producer sends it once more, and now it is handled
        await ground.caught_up(worker)
        outcomes = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert [outcome.result for outcome in outcomes] == ["already-done"]
    assert (len(pay.seen), worker.counters.duplicates, len(ground.records("paid"))) == (4, 1, 1)
    assert ground.states()[-1].state == "resolved"


async def test_a_forced_replay_has_one_more_effect_under_its_own_run_and_children_of_its_own(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    repaired = Repaired()
    pay = Pay(repaired)

    async with ground.service(pay, store=MemoryStore()).worker() as worker:
        await ground.caught_up(worker)
        repaired.done = True
        (letter,) = ground.states()
        await ground.answered(ground.ask(letter), 1, worker)
        forced = [ground.ask(letter, forced=True) for _ in range(2)]
        outcomes = [said(await ground.answered(run, 1, worker)) for run in forced]

    assert outcomes == [[("pay", "resolved", 1)]] * 2
    ids = [dict(record.headers)["choreo-id"] for record in ground.records("paid")]
    assert ids == [child_id("e-1", "payments", "pay", run, "order.paid", "o-1", "0").encode() for run in ("", *forced)]
    keys = [seen.context.idempotency_key() for seen in pay.seen]
    assert len(set(keys[:4])) == 1
    assert len(set(keys[3:])) == 3


async def test_a_forced_run_that_was_done_is_not_done_again_by_a_new_owner(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    repaired, store = Repaired(), MemoryStore()
    pay = Pay(repaired)
    async with ground.service(pay, store=store).worker() as worker:
        await ground.caught_up(worker)
        repaired.done = True
        (letter,) = ground.states()
        await ground.answered(ground.ask(letter, forced=True), 1, worker)

    async with ground.service(pay, store=MemoryStore(shared_with=store)).worker() as heir:
        await ground.answered(ground.ask(letter), 1, heir)

    assert (heir.counters.replayed, len(ground.records("paid"))) == (0, 1)


async def test_a_request_made_while_the_service_is_down_waits_for_it(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    repaired = Repaired()
    await ground.run(ground.service(Pay(repaired)))
    repaired.done = True
    run = ground.ask(*ground.states())

    async with ground.service(Pay(repaired)).worker() as worker:
        outcomes = await ground.answered(run, 1, worker)

    assert said(outcomes) == [("pay", "resolved", 1)]


async def test_a_letter_of_unreadable_bytes_goes_to_every_handler_once_it_can_be_read(ground: Ground) -> None:
    # strict=True makes a letter of handler "*" of a type that nobody here knows yet.
    ground.make(orders=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    await ground.run(ground.service(Painted(), strict=True))

    first, second = Book(), Book()
    first.name, second.name = "first", "second"
    async with ground.service(first, second, Painted(), strict=True).worker() as worker:
        outcomes = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert said(outcomes) == [("*", "resolved", 1)]
    assert (first.orders, second.orders) == (["o-1"], ["o-1"])


async def test_a_letter_that_cannot_be_decoded_still_fails_again_with_the_same_bytes(ground: Ground) -> None:
    ground.make(orders=1)
    value = envelope({"order_id": 1})
    ground.put("orders", Sent(value, headers=HEADERS))

    async with ground.service(Book()).worker() as worker:
        await ground.caught_up(worker)
        outcomes = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert said(outcomes) == [("book", "failed-again", 1)]
    assert [letter.value for letter in ground.dead()] == [value, value]


async def test_a_letter_whose_error_is_no_utf_8_is_written_once_and_can_be_resolved(ground: Ground) -> None:
    # As a file name that os.fsdecode made.
    ground.make(orders=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    broken = True

    def opens(placed: Placed, context: Context) -> None:
        if broken:
            raise FileNotFoundError("caf\udce9")

    async with ground.service(Book(opens)).worker() as worker:
        await ground.caught_up(worker)
        broken = False
        outcomes = await ground.answered(ground.ask(*ground.states()), 1, worker)

    assert said(outcomes) == [("book", "resolved", 1)]
    (letter,) = ground.dead()
    before, after = ground.states()
    assert (before.message, letter.why["error-message"]) == (f"{ground.topic('orders')}[0]@0: caf\\udce9",) * 2
    assert (before.state, after.state) == ("open", "resolved")


async def test_a_letter_in_a_partition_that_the_dlq_does_not_have_is_refused_and_the_next_one_runs(ground: Ground) -> None:
    # The dlq was made anew, with fewer partitions.
    ground.make(orders=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    repaired = Repaired()
    book = Book(lambda placed, context: repaired(placed, context))

    async with ground.service(book).worker() as worker:
        await ground.caught_up(worker)
        repaired.done = True
        (letter,) = ground.states()
        odd = replace(letter, event_id="e-2", dlq=replace(letter.dlq, partition=9))
        written = state_record(ground.letters, odd, 1)
        ground.put(ground.letters.removeprefix(ground.prefix), Sent(written.value, written.key))
        outcomes = await ground.answered(ground.ask(odd, letter), 2, worker)

    assert [(outcome.event_id, outcome.result) for outcome in outcomes] == [("e-2", "refused"), ("e-1", "resolved")]
    assert outcomes[0].error.startswith(f"its letter {odd.dlq} is gone")


async def test_requests_that_nobody_can_serve_are_refused_with_a_reason(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed(), headers=HEADERS))
    book = Book(lambda placed, context: Repaired()(placed, context))

    async with ground.service(book).worker() as worker:
        await ground.caught_up(worker)
        (letter,) = ground.states()
        abandoned = ground.ask(replace(letter, event_id="e-none"))
        (outcome,) = await ground.answered(abandoned, 1, worker)

    assert (outcome.result, outcome.error) == ("refused", "no such letter: it has no state (an abandoned copy is never replayed)")
    assert [type(entry) for entry in ground.replay_log()].count(Request) == 1
