"""How often, when, and how visibly is a failing event tried again?"""

from __future__ import annotations

import itertools
import sys
import time

import pytest

from choreo import Context, Envelope, Handler, PermanentError, RetryPolicy, TransientError
from tests.kafka.ground import BOTH_EFFECTS, Ground, Sent
from tests.kafka.shop import Book, Placed, fails, placed

pytestmark = [pytest.mark.kafka, BOTH_EFFECTS]


class Fails(Handler[Placed]):
    """Raises what it was given, one a call, then succeeds; notes when it was called."""

    def __init__(self, errors: list[Exception], retry: RetryPolicy) -> None:
        self.retry = retry
        self.called_at_s: list[float] = []
        self.attempts: list[tuple[int, int]] = []
        self._errors = iter(errors)

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        self.called_at_s.append(time.monotonic())
        self.attempts.append((context.attempt, context.max_attempts))
        error = next(self._errors, None)
        if error is not None:
            raise error

    def waits_s(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.called_at_s)]


async def test_each_attempt_is_told_its_number_and_each_failure_is_a_line_that_says_when_it_is_tried_again(
    ground: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()))
    handler = Fails([ValueError("first"), ValueError("second")], RetryPolicy(max_attempts=3, base_delay_s=0.01))

    worker = await ground.run(ground.service(handler))

    assert handler.attempts == [(1, 3), (2, 3), (3, 3)]
    assert (worker.counters.retried, worker.counters.handled) == (2, 1)
    said = [record.getMessage() for record in caplog.records if record.name == "choreo.worker" and record.levelname == "WARNING"]
    where = f"fails: {ground.topic('orders')}[0]@0"
    assert [text.rpartition(" in ")[0] for text in said] == [
        f"{where}: first (ValueError), attempt 1 of 3; again",
        f"{where}: second (ValueError), attempt 2 of 3; again",
    ]


async def test_the_wait_is_within_the_policys_bounds_and_an_error_may_ask_for_its_own(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()))
    errors = [TransientError("busy", retry_after_s=0.4), ValueError("again"), TransientError("at once", retry_after_s=0)]
    handler = Fails(errors, RetryPolicy(max_attempts=4, base_delay_s=0.3, multiplier=1))

    await ground.run(ground.service(handler))

    asked, drawn, at_once = handler.waits_s()
    assert 0.4 <= asked < 0.4 + 0.3
    assert drawn < 0.3 + 0.3
    assert at_once < 0.3


async def test_a_permanent_error_is_a_letter_after_one_attempt(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()), Sent(placed("o-2"), b"o-2"))
    policy = RetryPolicy(max_attempts=5, permanent=(LookupError, lambda error: "never" in str(error)))
    handler = Fails([KeyError("k"), ValueError("never mind")], policy)

    worker = await ground.run(ground.service(handler))

    assert handler.attempts == [(1, 5), (1, 5)]
    assert (worker.counters.retried, worker.counters.dead_lettered) == (0, 2)


async def test_a_letter_says_how_often_and_from_when_to_when_it_was_tried(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()))
    handler = Fails([ValueError("no")] * 4, RetryPolicy(max_attempts=4, base_delay_s=0.05, multiplier=1))

    await ground.run(ground.service(handler))

    (letter,), (state,) = ground.dead(), ground.states()
    assert (letter.why["attempts"], state.attempts) == ("4", 4)
    took_s = (state.last_failed_at - state.first_failed_at).total_seconds()
    assert took_s == pytest.approx(handler.called_at_s[-1] - handler.called_at_s[0], abs=0.05)


async def test_a_failing_event_holds_its_key_and_no_other_while_it_waits(ground: Ground) -> None:
    order: list[str] = []

    def act(placed: Placed, context: Context) -> None:
        order.append(f"{placed.order_id} {context.attempt}")
        if placed.order_id == "bad":
            raise TransientError("wait", retry_after_s=0.3)

    ground.make(orders=1)
    ground.put("orders", Sent(placed("bad"), b"a"), Sent(placed("behind"), b"a"), Sent(placed("beside"), b"b"))

    await ground.run(ground.service(Book(act)))

    assert order == ["bad 1", "beside 1", "bad 2", "bad 3", "behind 1"]


async def test_two_handlers_of_one_event_fail_and_die_apart(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()))
    good, bad = Book(), Book(fails)
    good.name, bad.name = "good", "bad"

    worker = await ground.run(ground.service(good, bad))

    (letter,) = ground.dead()
    assert (letter.why["handler"], len(good.seen), len(bad.seen)) == ("bad", 1, 3)
    assert (worker.counters.handled, worker.counters.dead_lettered) == (1, 1)


async def test_an_error_that_cannot_be_shown_is_a_letter_all_the_same(ground: Ground) -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError("not even this")

    ground.make(orders=1)
    ground.put("orders", Sent(placed()), Sent(placed("after")))
    handler = Fails([Unspeakable(), Unspeakable()], RetryPolicy(max_attempts=2, base_delay_s=0.01))

    worker = await ground.run(ground.service(handler), deadline_s=10)

    assert (worker.counters.handled, worker.counters.dead_lettered, len(ground.dead())) == (1, 1, 1)


async def test_an_answer_that_may_not_be_emitted_is_a_letter_after_one_attempt(ground: Ground) -> None:
    class Undeclared(Handler[Placed]):
        async def handle(self, event: Envelope[Placed], context: Context) -> None:
            return Placed(order_id="o-2", total_cents=1)  # type: ignore[return-value]

    ground.make(orders=1)
    ground.put("orders", Sent(placed()))

    await ground.run(ground.service(Undeclared()))

    (letter,) = ground.dead()
    assert (letter.why["error-type"], letter.why["attempts"]) == ("UndeclaredEmitError", "1")
    assert letter.why["error-message"].endswith(
        "undeclared emitted order.placed, which its return annotation does not name; add Placed to it (the contract is read from there)"
    )


async def test_permanent_error_of_choreos_own_needs_no_policy(ground: Ground) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed()))
    handler = Fails([PermanentError("card 4421 is unknown")], RetryPolicy())

    worker = await ground.run(ground.service(handler))

    assert (handler.attempts, worker.counters.dead_lettered) == ([(1, 3)], 1)


class Leaves(Handler[Placed]):
    retry = RetryPolicy(max_attempts=2, base_delay_s=0.01)

    async def handle(self, event: Envelope[Placed], context: Context) -> None:
        if event.payload.order_id == "leave":
            sys.exit("enough")


class LeavesOnThread(Handler[Placed]):
    retry = RetryPolicy(max_attempts=2, base_delay_s=0.01)

    def handle(self, event: Envelope[Placed], context: Context) -> None:
        if event.payload.order_id == "leave":
            sys.exit("enough")


@pytest.mark.parametrize("handler", [Leaves(), LeavesOnThread()], ids=["async", "thread"])
async def test_a_handler_that_calls_sys_exit_has_failed_and_the_service_goes_on(ground: Ground, handler: Handler[Placed]) -> None:
    ground.make(orders=1)
    ground.put("orders", Sent(placed("leave")), Sent(placed("after")))

    worker = await ground.run(ground.service(handler), deadline_s=10)

    (letter,) = ground.dead()
    assert (letter.value, letter.why["attempts"], letter.why["error-type"]) == (placed("leave"), "2", "TransientError")
    assert letter.why["error-message"].endswith("it raised SystemExit: enough")
    assert worker.counters.handled == 1
