"""What must every outbox do? The docstrings of `choreo.store.Outbox` and `OutboxDesk` as tests.

Subclass and supply the fixture `ground` (see `OutboxGround`); needs pytest. For readable failures:
``pytest.register_assert_rewrite("choreo.testing.outbox_conformance")``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Protocol

import pytest

from choreo.record import Headers, Outgoing
from choreo.store import SHARDS, Outbox, OutboxDesk, OutboxRow, StoredRow, shard_of

ALL = range(SHARDS)
GROUP = "payments"


class DeskedOutbox(Outbox, OutboxDesk, Protocol):
    """What the suite tests."""


class OutboxGround(Protocol):
    """A database without rows; each is one case's own."""

    def outbox(self, group: str) -> DeskedOutbox:
        """One more that looks at it: another process's."""

    def adding(self, group: str, rows: Sequence[OutboxRow]) -> AbstractContextManager[object]:
        """Inserts `rows` in a transaction that is committed when the context ends; when it raises, they are not there."""


def row(
    number: int,
    key: bytes | None = b"o-1",
    *,
    topic: str = "payments",
    due: datetime | timedelta | None = None,
    value: bytes | None = b"{}",
    headers: Headers = (),
) -> OutboxRow:
    return OutboxRow(Outgoing(topic, key, value, [("choreo-id", f"e{number}".encode()), *headers]), "payment.received", f"e{number}", due)


def ids(rows: Sequence[StoredRow]) -> list[str]:
    return [stored.event_id for stored in rows]


def until(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    ends_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_s, "it did not come to that in time"
        time.sleep(0.01)


class OutboxConformance:
    """The cases of `choreo.store.Outbox`."""

    blocks_writers = False
    """Whether a transaction that has written keeps all others from writing, as SQLite's does."""

    @pytest.fixture
    def ground(self) -> OutboxGround:
        raise NotImplementedError("supply the database under test")

    @pytest.fixture
    def outbox(self, ground: OutboxGround) -> Iterator[DeskedOutbox]:
        outbox = ground.outbox(GROUP)
        yield outbox
        outbox.close()
        outbox.close()

    @pytest.fixture
    def another(self, ground: OutboxGround) -> Iterator[DeskedOutbox]:
        outbox = ground.outbox(GROUP)
        yield outbox
        outbox.close()

    def add(self, ground: OutboxGround, *rows: OutboxRow, group: str = GROUP) -> None:
        with ground.adding(group, rows):
            pass

    # ---- rows -------------------------------------------------------------------------------------------------------

    def test_an_empty_one_has_nothing(self, outbox: DeskedOutbox) -> None:
        state = outbox.state()

        assert (list(outbox.due(ALL, 10)), list(outbox.waiting(10))) == ([], [])
        assert (state.due, state.oldest_s, state.timers, state.aside) == (0, 0.0, 0, 0)

    @pytest.mark.parametrize(
        "record",
        [
            Outgoing("payments", b"o-1", b'{"a":1}', [("choreo-id", b"e1"), ("choreo-correlation-id", b"f1"), ("content-type", b"x/y")]),
            Outgoing("payments", None, b"", [("choreo-id", b"e1")]),
            Outgoing("payments", b"", None, [("choreo-id", b"e1")]),
            Outgoing(
                "p.a_y-9", b"\0\xff'\"\\", bytes(range(256)), [("choreo-id", b"e1"), ("mine", b"\0\xff"), ("mine", None), ("mine", b"")]
            ),
            Outgoing("payments", "ß中\0".encode(), b"x", [("choreo-id", b"e1"), ("traceparent", b"00-\xff"), ("baggage", b"a=\0")]),
            Outgoing(
                "payments", b"k", b"x", [("choreo-id", b"e1"), ("choreo-source", b"s/h"), ("choreo-source", b"again"), ("tracestate", None)]
            ),
        ],
    )
    def test_a_record_comes_back_byte_for_byte(self, ground: OutboxGround, outbox: DeskedOutbox, record: Outgoing) -> None:
        self.add(ground, OutboxRow(record, "payment.received", "e1"))

        (stored,) = outbox.due(ALL, 10)

        assert (stored.record.topic, stored.record.key, stored.record.value) == (record.topic, record.key, record.value)
        assert sorted(map(repr, stored.record.headers)) == sorted(map(repr, record.headers))
        assert [h for h in stored.record.headers if h[0] == "mine"] == [h for h in record.headers if h[0] == "mine"]
        assert (stored.event_type, stored.event_id, stored.due_at, stored.reason) == ("payment.received", "e1", None, None)
        assert abs(stored.created_at - datetime.now(UTC)) < timedelta(minutes=1)

    def test_rows_of_a_transaction_that_is_not_committed_are_not_seen(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        with pytest.raises(ZeroDivisionError), ground.adding(GROUP, [row(1)]):
            assert ids(outbox.due(ALL, 10)) == []
            raise ZeroDivisionError

        assert ids(outbox.due(ALL, 10)) == []

    def test_rows_come_in_their_order_and_are_gone_when_published(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, *(row(number, f"o-{number % 3}".encode()) for number in range(20)))
        self.add(ground, *(row(number, None) for number in range(20, 25)))

        first = outbox.due(ALL, 7)
        assert ids(first) == [f"e{number}" for number in range(7)]
        assert [stored.seq for stored in first] == sorted(stored.seq for stored in first)
        assert ids(outbox.due(ALL, 100)) == [f"e{number}" for number in range(25)], "nobody has published any"

        outbox.published([stored.seq for stored in first])
        assert ids(outbox.due(ALL, 100)) == [f"e{number}" for number in range(7, 25)]
        outbox.published([stored.seq for stored in outbox.due(ALL, 100)])
        assert ids(outbox.due(ALL, 100)) == []
        outbox.published([])

    def test_only_rows_of_the_shards_that_were_asked_for_come(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        rows = [row(number, f"o-{number}".encode()) for number in range(40)] + [row(number, None) for number in range(40, 80)]
        self.add(ground, *rows)

        found = {shard: ids(outbox.due([shard], 100)) for shard in ALL}

        for shard in ALL:
            assert found[shard] == [r.event_id for r in rows if shard_of(r.record.topic, r.record.key, r.event_id) == shard]
        assert ids(outbox.due([], 10)) == []

    def test_keys_that_are_left_out_hide_no_others(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1, b"o-1"), row(2, None), row(3, b"o-2"), row(4, b"o-1", topic="other"), row(5, b"o-1"), row(6, b"o-3"))

        assert ids(outbox.due(ALL, 3, beside=[("payments", b"o-1"), ("payments", b"o-3")])) == ["e2", "e3", "e4"]
        assert ids(outbox.due(ALL, 3, beside=[("payments", None)])) == ["e4"]
        assert ids(outbox.due(ALL, 3, beside=[("other", None), ("payments", b"o-1")])) == ["e2", "e3", "e6"]

    def test_groups_have_nothing_to_do_with_each_other(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1))
        self.add(ground, row(2), group="shipping")
        (mine,) = outbox.due(ALL, 10)
        shipping = ground.outbox("shipping")
        (theirs,) = shipping.due(ALL, 10)

        assert (mine.event_id, theirs.event_id) == ("e1", "e2")
        outbox.published([theirs.seq])
        outbox.set_aside(theirs.seq, "not ours")
        assert ids(shipping.due(ALL, 10)) == ["e2"]
        assert (shipping.state().due, outbox.state().due) == (1, 1)
        assert outbox.lease("a", 10) == shipping.lease("b", 10) == frozenset(ALL)
        shipping.close()

    def test_of_one_key_the_row_that_was_committed_first_comes_first(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        """Two transactions at once: the second that writes the key waits, or is numbered behind, whatever began first."""
        began, go = threading.Event(), threading.Event()

        def slow() -> None:
            with ground.adding(GROUP, [row(1, b"o-1"), row(2, b"o-2")]):
                began.set()
                go.wait(20)

        def fast() -> None:
            self.add(ground, row(3, b"o-2"), row(4, b"o-3"))

        threads = [threading.Thread(target=slow)]
        threads[0].start()
        assert began.wait(20)
        if not self.blocks_writers:
            self.add(ground, row(5, b"o-9"))  # another key goes on
            assert ids(outbox.due(ALL, 10)) == ["e5"]
        threads.append(threading.Thread(target=fast))
        threads[1].start()
        threads[1].join(0.3)
        assert "e3" not in ids(outbox.due(ALL, 10)), "its key is held by a transaction that may still commit"
        go.set()
        for thread in threads:
            thread.join(20)

        order = ids(outbox.due(ALL, 10))
        assert set(order) - {"e5"} == {"e1", "e2", "e3", "e4"}
        assert order.index("e2") < order.index("e3")

    # ---- timers -----------------------------------------------------------------------------------------------------

    def test_a_timer_waits_and_takes_its_place_when_it_falls_due(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        soon = timedelta(seconds=0.6)
        self.add(ground, row(1, due=soon), row(2), row(3, due=datetime.now(UTC) + timedelta(hours=1)))
        state = outbox.state()
        assert (state.due, state.timers) == (1, 2)
        assert ids(outbox.due(ALL, 10)) == ["e2"]
        self.add(ground, row(4))

        until(lambda: "e1" in ids(outbox.due(ALL, 10)))

        found = outbox.due(ALL, 10)
        assert ids(found) == ["e2", "e4", "e1"]
        assert found[-1].due_at is not None
        self.add(ground, row(5))
        assert ids(outbox.due(ALL, 10)) == ["e2", "e4", "e1", "e5"]
        assert (outbox.state().due, outbox.state().timers) == (4, 1)
        assert outbox.state().oldest_s < 60

    def test_timers_that_fall_due_together_come_in_the_order_of_their_times(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        past = datetime.now(UTC) - timedelta(minutes=5)
        self.add(ground, *(row(number, due=past - timedelta(seconds=number)) for number in (1, 3, 2)), row(0, due=past))

        until(lambda: len(outbox.due(ALL, 10)) == 4)

        assert ids(outbox.due(ALL, 10)) == ["e3", "e2", "e1", "e0"]

    def test_a_timer_that_fell_due_is_numbered_behind_what_was_there(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1, due=timedelta(0)), row(2))

        until(lambda: len(outbox.due(ALL, 10)) == 2)

        found = outbox.due(ALL, 10)
        assert [stored.seq for stored in found] == sorted(stored.seq for stored in found)
        outbox.published([stored.seq for stored in found])
        assert ids(outbox.due(ALL, 10)) == []

    # ---- set aside --------------------------------------------------------------------------------------------------

    def test_behind_a_row_that_was_set_aside_its_key_waits_and_others_go_on(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1, b"o-1"), row(2, b"o-2"), row(3, b"o-1"), row(4, None), row(5, b"o-1", topic="other"))
        poison = outbox.due(ALL, 10)[0]

        outbox.set_aside(poison.seq, "payments: message too large (2,000,000 bytes)\0")

        assert ids(outbox.due(ALL, 10)) == ["e2", "e4", "e5"]
        state = outbox.state()
        assert (state.due, state.aside) == (4, 1)
        waiting = outbox.waiting(10)
        assert ids(waiting) == ["e1", "e2", "e3", "e4", "e5"]
        assert waiting[0].reason is not None
        assert "message too large" in waiting[0].reason
        assert ids(outbox.waiting(10, aside_only=True)) == ["e1"]
        assert ids(outbox.waiting(2)) == ["e1", "e2"]

    def test_rows_before_the_one_that_was_set_aside_do_not_wait(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1), row(2), row(3))

        outbox.set_aside(outbox.due(ALL, 10)[1].seq, "too large")

        assert ids(outbox.due(ALL, 10)) == ["e1"]

    def test_a_keyless_row_that_was_set_aside_holds_nobody(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1, None), row(2, None))

        outbox.set_aside(outbox.due(ALL, 10)[0].seq, "too large")

        assert ids(outbox.due(ALL, 10)) == ["e2"]

    def test_a_row_that_is_put_back_takes_its_old_place(self, ground: OutboxGround, outbox: DeskedOutbox, another: DeskedOutbox) -> None:
        self.add(ground, row(1), row(2))
        (poison, later) = outbox.due(ALL, 10)
        outbox.set_aside(poison.seq, "no such topic")

        assert another.retry([later.seq, 10**9]) == 0, "neither was set aside"
        assert another.retry([poison.seq]) == 1

        (first, second) = outbox.due(ALL, 10)
        assert (first.event_id, first.reason, second.event_id) == ("e1", None, "e2")
        assert outbox.state().aside == 0

    def test_a_row_that_is_discarded_holds_its_key_no_longer(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1), row(2))
        (poison, later) = outbox.due(ALL, 10)
        outbox.set_aside(poison.seq, "no such topic")

        assert outbox.discard([later.seq]) == 0, "it was not set aside"
        assert outbox.discard([poison.seq, later.seq]) == 1

        assert ids(outbox.due(ALL, 10)) == ["e2"]

    def test_setting_aside_what_is_gone_does_nothing(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1))
        (stored,) = outbox.due(ALL, 10)
        outbox.published([stored.seq])

        outbox.set_aside(stored.seq, "too late")
        outbox.published([stored.seq])

        assert outbox.state().aside == 0

    def test_what_one_relay_has_set_aside_and_another_published_is_gone(
        self, ground: OutboxGround, outbox: DeskedOutbox, another: DeskedOutbox
    ) -> None:
        self.add(ground, row(1), row(2))
        (first, second) = outbox.due(ALL, 10)
        another.set_aside(first.seq, "no such topic, some time ago")

        outbox.published([first.seq])

        assert outbox.state().aside == 0
        assert ids(outbox.due(ALL, 10)) == [second.event_id]

    def test_no_more_are_listed_than_asked_for(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1, b"o-1"), row(2, b"o-2"), row(3, b"o-3"))
        for stored in outbox.due(ALL, 2):
            outbox.set_aside(stored.seq, "too large")

        assert ids(outbox.waiting(1, aside_only=True)) == ["e1"]

    def test_the_age_of_the_oldest_is_told(self, ground: OutboxGround, outbox: DeskedOutbox) -> None:
        self.add(ground, row(1))
        time.sleep(0.3)
        self.add(ground, row(2, b"o-2"))

        assert 0.2 < outbox.state().oldest_s < 20

    # ---- leases -----------------------------------------------------------------------------------------------------

    def test_one_relay_has_all_shards_and_two_share_them(self, outbox: DeskedOutbox, another: DeskedOutbox) -> None:
        assert outbox.lease("a", 30) == frozenset(ALL)
        assert another.lease("b", 30) == frozenset(), "none is free yet"

        a = outbox.lease("a", 30)
        b = another.lease("b", 30)

        assert (len(a), len(b)) == (SHARDS // 2, SHARDS // 2)
        assert frozenset(a) | frozenset(b) == frozenset(ALL)
        assert (outbox.lease("a", 30), another.lease("b", 30)) == (a, b), "each keeps what it has"

    def test_three_relays_leave_no_shard_alone(self, ground: OutboxGround) -> None:
        outboxes = [ground.outbox(GROUP) for _ in range(3)]
        leased: list[frozenset[int]] = []
        for _ in range(3):
            leased = [frozenset(one.lease(f"relay-{number}", 30)) for number, one in enumerate(outboxes)]

        assert frozenset().union(*leased) == frozenset(ALL)
        assert sum(map(len, leased)) == SHARDS, "no shard has two"
        assert max(map(len, leased)) <= 6
        for one in outboxes:
            one.close()

    def test_a_relay_that_leaves_frees_its_shards_at_once(self, outbox: DeskedOutbox, another: DeskedOutbox) -> None:
        outbox.lease("a", 30)
        another.lease("b", 30)
        outbox.lease("a", 30)
        another.lease("b", 30)

        assert outbox.lease("a", 0.0) == frozenset()

        assert another.lease("b", 30) == frozenset(ALL)

    def test_a_lease_that_was_not_renewed_ends(self, outbox: DeskedOutbox, another: DeskedOutbox) -> None:
        outbox.lease("a", 0.5)
        assert another.lease("b", 30) == frozenset()

        until(lambda: another.lease("b", 30) == frozenset(ALL))

        assert outbox.lease("a", 30) == frozenset(), "it comes back as a new one"

    def test_relays_that_lease_at_once_never_share_a_shard(self, ground: OutboxGround) -> None:
        found: list[frozenset[int]] = []
        lock = threading.Lock()

        def relay(name: str) -> None:
            outbox = ground.outbox(GROUP)
            mine: frozenset[int] = frozenset()
            for _ in range(6):
                mine = frozenset(outbox.lease(name, 60))
            with lock:
                found.append(mine)
            outbox.close()

        threads = [threading.Thread(target=relay, args=[f"r{number}"]) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

        assert len(found) == 4
        assert sum(map(len, found)) == len(frozenset().union(*found)), "no shard has two"
