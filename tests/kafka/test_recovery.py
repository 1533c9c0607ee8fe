"""What does `recover` turn a final failure into?"""

from __future__ import annotations

import threading

import pytest

from choreo import Context, Emit, Emits, Envelope, Failure, Handler, MemoryStore, PermanentError
from tests.kafka.ground import BOTH_EFFECTS, Ground, Sent
from tests.kafka.shop import QUICK, Paid, Placed, envelope, placed

pytestmark = [pytest.mark.kafka, BOTH_EFFECTS]


class Refund(Handler[Placed]):
    """Fails always; recovers as it was told."""

    retry = QUICK

    def __init__(self, *, permanent: bool = False, recovers: bool = True) -> None:
        self.calls = 0
        self.failures: list[Failure] = []
        self._permanent, self._recovers = permanent, recovers

    async def handle(self, event: Envelope[Placed], context: Context) -> Paid | None:
        self.calls += 1
        raise PermanentError("card refused") if self._permanent else ValueError("gateway gone")

    async def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> Paid | None:
        self.failures.append(failure)
        if not self._recovers:
            raise RuntimeError("no refund either")
        return Paid(order_id=event.payload.order_id, note="refunded")


async def test_a_final_failure_becomes_emits_and_no_letter(ground: Ground, caplog: pytest.LogCaptureFixture) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed("o-1"), b"o-1", [("choreo-id", b"e-1")]), Sent(placed("o-2"), b"o-2"))
    refund = Refund()

    worker = await ground.run(ground.service(refund))

    assert [b'"note":"refunded"' in (record.value or b"") for record in ground.records("paid")] == [True, True]
    assert {record.key: dict(record.headers)["choreo-causation-id"] for record in ground.records("paid")}[b"o-1"] == b"e-1"
    assert ground.dead() == []
    assert (worker.counters.recovered, worker.counters.dead_lettered, refund.calls) == (2, 0, 6)
    assert [(f.error_type, f.message, f.attempts, f.permanent) for f in refund.failures] == [("ValueError", "gateway gone", 3, False)] * 2
    assert refund.failures[0].first_failed_at < refund.failures[0].last_failed_at
    assert f"refund: {ground.topic('orders')}[0]@0: recovered after attempt 3 (gateway gone)" in caplog.messages


async def test_a_permanent_failure_is_recovered_from_after_one_attempt(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed()))
    refund = Refund(permanent=True)

    worker = await ground.run(ground.service(refund))

    assert (refund.calls, worker.counters.recovered, [f.permanent for f in refund.failures]) == (1, 1, [True])


async def test_a_recovery_that_raises_is_a_letter_that_tells_both_failures(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed()))

    worker = await ground.run(ground.service(Refund(recovers=False)))

    (letter,) = ground.dead()
    assert (letter.why["error-type"], letter.why["attempts"]) == ("RuntimeError", "3")
    assert "no refund either" in letter.why["error-message"]
    assert "gateway gone" in letter.why["error-stack"]
    assert (worker.counters.recovered, worker.counters.dead_lettered) == (0, 1)


async def test_what_cannot_be_decoded_is_not_recovered_from(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(envelope({"order_id": 1})))
    refund = Refund()

    worker = await ground.run(ground.service(refund))

    assert (refund.failures, worker.counters.dead_lettered) == ([], 1)


async def test_a_recovered_event_is_claimed_and_does_not_run_again(ground: Ground) -> None:
    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed()))
    refund, store = Refund(), MemoryStore()

    await ground.run(ground.service(refund, store=store))
    await ground.read_again("orders")
    worker = await ground.run(ground.service(refund, store=MemoryStore(shared_with=store)))

    assert (refund.calls, worker.counters.duplicates, len(ground.records("paid"))) == (3, 1, 1)


async def test_a_plain_handler_recovers_on_a_thread_too(ground: Ground) -> None:
    threads: list[int] = []

    class Plain(Handler[Placed]):
        retry = QUICK

        def handle(self, event: Envelope[Placed], context: Context) -> Emits:
            raise ValueError("no")

        def recover(self, event: Envelope[Placed], failure: Failure, context: Context) -> Emits:
            threads.append(threading.get_ident())
            return [Emit(Paid(order_id="o-1"), key="elsewhere")]

    ground.make(orders=1, paid=1)
    ground.put("orders", Sent(placed()))

    worker = await ground.run(ground.service(Plain()))

    assert [record.key for record in ground.records("paid")] == [b"elsewhere"]
    assert worker.counters.recovered == 1
    assert threads != [threading.get_ident()]
