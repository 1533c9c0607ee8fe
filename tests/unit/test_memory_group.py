"""Does the memory broker's coordinator keep what a group may rely on, whoever joins, leaves, dies or dawdles?"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from choreo.record import Committed, TopicPartition
from choreo.testing.memory_group import Group

TOPICS = ("orders", "payments")
A, B, C = 1, 2, 3


def partitions(topic: str, *numbers: int) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in numbers]


def settle(group: Group, *members: int) -> None:
    """Each member gives back and takes, until nobody has anything left to do."""
    while any(group.to_release(member) or group.to_take(member) for member in members):
        for member in members:
            group.release(member, group.to_release(member))
            group.take(member, group.to_take(member))


def test_the_first_member_gets_everything() -> None:
    group = Group()

    group.join(A, ["orders"])
    group.rebalance({"orders": 3, "payments": 3})
    settle(group, A)

    assert group.owned(A) == partitions("orders", 0, 1, 2)


def test_a_partition_is_taken_only_after_it_was_given_back() -> None:
    group = Group()
    group.join(A, ["orders"])
    group.rebalance({"orders": 2})
    settle(group, A)

    group.join(B, ["orders"])
    group.rebalance({"orders": 2})
    before = (group.to_release(A), group.to_take(B))
    group.release(A, group.to_release(A))
    after = (group.to_release(A), group.to_take(B))

    assert before == (partitions("orders", 1), [])
    assert after == ([], partitions("orders", 1))


def test_who_stays_keeps_what_it_may_keep() -> None:
    group = Group()
    for member in (A, B, C):
        group.join(member, ["orders"])
    group.rebalance({"orders": 6})
    settle(group, A, B, C)
    before = (group.owned(A), group.owned(B))

    group.leave(C)
    group.rebalance({"orders": 6})
    released = (group.to_release(A), group.to_release(B))
    settle(group, A, B)

    assert released == ([], [])
    assert set(group.owned(A)) > set(before[0])
    assert set(group.owned(B)) > set(before[1])


def test_partitions_of_several_topics_are_spread_together() -> None:
    group = Group()
    group.join(A, TOPICS)
    group.join(B, TOPICS)

    group.rebalance({"orders": 1, "payments": 1})
    settle(group, A, B)

    assert (len(group.owned(A)), len(group.owned(B))) == (1, 1)


def test_a_commit_of_somebody_elses_partition_is_refused_and_that_of_an_own_one_is_not() -> None:
    group = Group()
    group.join(A, ["orders"])
    group.rebalance({"orders": 1})
    settle(group, A)
    (own,), (foreign,) = partitions("orders", 0), partitions("orders", 7)

    result = group.commit(A, {own: Committed(3, "text"), foreign: Committed(9)})

    assert result == ({own: Committed(3, "text")}, {foreign: Committed(9)})
    assert group.committed == {own: Committed(3, "text")}


def test_the_text_beside_an_offset_may_change_and_goes_with_it() -> None:
    group = Group()
    group.join(A, ["orders"])
    group.rebalance({"orders": 1})
    settle(group, A)
    (own,) = partitions("orders", 0)
    seen = []

    for wanted in (Committed(3, "a"), Committed(3, "b"), Committed(2, "c"), Committed(4)):
        group.commit(A, {own: wanted})
        seen.append(group.committed[own])

    assert seen == [Committed(3, "a"), Committed(3, "b"), Committed(3, "b"), Committed(4)]


def test_the_generation_rises_behind_the_back_of_who_has_nothing_to_give_back() -> None:
    group = Group()
    group.join(A, ["orders"])
    group.rebalance({"orders": 1})
    settle(group, A)
    before = group.identity(A)
    assert before is not None

    group.join(B, ["orders"])
    group.rebalance({"orders": 1})

    assert group.refusal(before) == "ILLEGAL_GENERATION"
    assert group.refusal(group.identity(A) or b"") is None
    assert group.identity(B) is None
    group.take(B, [])
    assert group.refusal(group.identity(B) or b"") is None


def test_who_has_to_give_back_is_of_its_generation_until_it_did() -> None:
    group = Group()
    group.join(A, ["orders"])
    group.rebalance({"orders": 2})
    settle(group, A)
    before = group.identity(A)
    assert before is not None

    for another in (B, C):
        group.join(another, ["orders"])
        group.rebalance({"orders": 2})
        assert (group.identity(A), group.refusal(before)) == (before, None)
    group.release(A, group.to_release(A))

    assert group.refusal(before) == "ILLEGAL_GENERATION"
    assert group.refusal(group.identity(A) or b"") is None


def test_the_generation_stays_where_nothing_changes() -> None:
    group = Group()
    group.join(A, ["orders"])
    group.rebalance({"orders": 2})
    settle(group, A)
    before = group.identity(A)

    group.rebalance({"orders": 2, "payments": 1})

    assert group.identity(A) == before


class GroupMachine(RuleBasedStateMachine):
    """Members join, leave and follow the group one step at a time, in any order; topics grow; everybody commits."""

    def __init__(self) -> None:
        super().__init__()
        self.group = Group()
        self.sizes = dict.fromkeys(TOPICS, 0)
        self.members: dict[int, tuple[str, ...]] = {}
        self.highest: dict[TopicPartition, int] = {}
        self.next_member = 1

    @rule(topics=st.sampled_from([("orders",), ("payments",), TOPICS]))
    def join(self, topics: tuple[str, ...]) -> None:
        self.members[self.next_member] = topics
        self.group.join(self.next_member, topics)
        self.group.rebalance(self.sizes)
        self.next_member += 1

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(sorted(self.members)))
        del self.members[member]
        self.group.leave(member)
        self.group.rebalance(self.sizes)

    @rule(topic=st.sampled_from(TOPICS), more=st.integers(1, 5))
    def grow(self, topic: str, more: int) -> None:
        self.sizes[topic] += more
        self.group.rebalance(self.sizes)

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(sorted(self.members)))
        self.group.release(member, self.group.to_release(member))

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        member = data.draw(st.sampled_from(sorted(self.members)))
        wanted = self.group.to_take(member)
        others = {partition for other in self.members if other != member for partition in self.group.owned(other)}
        assert not others & set(wanted), "a partition was offered while another member owned it"
        self.group.take(member, wanted)

    @precondition(lambda self: self.members)
    @rule(data=st.data(), offset=st.integers(0, 9))
    def commit(self, data: st.DataObject, offset: int) -> None:
        member = data.draw(st.sampled_from(sorted(self.members)))
        partition = TopicPartition("orders", data.draw(st.integers(0, 3)))
        owned = partition in self.group.owned(member)
        before = self.group.committed.get(partition)

        wanted = {partition: Committed(offset)}
        accepted, refused = self.group.commit(member, wanted)

        assert (accepted, refused) == ((wanted, {}) if owned else ({}, wanted))
        rises = before is None or offset >= before.offset
        assert self.group.committed.get(partition) == (Committed(offset) if owned and rises else before)

    @invariant()
    def owners_are_members_that_asked_for_the_topic(self) -> None:
        for member, topics in self.members.items():
            assert {partition.topic for partition in self.group.owned(member)} <= set(topics)

    @invariant()
    def who_is_there_and_owns_something_is_known_by_what_it_says_of_itself(self) -> None:
        for member in self.members:
            identity = self.group.identity(member)
            assert identity is not None or not self.group.owned(member)
            assert identity is None or self.group.refusal(identity) is None

    @invariant()
    def committed_offsets_only_rise(self) -> None:
        for partition, offset in self.highest.items():
            assert self.group.committed[partition].offset >= offset
        self.highest = {partition: found.offset for partition, found in self.group.committed.items()}

    def teardown(self) -> None:
        """Liveness: once everybody follows, every partition somebody wants is owned by exactly one, and evenly."""
        settle(self.group, *self.members)
        for topic in TOPICS:
            wanting = [member for member, topics in self.members.items() if topic in topics]
            owned = {member: [p for p in self.group.owned(member) if p.topic == topic] for member in wanting}
            everything = sorted(partition for found in owned.values() for partition in found)
            assert everything == (partitions(topic, *range(self.sizes[topic])) if wanting else [])
            counts = [len(found) for found in owned.values()] or [0]
            assert max(counts) - min(counts) <= 1


TestGroupMachine = GroupMachine.TestCase
TestGroupMachine.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
