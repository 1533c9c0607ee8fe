"""What does a service say whose topics are not there?"""

from __future__ import annotations

from pathlib import Path

import pytest

from choreo import ConfigurationError
from tests.kafka.ground import Ground
from tests.kafka.shop import Book, Pay, nothing

pytestmark = pytest.mark.kafka

USAGE = 2
END_S = 30.0


async def test_every_missing_topic_is_named_with_what_it_is_for_and_the_command_that_makes_it(ground: Ground) -> None:
    ground.make(orders=1)

    with pytest.raises(ConfigurationError) as refused:
        await ground.run(ground.service(Pay(nothing), topic_names={"orders": "not-there"}))

    assert str(refused.value) == (
        f"payments: topics missing, or not visible to this user: {ground.topic('paid')} (emitted), {ground.topic('not-there')} (handled); "
        "make them with: choreo topics apply MODULE:NAME --yes"
    )


async def test_choreos_own_topics_are_looked_for_before_anything_is_read(ground: Ground) -> None:
    ground.make(orders=1)
    ground.kafka.delete_topics([ground.dlq])

    with pytest.raises(ConfigurationError, match=f"{ground.dlq} \\(choreo's own\\)"):
        await ground.run(ground.service(Book()))

    assert ground.committed("orders") is None


def test_the_command_line_says_so_in_one_line_and_exits(ground: Ground, tmp_path: Path) -> None:
    with ground.process("tests.kafka.shop:payments", tmp_path / "worker.log") as worker:
        code = worker.wait(END_S)

    (line,) = worker.output().splitlines()
    assert code == USAGE
    assert ground.topic("orders") in line
    assert "choreo topics apply" in line
