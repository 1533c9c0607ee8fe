"""What becomes of a worker that is started again each time it has died of one event?"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.scene import CATCH_UP_S, END_S, Scene
from tests.support.facts import Admitted
from tests.support.history import Produced
from tests.support.process import WorkerProcess
from tests.support.waiting import wait_for

MOST_STARTS = 10
"""Then it is said to go on for ever."""


@dataclass
class Crashes:
    """How the starts ended that ended badly. `unclean`: the count of such ends that Kafka had, after each, beside the killer's
    offset. `unclaimed`: what may have a second effect."""

    died_of: list[int] = field(default_factory=list)
    unclean: list[int] = field(default_factory=list)
    unclaimed: frozenset[tuple[str, str]] = frozenset()

    def admitted(self) -> Admitted:
        return Admitted(doubles=self.unclaimed, rewinds_per_lane=len(self.died_of))

    def require_few(self, max_attempts: int) -> None:
        """At most `max_attempts` + 2; one more where a run got past the offset that the run before had recorded, so that the
        count began anew. That may happen once, for from then on every batch is recorded before it is handed out."""
        anew = sum(later <= earlier for earlier, later in pairwise(self.unclean))
        print(f"{len(self.died_of)} starts crashed, counted as {self.unclean}; {len(self.unclaimed)} events may have two effects")
        assert anew <= 1
        assert len(self.died_of) <= max_attempts + 2 + anew


def restart_until_caught_up(scene: Scene, worker: WorkerProcess, killer: Produced) -> Crashes:
    """Starts the worker again each time that it has died, until all there is has been committed."""
    crashes = Crashes()
    while not caught_up(scene, worker):
        crashes.died_of.append(worker.wait(END_S))
        crashes.unclean.append(scene.maps()[killer.partition].unclean)
        crashes.unclaimed |= scene.unclaimed()
        assert len(crashes.died_of) < MOST_STARTS, f"it is not dead-lettered; unclean ends that were counted: {crashes.unclean}"
        worker.start()
    return crashes


def caught_up(scene: Scene, worker: WorkerProcess) -> bool:
    """Whether all has been committed; False when the process ended before."""
    wait_for(
        lambda: not worker.running or scene.kafka.lag(scene.group, [scene.orders]) == 0,
        "the process ends, or all is committed",
        deadline_s=CATCH_UP_S,
    )
    return worker.running


def require_letter(scene: Scene, killer: Produced, crashes: Crashes) -> None:
    """The killer, and nothing else, is a letter, as it came, and was begun in no start but those that crashed."""
    (letter,) = scene.letters_written()
    assert (letter.event_id, letter.key, letter.value) == (killer.event_id, killer.key, killer.value)
    assert [(state.event_id, state.kind) for state in scene.letter_states()] == [(killer.event_id, "crash-loop")]
    assert scene.called_ids().count(killer.event_id) == len(crashes.died_of)
