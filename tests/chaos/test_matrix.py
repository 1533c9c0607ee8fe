"""The crash matrix, cell by cell; `make chaos` prints its table. A few kills of each kind of effects are in `make test`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.matrix import KINDS, Kind, kill_at, scene_of, stop_and_continue
from tests.chaos.scene import full, seed_of_run
from tests.conftest import GROUP_PROTOCOLS
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names
from tests.support.postgres import PostgresServer

pytestmark = [pytest.mark.kafka, pytest.mark.chaos]

KILLS = 20 if full() else 4
CELLS = [
    pytest.param(kind, point, GROUP_PROTOCOLS[number % 2], id=f"{kind.name}-{point}")
    for number, (kind, point) in enumerate((kind, point) for kind in KINDS for point in kind.points)
]
QUICK = [
    pytest.param(kind, "in_store_tx" if kind.store else "in_kafka_tx" if kind.atomic else "before_handler", id=kind.name) for kind in KINDS
]
ZOMBIES = [
    pytest.param(kind, point, id=f"{kind.name}-{point}")
    for kind in KINDS
    for point in ("before_handler", *(("in_store_tx",) if kind.transaction else ()), *(("in_kafka_tx",) if kind.atomic else ()))
]


@pytest.mark.long
@pytest.mark.timeout(60 + 15 * KILLS)
@pytest.mark.parametrize(("kind", "point", "group_protocol"), CELLS)
def test_killed_at_any_point_nothing_is_lost_and_only_what_section_5_admits_is_done_twice(
    kind: Kind, point: str, group_protocol: str, kafka: KafkaAccess, names: Names, tmp_path: Path, postgres: PostgresServer
) -> None:
    with scene_of(kind, kafka, names, group_protocol, tmp_path, postgres) as scene:
        kill_at(scene, kind, point, kills=KILLS, seed=seed_of_run())


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("kind", "point"), QUICK)
def test_killed_twice_nothing_is_lost_and_only_what_section_5_admits_is_done_twice(
    kind: Kind, point: str, kafka: KafkaAccess, names: Names, tmp_path: Path, postgres: PostgresServer
) -> None:
    with scene_of(kind, kafka, names, "consumer", tmp_path, postgres) as scene:
        kill_at(scene, kind, point, kills=2, seed=seed_of_run())


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("kind", "point"), ZOMBIES)
def test_a_member_that_was_stopped_past_its_session_does_no_harm(
    kind: Kind, point: str, group_protocol: str, kafka: KafkaAccess, names: Names, tmp_path: Path, postgres: PostgresServer
) -> None:
    with scene_of(kind, kafka, names, group_protocol, tmp_path, postgres) as scene:
        stop_and_continue(scene, kind, point, seed=seed_of_run())
