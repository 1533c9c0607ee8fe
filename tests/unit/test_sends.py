"""Is everything written once and in order, whatever Kafka refuses meanwhile? The sends of one worker, on the memory broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choreo.broker import Report
from choreo.errors import BrokerError
from choreo.record import Outgoing
from choreo.runtime import sends as sends_module
from choreo.runtime.sends import Sends, by_key
from choreo.telemetry.counters import Counters
from choreo.testing import MemoryBroker
from choreo.testing.memory_producer import MemoryProducer

DEADLINE_S = 10.0
TIMED_OUT, TOO_LARGE = "_MSG_TIMED_OUT", "MSG_SIZE_TOO_LARGE"


@pytest.fixture
def broker() -> MemoryBroker:
    broker = MemoryBroker()
    broker.create_topic("paid")
    broker.create_topic("sent")
    return broker


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused is tried again without a wait."""
    monkeypatch.setattr(sends_module, "RETRY_FIRST_S", 0.0)


class Ended(NamedTuple):
    error: BrokerError | None
    reports: Sequence[Report]


class Heard(list[Ended]):
    """Every call of one `then`."""

    def __call__(self, error: BrokerError | None, reports: Sequence[Report]) -> None:
        self.append(Ended(error, reports))


class RefusesAtOnce(MemoryProducer):
    """Raises these from its next sends; None lets one pass."""

    refusals: list[Exception | None] = []

    def send(self, record: Outgoing, report: Callable[[Report], None]) -> None:
        refusal = self.refusals.pop(0) if self.refusals else None
        if refusal is not None:
            raise refusal
        super().send(record, report)


def refusing(broker: MemoryBroker, *refusals: Exception | None) -> RefusesAtOnce:
    producer = RefusesAtOnce(broker._state)
    producer.refusals = list(refusals)
    return producer


def a_record(key: str | None, value: str, topic: str = "paid") -> Outgoing:
    return Outgoing(topic, None if key is None else key.encode(), value.encode())


def values(broker: MemoryBroker, topic: str = "paid", key: str | None = None) -> list[str]:
    """What the topic holds, of all keys or one."""
    return [(r.value or b"").decode() for r in broker.records(topic) if key is None or r.key == key.encode()]


async def becomes(condition: Callable[[], object], what: str) -> None:
    ends_at = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < ends_at, f"not within {DEADLINE_S:g} s: {what}"
        await asyncio.sleep(0.001)


async def write(sends: Sends, *records: Outgoing) -> Ended:
    """Sends them together; what `then` was told, which is once."""
    heard = Heard()
    sends.send(records, heard)
    await becomes(lambda: heard, "an end")
    assert await sends.drain(DEADLINE_S)
    (ended,) = heard
    return ended


# ---- the order of a key -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
async def test_a_record_that_is_refused_once_is_not_overtaken_by_the_next_of_its_key(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    broker.fail_sends("paid", TIMED_OUT)

    ended = await write(sends, a_record("o", "1"), a_record("o", "2"), a_record("o", "3"))

    assert values(broker) == ["1", "2", "3"]
    assert (ended.error, [report.offset for report in ended.reports]) == (None, [0, 1, 2])


@pytest.mark.usefixtures("at_once")
async def test_nor_is_one_that_the_producer_refuses_at_once(broker: MemoryBroker) -> None:
    missing = BrokerError("paid: no such topic", code="_UNKNOWN_TOPIC", retriable=False)
    sends = Sends(refusing(broker, missing), Counters())

    await write(sends, a_record("o", "1"), a_record("o", "2"))

    assert values(broker) == ["1", "2"]


@pytest.mark.usefixtures("at_once")
async def test_only_what_is_not_acknowledged_is_written_again(broker: MemoryBroker) -> None:
    counters = Counters()
    sends = Sends(broker.producer(), counters)
    broker.fail_sends("paid", TIMED_OUT)

    await write(sends, a_record("a", "1"), a_record("b", "2"), a_record(None, "3"))

    assert sorted(values(broker)) == ["1", "2", "3"]
    assert counters.broker_errors == 1


async def test_records_of_other_keys_do_not_wait_for_one_that_is_refused(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    broker.fail_sends("sent", TIMED_OUT, times=10**9)
    heard = Heard()

    sends.send((a_record("o", "never", "sent"), a_record("o", "1"), a_record("o", "2"), a_record("p", "3")), heard)
    await becomes(lambda: len(values(broker)) == 3, "the other keys are written")

    assert values(broker, key="o") == ["1", "2"]
    assert (heard, values(broker, "sent")) == ([], [])
    sends.close(0)


async def test_records_of_different_keys_and_records_without_one_go_out_together(broker: MemoryBroker) -> None:
    broker.hold_sends("paid")
    producer = broker.producer()
    sends = Sends(producer, Counters())

    sends.send((a_record("a", "1"), a_record("b", "2"), a_record("a", "3"), a_record(None, "4"), a_record(None, "5")), Heard())

    assert producer._out() == 4
    sends.close(0)


RECORDS = st.lists(st.tuples(st.sampled_from(["paid", "sent"]), st.sampled_from(["a", "b"])), max_size=7)
REFUSED = st.lists(st.booleans(), max_size=12)


@settings(max_examples=100, deadline=None)
@given(RECORDS, REFUSED, REFUSED, st.integers(1, 3))
def test_whatever_is_refused_each_key_is_written_in_order_and_once(
    records: list[tuple[str, str]], at_once: list[bool], reported: list[bool], room: int
) -> None:
    broker = MemoryBroker(queue_records=room)
    for topic in ("paid", "sent"):
        broker.create_topic(topic)
        for refused in reported:
            broker.fail_sends(topic, TIMED_OUT, times=int(refused))
    error = BrokerError("paid: no such topic", code="_UNKNOWN_TOPIC", retriable=False)
    numbered = [a_record(key, str(number), topic) for number, (topic, key) in enumerate(records)]

    async def run() -> Ended:
        return await write(Sends(refusing(broker, *(error if refused else None for refused in at_once)), Counters()), *numbered)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sends_module, "RETRY_FIRST_S", 0.0)
        ended = asyncio.run(run())

    assert (ended.error, len(ended.reports)) == (None, len(records))
    for topic in ("paid", "sent"):
        for key in "ab":
            assert values(broker, topic, key) == [str(number) for number, pair in enumerate(records) if pair == (topic, key)]


def test_records_of_one_key_in_two_topics_are_of_two_keys() -> None:
    one, other, again, without = a_record("o", "1"), a_record("o", "2", "sent"), a_record("o", "3"), a_record(None, "4")

    assert by_key([one, other, without, again, without]) == [[one, again], [other], [without], [without]]


# ---- what can never be written ------------------------------------------------------------------------------------------


async def test_a_record_that_is_too_large_ends_its_call_and_no_later_one_of_its_key_is_begun(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    broker.fail_sends("paid", TOO_LARGE)

    ended = await write(sends, a_record("o", "large"), a_record("p", "beside"), a_record("o", "after"))

    assert ended.error is not None
    assert ended.error.code == TOO_LARGE
    assert values(broker) == ["beside"]


async def test_one_that_is_refused_at_once_ends_its_call_after_those_beside_it(broker: MemoryBroker) -> None:
    large = BrokerError("paid: too large", code=TOO_LARGE, retriable=False)
    sends = Sends(refusing(broker, large), Counters())

    ended = await write(sends, a_record("o", "large"), a_record("p", "beside"), a_record("o", "after"))

    assert ended.error is large
    assert values(broker) == ["beside"]


@pytest.mark.parametrize("patient", [True, False])
@pytest.mark.parametrize("refusal", [ValueError("embedded null character"), TypeError("expected str")], ids=["ValueError", "TypeError"])
async def test_so_does_one_that_the_client_can_not_take(broker: MemoryBroker, refusal: Exception, patient: bool) -> None:
    sends = Sends(refusing(broker, refusal), Counters(), patient=patient)

    ended = await write(sends, a_record("o", "odd"), a_record("p", "beside"), a_record("o", "after"))

    assert ended.error is not None
    assert (str(ended.error), ended.error.code, ended.error.retriable) == (f"writing to paid: {refusal}", "_INVALID_ARG", False)
    assert (values(broker), sends.outstanding) == (["beside"], 0)


async def test_without_patience_the_first_error_is_the_answer(broker: MemoryBroker) -> None:
    counters = Counters()
    sends = Sends(broker.producer(), counters, patient=False)
    broker.fail_sends("paid", TIMED_OUT)

    ended = await write(sends, a_record("o", "1"), a_record("o", "2"))

    assert ended.error is not None
    assert (ended.error.code, values(broker), sends.troubled) == (TIMED_OUT, [], None)


async def test_each_topic_that_can_not_be_written_is_told_once_until_it_can(broker: MemoryBroker, caplog: pytest.LogCaptureFixture) -> None:
    sends = Sends(broker.producer(), Counters())
    for topic in ("paid", "sent"):
        broker.fail_sends(topic, TIMED_OUT, 2)

    for number in range(2):
        for topic in ("paid", "sent"):
            sends.send([a_record(str(number), "1", topic)], Heard())
    await becomes(lambda: sends.troubled, "both are refused")
    await becomes(lambda: sum("_MSG_TIMED_OUT" in message for message in caplog.messages) == 2, "both are told")

    assert [message.partition(":")[0] for message in caplog.messages] == ["paid", "sent"]
    sends.close(0)


@pytest.mark.usefixtures("at_once")
async def test_a_record_that_is_refused_for_hours_is_still_tried(broker: MemoryBroker) -> None:
    failures: list[BaseException] = []
    sends = Sends(broker.producer(), Counters(), failures.append)
    broker.fail_sends("paid", TIMED_OUT, times=1_100)  # at ten seconds each: three hours

    await write(sends, a_record("o", "1"))

    assert (values(broker), failures) == (["1"], [])


@pytest.mark.usefixtures("at_once")
async def test_a_record_that_nobody_wants_any_more_is_not_tried_again(broker: MemoryBroker) -> None:
    wanted = [True, True, False]
    sends, heard = Sends(broker.producer(), Counters()), Heard()
    broker.fail_sends("paid", TIMED_OUT, times=10**9)

    sends.send_while(lambda: wanted.pop(0), a_record("o", "1"), heard)
    await becomes(lambda: heard, "it has ended")

    (ended,) = heard
    assert ended.error is not None
    assert (ended.error.code, wanted, sends.outstanding, values(broker)) == (TIMED_OUT, [], 0, [])


async def test_no_records_are_acknowledged_as_they_are(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    heard = Heard()

    sends.send((), heard)

    assert heard == [Ended(None, [])]
    assert await sends.acknowledged(()) == []


# ---- a full queue -------------------------------------------------------------------------------------------------------


async def test_what_finds_the_queue_full_waits_in_order_and_nothing_is_dropped() -> None:
    broker = MemoryBroker(queue_records=3)
    broker.create_topic("paid")
    broker.hold_sends("paid")
    sends = Sends(broker.producer(), Counters())
    heard = [Heard() for _ in range(101)]

    for number, then in enumerate(heard[:-1]):
        # As two deliveries of one lane never do: the order of sends is what is looked at.
        sends.send((a_record("o", f"{number}"),), then)
    broker.release_sends("paid")
    sends.poll_now()
    sends.send((a_record("o", "100"),), heard[-1])  # there is room, but not for the last to come
    sends.send((a_record("p", "a"), a_record("q", "b"), a_record("p", "c")), last := Heard())
    await becomes(lambda: last, "the last is through")

    assert values(broker, key="o") == [str(number) for number in range(101)]
    assert (values(broker, key="p"), values(broker, key="q")) == (["a", "c"], ["b"])
    assert [len(then) for then in heard] == [1] * 101
    assert all(ended.error is None for then in heard for ended in then)


# ---- waiting, and the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", [True, False])
async def test_a_close_settles_nothing_but_whoever_awaits_is_told_what_is_unknown(broker: MemoryBroker, patient: bool) -> None:
    sends = Sends(broker.producer(), Counters(), patient=patient)
    broker.hold_sends("paid")
    heard = Heard()
    sends.send((a_record("o", "1"),), heard)
    waiting = asyncio.create_task(sends.acknowledged((a_record("p", "2"), a_record("p", "3"))))
    await becomes(lambda: sends.outstanding == 2, "both are under way")

    left = sends.close(0)

    with pytest.raises(BrokerError, match=r"^writing to paid: closed before it was acknowledged$") as told:
        await waiting
    assert (told.value.code, told.value.retriable) == ("UNKNOWN", True)
    assert (left, heard, values(broker)) == (2, [], [])


@pytest.mark.parametrize("patient", [True, False])
async def test_what_is_sent_after_the_close_is_refused_where_somebody_waits_and_never_settled(broker: MemoryBroker, patient: bool) -> None:
    large = BrokerError("paid: too large", code=TOO_LARGE, retriable=False)
    sends = Sends(refusing(broker, large, large), Counters(), patient=patient)
    heard = Heard()
    sends.close(0)
    sends.close(0)

    sends.send((a_record("o", "1"),), heard)
    sends.send((a_record("o", "1"), a_record("o", "2")), heard)
    with pytest.raises(BrokerError, match=r"^writing to paid, sent: the producer is closed$"):
        await sends.acknowledged((a_record("o", "1"), a_record("o", "2", "sent"), a_record("o", "3")))

    assert (heard, values(broker)) == ([], [])


async def test_a_record_that_waits_to_be_tried_again_ends_with_the_close(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    broker.fail_sends("paid", TIMED_OUT)
    waiting = asyncio.create_task(sends.acknowledged((a_record("o", "1"),)))
    await becomes(lambda: sends.troubled, "it waits to be tried again")

    sends.close(0)

    with pytest.raises(BrokerError, match="closed before it was acknowledged"):
        await waiting


async def test_an_acknowledgement_that_comes_while_closing_counts(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    broker.hold_sends("paid")
    heard = Heard()
    sends.send((a_record("o", "1"), a_record("o", "2")), heard)
    broker.release_sends("paid")

    left = sends.close(DEADLINE_S)

    assert (left, [ended.error for ended in heard], values(broker)) == (0, [None], ["1", "2"])


async def test_draining_lets_the_loop_go_on(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    broker.hold_sends("paid")
    sends.send((a_record("o", "1"), a_record("o", "2")), Heard())

    asyncio.get_running_loop().call_later(0.01, broker.release_sends, "paid")
    async with asyncio.timeout(DEADLINE_S):
        drained = await sends.drain(3600)

    assert (drained, values(broker)) == (True, ["1", "2"])


async def test_draining_ends_with_a_record_that_rests_and_is_not_wanted_any_more(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sends_module, "RETRY_FIRST_S", 0.05)
    sends, heard = Sends(broker.producer(), Counters()), Heard()
    broker.fail_sends("paid", TIMED_OUT)
    sends.send_while(lambda: False, a_record("o", "1"), heard)
    await becomes(lambda: sends.troubled, "it rests")

    async with asyncio.timeout(DEADLINE_S):
        drained = await sends.drain(3600)

    assert (drained, len(heard), values(broker)) == (True, 1, [])


async def test_draining_waits_for_what_an_end_has_begun(broker: MemoryBroker) -> None:
    sends, heard = Sends(broker.producer(), Counters()), Heard()
    broker.hold_sends("sent")

    def begins_another(error: BrokerError | None, reports: Sequence[Report]) -> None:
        sends.send((a_record("o", "2", "sent"),), heard)
        asyncio.get_running_loop().call_later(0.02, broker.release_sends, "sent")

    sends.send((a_record("o", "1"),), begins_another)
    async with asyncio.timeout(DEADLINE_S):
        drained = await sends.drain(3600)

    assert (drained, len(heard), values(broker), values(broker, "sent")) == (True, 1, ["1"], ["2"])


async def test_draining_ends_with_its_time(broker: MemoryBroker) -> None:
    sends = Sends(broker.producer(), Counters())
    broker.hold_sends("paid")
    sends.send((a_record("o", "1"),), Heard())

    assert not await sends.drain(0.01)

    sends.close(0)


async def test_whoever_awaits_reads_what_broke_the_polling(broker: MemoryBroker) -> None:
    class Breaks(MemoryProducer):
        def poll(self, timeout_s: float) -> int:
            raise RuntimeError("broken")

    failures: list[BaseException] = []
    sends = Sends(Breaks(broker._state), Counters(), failures.append)

    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(sends.acknowledged((a_record("o", "1"),)), DEADLINE_S)

    assert [str(failure) for failure in failures] == ["broken"]
