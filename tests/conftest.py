"""What every test may ask for: a Kafka, names of its own, topics, and each of the two group protocols.

A Kafka is taken where there is one (DESIGN section 9): CHOREO_TEST_BOOTSTRAP; Docker, through pytest-docker and
docker-compose.kafka.yml; Apache's own jars with Java 17+. Where there is none the test is skipped, visibly, and fails when
CI=true. Tests that break brokers or need logins always start their own from the jars.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator, Iterator
from contextlib import closing

import pytest
from confluent_kafka import KafkaException

from tests.support.kafka_access import KafkaAccess
from tests.support.kafka_cluster import KafkaCluster
from tests.support.kafka_jars import ROOT, KafkaUnavailableError
from tests.support.names import MakeTopic, Names
from tests.support.postgres import PostgresServer, PostgresUnavailableError

GROUP_PROTOCOLS = ("classic", "consumer")
REACH_S = 15.0
BROKERS = {"kafka", "kafka3_of_session", "kafka_sasl_of_session"}
"""The fixtures that start brokers."""


def pytest_configure() -> None:
    """Screens are as wide as they are where nobody says how wide: COLUMNS may be set by whoever runs the tests."""
    os.environ.pop("COLUMNS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, those on Kafka run in a few of them: each starts its own brokers, and mostly waits."""
    for number, item in enumerate(items):
        fixtures = set(getattr(item, "fixturenames", ()))
        if item.get_closest_marker("kafka") or BROKERS & fixtures:
            if item.path.stem == "test_matrix":
                group = f"matrix {number % 2}"
            elif "kafka3_of_session" in fixtures:
                group = "kafka3"
            else:
                group = "conformance" if "conformance" in item.path.parts else "kafka"
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may be no UTF-8, on purpose; reports travel between processes as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[KafkaAccess]:
    """One broker for the whole run, shared: nobody breaks it. Started with the first test that asks."""
    given = os.environ.get("CHOREO_TEST_BOOTSTRAP")
    if given:
        with closing(_reachable(KafkaAccess(given, "CHOREO_TEST_BOOTSTRAP"))) as access:
            yield access
    elif _docker_works():
        request.getfixturevalue("docker_services")
        with closing(_reachable(KafkaAccess(f"127.0.0.1:{_docker_port()}", "docker"))) as access:
            yield access
    else:
        with _started(KafkaCluster(1)) as cluster:
            yield cluster.access()


@pytest.fixture(scope="session")
def kafka3_of_session() -> Iterator[KafkaCluster]:
    """Three brokers for the whole run; ask for `kafka3`."""
    with _started(KafkaCluster(3)) as cluster:
        yield cluster


@pytest.fixture
def kafka3(kafka3_of_session: KafkaCluster) -> Iterator[KafkaCluster]:
    """Three brokers, to be broken: what a test leaves dead or stopped is mended after it."""
    yield kafka3_of_session
    kafka3_of_session.heal()


@pytest.fixture(scope="session")
def kafka_sasl_of_session() -> Iterator[KafkaCluster]:
    """A broker with logins and ACLs for the whole run; ask for `kafka_sasl`."""
    with _started(KafkaCluster(1, sasl=True)) as cluster:
        yield cluster


@pytest.fixture
def kafka_sasl(kafka_sasl_of_session: KafkaCluster) -> Iterator[KafkaCluster]:
    """A broker with logins (`admin`, `payments`) and without any ACL; those that a test adds are taken back after it."""
    yield kafka_sasl_of_session
    for acl in kafka_sasl_of_session.permissions.all():
        kafka_sasl_of_session.permissions.disallow(acl)


@pytest.fixture(scope="session")
def postgres_of_session() -> Iterator[PostgresServer]:
    """A PostgreSQL for the whole run; ask for `postgres`. Without one a test is skipped, or fails when CI=true."""
    try:
        server = PostgresServer().__enter__()
    except PostgresUnavailableError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI=true and no PostgreSQL: {error}", pytrace=False)
        pytest.skip(f"no PostgreSQL: {error}")
    yield server
    server.__exit__()


@pytest.fixture
def postgres(postgres_of_session: PostgresServer) -> Iterator[PostgresServer]:
    """A real PostgreSQL, to be broken: what a test leaves stopped is started after it. Its databases are each test's own."""
    yield postgres_of_session
    postgres_of_session.start()


@pytest.fixture
def names(request: pytest.FixtureRequest) -> Names:
    """Topic and group names of this test alone."""
    return Names(request.node.name)


@pytest.fixture
def make_topic(kafka: KafkaAccess, names: Names) -> Iterator[MakeTopic]:
    """Makes topics on `kafka`; they are deleted after the test."""
    make = MakeTopic(kafka, names)
    yield make
    make.delete_all()


@pytest.fixture(params=GROUP_PROTOCOLS)
def group_protocol(request: pytest.FixtureRequest) -> str:
    """Each of the group protocols in turn: a test that asks for it runs twice."""
    return str(request.param)


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    """Tells pytest-docker what to start."""
    return str(ROOT / "docker-compose.kafka.yml")


def _started(cluster: KafkaCluster) -> KafkaCluster:
    """The cluster, entered by its caller; a test without a Kafka is skipped, or fails when CI=true."""
    missing = ""
    try:
        cluster.require()
    except KafkaUnavailableError as error:
        missing = str(error)
    if missing and os.environ.get("CI") == "true":
        pytest.fail(f"CI=true and no Kafka: {missing}", pytrace=False)
    if missing:
        pytest.skip(f"no Kafka: {missing}")
    return cluster


def _reachable(kafka: KafkaAccess) -> KafkaAccess:
    try:
        kafka.admin.list_topics(timeout=REACH_S)
    except KafkaException as error:
        pytest.fail(f"{kafka.origin}: no Kafka answers at {kafka.bootstrap}: {error}", pytrace=False)
    return kafka


def _docker_works() -> bool:
    try:
        return all(
            subprocess.run(["docker", *words], capture_output=True, check=False, timeout=20).returncode == 0
            for words in (["info"], ["compose", "version"])
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return False


def _docker_port() -> str:
    return os.environ.get("CHOREO_KAFKA_PORT", "9092")
