"""What is one broker? Its ports, its settings, its directory, and the process of its present life."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from signal import Signals

from tests.support import guard
from tests.support.kafka_jars import CACHE, LOG_CONFIG, KafkaUnavailableError, java, locked

STOP_DEADLINE_S = 60.0
LISTENER = "CLIENT"
ADMIN = "admin"

QUICK_JVM = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
"""For tests: starts in three quarters of the time. The second compiler is off, so not for benchmarks."""
STEADY_JVM = ("-Xmx512m",)

COMMON_SETTINGS = {
    "process.roles": "broker,controller",
    "inter.broker.listener.name": LISTENER,
    "controller.listener.names": "CONTROLLER",
    "num.partitions": "1",
    "auto.create.topics.enable": "false",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "1",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "8388608",
    # Groups form at once, and a test may ask for a session as short as a second.
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.assignment.interval.ms": "0",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "200",
    "group.consumer.heartbeat.interval.ms": "300",
}

LONE_SETTINGS = {
    # A killed broker may register again only when its old session has run out: 9 s by default, too long to wait in a test. Three
    # brokers keep the default, because how long a failover takes is what their tests look at.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
}


def password_of(user: str) -> str:
    """The password a user is made with."""
    return f"{user}-secret"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, below the range of outgoing connections.

    Within that range a client that knocks on a dead broker's port may be given that very port for its own end, and then
    the broker can't come back on it.
    """
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = range(max(1024, lowest_outgoing - 12_000), lowest_outgoing)
    found: list[int] = []
    with ExitStack() as held:
        for port in random.SystemRandom().sample(candidates, len(candidates)):
            bound = held.enter_context(socket.socket())
            try:
                bound.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise KafkaUnavailableError(f"no {count} free ports in {candidates}")


class KafkaNode:
    """One broker. Owns its process; `directory` is set before the first launch."""

    def __init__(self, number: int, port: int, controller_port: int) -> None:
        self.number = number
        self.port = port
        self.controller_port = controller_port
        self.directory = Path()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def settings_file(self) -> Path:
        return self.directory / "server.properties"

    @property
    def log(self) -> Path:
        return self.directory / "broker.log"

    @property
    def alive(self) -> bool:
        """Whether its process is there, stopped or not."""
        return self.process is not None and self.process.poll() is None

    def prepare(self, directory: Path, voters: Sequence[KafkaNode], *, sasl: bool, properties: Mapping[str, str]) -> None:
        """Makes its directory and writes its settings, `properties` over the defaults."""
        self.directory = directory
        directory.mkdir()
        settings = {**self._settings(voters, sasl=sasl), **(_sasl_settings() if sasl else {}), **properties}
        self.settings_file.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def launch(self, java_command: Sequence[str]) -> None:
        """A new life on the old ports and data."""
        assert not self.alive, f"node {self.number} is running; kill or terminate it first"
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the tests, which then close their brokers.
            self.process = subprocess.Popen(
                [*java_command, "kafka.Kafka", str(self.settings_file)],
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
            )
        guard.watch(self.process.pid)

    def signal(self, number: Signals) -> None:
        """Sends a signal to a living process; to none otherwise."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def end(self, number: Signals) -> None:
        """Sends `number` and waits until the process is gone. Does nothing for one that is gone."""
        if self.process is None:
            return
        self.signal(number)
        if number is signal.SIGTERM:
            self.signal(signal.SIGCONT)
        self.process.wait(STOP_DEADLINE_S)
        guard.forget(self.process.pid)

    def _settings(self, voters: Sequence[KafkaNode], *, sasl: bool) -> dict[str, str]:
        copies = len(voters)
        in_sync = str(min(2, copies))
        return {
            **COMMON_SETTINGS,
            **(LONE_SETTINGS if copies == 1 else {}),
            "node.id": str(self.number),
            "listeners": f"{LISTENER}://127.0.0.1:{self.port},CONTROLLER://127.0.0.1:{self.controller_port}",
            "advertised.listeners": f"{LISTENER}://127.0.0.1:{self.port}",
            "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{LISTENER}:{'SASL_PLAINTEXT' if sasl else 'PLAINTEXT'}",
            "controller.quorum.voters": ",".join(f"{voter.number}@127.0.0.1:{voter.controller_port}" for voter in voters),
            "log.dirs": str(self.directory / "data"),
            "default.replication.factor": str(copies),
            "min.insync.replicas": in_sync,
            "offsets.topic.replication.factor": str(copies),
            "transaction.state.log.replication.factor": str(copies),
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.replication.factor": str(copies),
            "share.coordinator.state.topic.min.isr": in_sync,
        }


def _sasl_settings() -> dict[str, str]:
    login = "org.apache.kafka.common.security.scram.ScramLoginModule"
    return {
        "sasl.enabled.mechanisms": "SCRAM-SHA-256",
        "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-256",
        f"listener.name.{LISTENER.lower()}.scram-sha-256.sasl.jaas.config": (
            f'{login} required username="{ADMIN}" password="{password_of(ADMIN)}";'
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # ANONYMOUS is who the brokers are on the controllers' listener; clients have no way in without a password.
        "super.users": f"User:{ADMIN};User:ANONYMOUS",
        "allow.everyone.if.no.acl.found": "false",
    }


class Jvm:
    """How Java runs Kafka: the options, the class path and, for QUICK_JVM, an archive of Kafka's loaded classes.

    The archive (application class-data sharing) halves the start. The first plain cluster of a machine makes it as its
    broker ends; the JVM itself ignores one that does not fit.
    """

    def __init__(self, jars: Path, options: Sequence[str], directory: Path, *, may_archive: bool) -> None:
        self._jars = jars
        self._options = tuple(options)
        fits = hashlib.sha256(f"{java()}\n{jars}\n{self._options}".encode()).hexdigest()[:12]
        self._archive = CACHE / f"classes-{fits}.jsa"
        self._fresh = directory / "fresh.jsa"
        self._shares = self._options == QUICK_JVM
        self.archiving = self._shares and may_archive and not self._archive.exists()
        """Whether the broker must end by SIGTERM, for it then writes the archive."""

    def tool(self) -> list[str]:
        """The command up to the main class, for a short tool."""
        shared = [f"-XX:SharedArchiveFile={self._archive}", "-Xlog:disable"] if self._shares and self._archive.exists() else []
        return [java(), *self._options, *shared, f"-Dlog4j2.configurationFile={LOG_CONFIG}", "-cp", f"{self._jars}/*"]

    def broker(self) -> list[str]:
        """The command up to the main class, for a broker."""
        command = self.tool()
        return [command[0], f"-XX:ArchiveClassesAtExit={self._fresh}", "-Xlog:disable", *command[1:]] if self.archiving else command

    def keep_archive(self) -> None:
        """The broker that was archiving has ended."""
        self.archiving = False
        if self._fresh.exists():
            CACHE.mkdir(parents=True, exist_ok=True)
            with locked(CACHE / "lock"):
                # Copied beside its place first, for the cluster's directory may be on another file system.
                beside = self._archive.with_suffix(f".{os.getpid()}")
                shutil.copyfile(self._fresh, beside)
                beside.replace(self._archive)
