"""What the chaos tests share: a scene on the broker of the whole run, and one on each group protocol on three brokers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.chaos.matrix import RESULTS, Cell, table
from tests.chaos.scene import PATIENT_SESSION_MS, Scene
from tests.conftest import GROUP_PROTOCOLS
from tests.support.kafka_access import KafkaAccess
from tests.support.kafka_cluster import KafkaCluster
from tests.support.names import Names


@pytest.fixture
def scene(kafka: KafkaAccess, names: Names, group_protocol: str, tmp_path: Path) -> Iterator[Scene]:
    """A service of this test alone; each test that asks runs once with each group protocol."""
    with closing(Scene(kafka, names, group_protocol, tmp_path)) as made:
        yield made


@pytest.fixture
def scenes3(kafka3: KafkaCluster, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Scene]]:
    """Two services on three brokers, one with each group protocol, that meet the same faults at the same time."""
    with ExitStack() as stack:
        made = []
        for protocol in GROUP_PROTOCOLS:
            directory = tmp_path / protocol
            directory.mkdir()
            names = Names(f"{protocol}-{request.node.name}")
            scene = Scene(kafka3.access(), names, protocol, directory, session_ms=PATIENT_SESSION_MS)
            made.append(stack.enter_context(closing(scene)))
        yield made
        kafka3.heal()


@pytest.fixture(autouse=True)
def cells_of_this_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the cells of the crash matrix came to goes with the test's report: it may have run in another process."""
    yield
    request.node.user_properties.extend(("cell", asdict(cell)) for cell in RESULTS)
    RESULTS.clear()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the crash matrix."""
    reports = [report for of_a_kind in terminalreporter.stats.values() for report in of_a_kind if getattr(report, "when", "") == "teardown"]
    cells = [Cell(**found) for report in reports for name, found in report.user_properties if name == "cell"]
    if cells:
        terminalreporter.section("crash matrix")
        terminalreporter.write_line(table(sorted(cells, key=lambda cell: (cell.kind, cell.fault))))
