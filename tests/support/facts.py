"""What follows from a history? Where each event stands, when it was finished, and the effects of each key in order."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import inf

from choreo.envelope import ID, header_text
from choreo.record import TopicPartition
from tests.support.history import EVERY_HANDLER, Effect, History, Letter, Produced, Skip


@dataclass(frozen=True, slots=True)
class Admitted:
    """What this run may do beyond the strict promise. Nothing, unless said.

    `doubles`: pairs (handler, event id) that were in flight at a kill, which may have any number of effects. `max_doubles`:
    how many surplus effects there may be in all; alone, it admits them for any pair. `rewinds_per_lane`: how often a lane
    may go back. `resets`: partitions whose committed offset was set back by a command.
    """

    doubles: frozenset[tuple[str, str]] = frozenset()
    max_doubles: int | None = None
    rewinds_per_lane: int | None = None
    resets: frozenset[TopicPartition] = frozenset()

    def double(self, handler: str, event_id: str) -> bool:
        return (handler, event_id) in self.doubles or (not self.doubles and bool(self.max_doubles))


@dataclass(frozen=True)
class Facts:
    """A history, and what follows from it: worked out once, read by all checks."""

    history: History
    admitted: Admitted = field(default_factory=Admitted)

    @cached_property
    def logged_ids(self) -> dict[str, list[tuple[TopicPartition, int]]]:
        """Where the log has each event id."""
        found: dict[str, list[tuple[TopicPartition, int]]] = defaultdict(list)
        for record in self.history.log or ():
            event_id = header_text(dict(record.headers).get(ID))
            if event_id is not None:
                found[event_id].append((TopicPartition(record.topic, record.partition), record.offset))
        return found

    @cached_property
    def written(self) -> list[Produced]:
        """Events that are in Kafka: the acknowledged ones, and those of unknown outcome that the log has."""
        return [event for event in self.history.produced if event.outcome == "ok"] + [
            Produced(event.event_id, place.topic, place.partition, offset, event.key, event.value, event.headers, event.amount)
            for event in self.history.produced
            if event.outcome == "unknown"
            for place, offset in self.logged_ids.get(event.event_id, ())
        ]

    @cached_property
    def places(self) -> dict[str, list[Produced]]:
        """Each event id's records: more than one where a duplicate was written."""
        found: dict[str, list[Produced]] = defaultdict(list)
        for event in self.written:
            found[event.event_id].append(event)
        return found

    @cached_property
    def settled_at_s(self) -> dict[tuple[str, str], float]:
        """When (handler, event id) was first accounted for; -inf where it was, and nobody knows when."""
        found: dict[tuple[str, str], float] = {}
        ends: list[Effect | Letter | Skip] = [*self.history.effects, *self.history.letters, *self.history.skips]
        for end in ends:
            at_s = -inf if end.at_s is None else end.at_s
            found[end.handler, end.event_id] = min(at_s, found.get((end.handler, end.event_id), inf))
        return found

    def handlers_of(self, topic: str) -> list[str]:
        return [handler for handler, topics in self.history.handlers.items() if topic in topics]

    def finished_at_s(self, event: Produced, handler: str) -> float:
        """When `handler` was done with it; inf for never."""
        ends = self.settled_at_s
        return min(ends.get((handler, event.event_id), inf), ends.get((EVERY_HANDLER, event.event_id), inf))

    @cached_property
    def lanes(self) -> dict[tuple[str, TopicPartition, bytes], list[tuple[int, Effect]]]:
        """The effects of each key in ledger order, with their events' offsets.

        Without those that have no order: keyless ones, forced replays, and events that stand at several places.
        """
        found: dict[tuple[str, TopicPartition, bytes], list[tuple[int, Effect]]] = defaultdict(list)
        for effect in self.history.effects:
            places = self.places.get(effect.event_id, [])
            if effect.epoch or effect.handler in self.history.unordered or len({(p.place, p.key) for p in places}) != 1:
                continue
            key = places[0].key
            if key is not None:
                offset = min(place.offset for place in places)
                found[effect.handler, places[0].place, key].append((offset, effect))
        return found

    @cached_property
    def rewinds(self) -> dict[tuple[str, TopicPartition, bytes], int]:
        """How often each lane went back."""
        return {lane: sum(1 for (before, _), (after, _) in pairwise(rows) if after <= before) for lane, rows in self.lanes.items()}

    @cached_property
    def effect_counts(self) -> Counter[tuple[str, str, str]]:
        """Effects of each (handler, event id, epoch)."""
        return Counter((effect.handler, effect.event_id, effect.epoch) for effect in self.history.effects)
