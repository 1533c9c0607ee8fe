"""A service that has not committed anything yet, because nothing has come, never ran: it starts again as at first.

(That who died before the first commit starts again, too, is what W1, W4 and W28 do.)
"""

from __future__ import annotations

import pytest

from tests.chaos.scene import Scene

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]


def test_who_found_empty_topics_starts_again_and_others_join(scene: Scene) -> None:
    first, second = scene.worker("first"), scene.worker("second")
    first.restart()
    scene.stop_cleanly(first)

    first.restart()
    second.restart()
    produced = scene.produce(50)
    report = scene.settle(produced, first, second)

    report.require()
