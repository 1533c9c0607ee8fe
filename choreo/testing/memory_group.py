"""Who owns which partition, and who shall? A consumer group's coordinator, cooperative as KIP-848: a partition that has to
move is first given back by its owner, and only then taken by the member it is meant for.

Nothing here is thread-safe, and nobody is called: members ask what they have to give back or may take, and say so when
they did. tests/unit/test_memory_group.py drives it through random joins, leaves and growth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from choreo.record import Committed, TopicPartition

MAX_METADATA_CHARS = 4095


class Group:
    """One group. `committed` outlives its members; it only rises, but for transactions, which aren't checked.

    The generation rises with each rebalance, also when a partition was given back. A member is of it at once, behind its own back,
    unless it still owns what it shall give back: then only when it has done so, as with KIP-848 (with the classic protocol at once). So
    an identity that was taken within `revoked` is good until that returns."""

    def __init__(self) -> None:
        self.committed: dict[TopicPartition, Committed] = {}
        self._topics: dict[int, tuple[str, ...]] = {}
        self._owners: dict[TopicPartition, int] = {}
        self._targets: dict[TopicPartition, int] = {}
        self._generation = 0
        self._generations: dict[int, int] = {}
        """Of each member that was told of an assignment."""
        self._members_changed = False

    def join(self, member: int, topics: Sequence[str]) -> None:
        """A new member, or other topics for one that is there. `rebalance` says who gets what."""
        self._topics[member] = tuple(topics)
        self._members_changed = True

    def leave(self, member: int) -> list[TopicPartition]:
        """It is gone, and owns nothing any more; what it did own."""
        self._members_changed |= self._topics.pop(member, None) is not None
        self._generations.pop(member, None)
        owned = self.owned(member)
        self.release(member, owned)
        return owned

    def has(self, member: int) -> bool:
        return member in self._topics

    def rebalance(self, partitions_of: Mapping[str, int]) -> None:
        """Decides anew who shall own what, given each topic's number of partitions. Owners keep what they may keep."""
        before, self._targets = self._targets, {}
        load = dict.fromkeys(self._topics, 0)
        for topic in sorted({topic for topics in self._topics.values() for topic in topics}):
            eligible = [member for member, topics in self._topics.items() if topic in topics]
            partitions = [TopicPartition(topic, number) for number in range(partitions_of.get(topic, 0))]
            for partition, member in self._shared_out(partitions, eligible, load):
                self._targets[partition] = member
                load[member] += 1
        if self._members_changed or self._targets != before:
            self._members_changed = False
            self._next_generation()

    def _next_generation(self) -> None:
        self._generation += 1
        for member in self._generations:
            self._keep_up(member)

    def _keep_up(self, member: int) -> None:
        if self.has(member) and not self.to_release(member):
            self._generations[member] = self._generation

    def identity(self, member: int) -> bytes | None:
        """Who it is just now; None before it took its first assignment, and when it is gone."""
        generation = self._generations.get(member)
        return None if generation is None else f"{member}/{generation}".encode()

    def refusal(self, identity: bytes) -> str | None:
        """Why offsets of a transaction aren't taken from it: an error code. None: they are."""
        member = identity.partition(b"/")[0]
        if not member.isdigit() or not self.has(int(member)):
            return "UNKNOWN_MEMBER_ID"
        return None if identity == self.identity(int(member)) else "ILLEGAL_GENERATION"

    def _shared_out(
        self, partitions: Sequence[TopicPartition], eligible: Sequence[int], load: Mapping[int, int]
    ) -> list[tuple[TopicPartition, int]]:
        each, spare = divmod(len(partitions), len(eligible))
        count = dict.fromkeys(eligible, 0)
        shared: list[tuple[TopicPartition, int]] = []
        homeless: list[TopicPartition] = []
        for partition in partitions:
            owner = self._owners.get(partition, -1)
            if owner not in count or count[owner] > each or (count[owner] == each and spare == 0):
                homeless.append(partition)
                continue
            spare -= count[owner] == each
            count[owner] += 1
            shared.append((partition, owner))
        for partition in homeless:
            member = min(eligible, key=lambda candidate: (count[candidate], load[candidate]))
            count[member] += 1
            shared.append((partition, member))
        return shared

    def owned(self, member: int) -> list[TopicPartition]:
        return sorted(partition for partition, owner in self._owners.items() if owner == member)

    def owns(self, member: int, partition: TopicPartition) -> bool:
        return self._owners.get(partition) == member

    def to_release(self, member: int) -> list[TopicPartition]:
        """What the member owns and shall give back."""
        return [partition for partition in self.owned(member) if self._targets.get(partition) != member]

    def to_take(self, member: int) -> list[TopicPartition]:
        """What is meant for the member and owned by nobody."""
        return sorted(partition for partition, target in self._targets.items() if target == member and partition not in self._owners)

    def take(self, member: int, partitions: Iterable[TopicPartition]) -> None:
        self._owners.update(dict.fromkeys(partitions, member))
        self._keep_up(member)

    def release(self, member: int, partitions: Iterable[TopicPartition]) -> None:
        """Gives back what the member still owns of them."""
        owned = [partition for partition in partitions if self.owns(member, partition)]
        for partition in owned:
            del self._owners[partition]
        if owned:
            self._next_generation()

    def commit(
        self, member: int, offsets: Mapping[TopicPartition, Committed]
    ) -> tuple[dict[TopicPartition, Committed], dict[TopicPartition, Committed]]:
        """Commits what the member owns, never going back: what was accepted, and what was refused."""
        refused = {partition: wanted for partition, wanted in offsets.items() if not self.owns(member, partition)}
        accepted = {partition: wanted for partition, wanted in offsets.items() if partition not in refused}
        for partition, wanted in accepted.items():
            there = self.committed.get(partition)
            if there is None or wanted.offset >= there.offset:
                self.committed[partition] = wanted
        return accepted, refused
