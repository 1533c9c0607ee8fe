"""Which Kafka do we break? One or three brokers of our own: KRaft, from Apache's jars, on ports and in directories of their own.

``python -m tests.support.kafka_cluster`` starts one and prints its bootstrap until Ctrl-C.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Literal

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as ClientPartition

from tests.support import guard
from tests.support.kafka_access import REQUEST_S, KafkaAccess
from tests.support.kafka_acls import Permissions
from tests.support.kafka_jars import KafkaUnavailableError, java, kafka_jars
from tests.support.kafka_node import ADMIN, QUICK_JVM, STEADY_JVM, Jvm, KafkaNode, free_ports, password_of
from tests.support.waiting import wait_for

READY_DEADLINE_S = 90.0
PROBE = "choreo-test-probe"


class KafkaCluster:
    """One or three brokers as a context manager. Owns its processes, ports and directories, and touches no others.

    Node ids count from 1. `properties` go over the defaults of every node. With `sasl` the clients' listener is
    SASL_PLAINTEXT (SCRAM-SHA-256), users `admin` (may do anything) and `payments` (may do nothing until
    ``permissions.allow``); a password is the user's name and ``-secret``. `port` fixes the first node's port.
    Calls are made by one thread at a time.
    """

    def __init__(
        self,
        nodes: Literal[1, 3] = 1,
        *,
        sasl: bool = False,
        properties: Mapping[str, str] | None = None,
        base_dir: Path | None = None,
        jvm: Sequence[str] = QUICK_JVM,
        port: int | None = None,
    ) -> None:
        self.sasl = sasl
        self.start_s = 0.0
        """How long the first start took, format and readiness included."""
        self._properties = dict(properties or {})
        self._base_dir = base_dir
        self._options = tuple(jvm)
        ports = free_ports(2 * nodes)
        if port is not None:
            ports[0] = port
        self._nodes = {number: KafkaNode(number, *ports[2 * number - 2 : 2 * number]) for number in range(1, nodes + 1)}
        self._directory: Path | None = None
        self._jvm: Jvm | None = None
        self._access: dict[str, KafkaAccess] = {}

    def __enter__(self) -> KafkaCluster:
        began_at = time.monotonic()
        with ExitStack() as undo:
            undo.callback(self.close)
            self._prepare()
            self.start(*self._nodes)
            self._open_for_groups()
            undo.pop_all()
        self.start_s = time.monotonic() - began_at
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- looking --------------------------------------------------------------------------------------------------

    @property
    def bootstrap(self) -> str:
        """All nodes, dead ones too: ``127.0.0.1:21034,127.0.0.1:21036``."""
        return ",".join(f"127.0.0.1:{node.port}" for node in self._nodes.values())

    @property
    def node_ids(self) -> list[int]:
        return list(self._nodes)

    @property
    def running(self) -> list[int]:
        """Nodes whose process lives, stopped ones too."""
        return [number for number, node in self._nodes.items() if node.alive]

    @property
    def permissions(self) -> Permissions:
        """ACLs and passwords; only with `sasl`."""
        return Permissions(self.access())

    def access(self, user: str = ADMIN) -> KafkaAccess:
        """The cluster as `user` sees it; without `sasl` all users are the same."""
        if user not in self._access:
            self._access[user] = KafkaAccess(self.bootstrap, "jars", self.security(user))
        return self._access[user]

    def security(self, user: str = ADMIN, password: str | None = None) -> dict[str, str]:
        """The client settings that log `user` in; nothing without `sasl`."""
        if not self.sasl:
            return {}
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "SCRAM-SHA-256",
            "sasl.username": user,
            "sasl.password": password or password_of(user),
        }

    def pid(self, node: int) -> int:
        """The broker's process; the last one when it is dead."""
        process = self._nodes[node].process
        assert process is not None, f"node {node} was never started"
        return process.pid

    def directory(self, node: int) -> Path:
        """Everything of a node: server.properties, data/, broker.log."""
        return self._nodes[node].directory

    def log(self, node: int) -> str:
        """What the broker has said so far, all its lives together."""
        log = self._nodes[node].log
        return log.read_text(errors="replace") if log.exists() else ""

    # ---- breaking and mending -------------------------------------------------------------------------------------

    def kill(self, node: int) -> None:
        """SIGKILL; the data stays."""
        self._nodes[node].end(signal.SIGKILL)

    def stop(self, node: int) -> None:
        """SIGSTOP: the sockets stay open and nobody answers."""
        self._nodes[node].signal(signal.SIGSTOP)

    def cont(self, node: int) -> None:
        """SIGCONT."""
        self._nodes[node].signal(signal.SIGCONT)

    def terminate(self, node: int) -> None:
        """SIGTERM: a controlled shutdown, also of a stopped node; returns when the process is gone."""
        self._nodes[node].end(signal.SIGTERM)
        if self._jvm is not None and self._jvm.archiving:
            self._jvm.keep_archive()

    def start(self, *nodes: int, ready: bool = True) -> None:
        """Starts dead nodes on the ports and data they had; with `ready` waits until they serve (`wait_ready`).

        Without a majority of the three nodes nothing becomes ready: start them together, or say ``ready=False``.
        """
        assert self._jvm is not None, "enter the cluster first"
        for number in nodes:
            self._nodes[number].launch(self._jvm.broker())
        if ready:
            self.wait_ready(*nodes)

    def wait_ready(self, *nodes: int, deadline_s: float = READY_DEADLINE_S) -> None:
        """Waits until `nodes` are in the metadata, a topic is there or can be made, and a record is acknowledged by all in sync.

        Raises RuntimeError with the end of the broker's log when it dies, TimeoutError when it does not get there.
        """
        ends_at = time.monotonic() + deadline_s
        for ready in (partial(self._listed, nodes), self._probe_topic, self._probe_record):
            while not ready():
                self._refuse_dead(nodes)
                if time.monotonic() > ends_at:
                    raise TimeoutError(f"Kafka was not ready within {deadline_s:g} s; {self._last_words(nodes)}")
                time.sleep(0.05)

    def wait_in_sync(self, *, deadline_s: float = 60.0) -> None:
        """Waits until every replica of every partition is in sync and every partition has a leader."""
        wait_for(self._in_sync, "all replicas in sync", deadline_s=deadline_s, every_s=0.1)

    def heal(self) -> None:
        """Continues what is stopped, starts what is dead, and waits until all replicas are in sync."""
        for number in self.running:
            self.cont(number)
        dead = [number for number in self._nodes if number not in self.running]
        self.start(*dead, ready=False)
        self.wait_ready(*self._nodes)
        self.wait_in_sync()

    def rolling_restart(self) -> None:
        """Each node in turn: a controlled shutdown, a start, and all replicas in sync before the next."""
        for number in self._nodes:
            self.terminate(number)
            self.start(number)
            self.wait_in_sync()

    def close(self) -> None:
        """Ends its own clients and processes and removes its own directories. A second call does nothing."""
        # Clients first: one that lives on without brokers until the interpreter ends may take the process with it (SIGSEGV, seen).
        for access in self._access.values():
            access.close()
        self._access.clear()
        if self._jvm is not None and self._jvm.archiving and self._nodes[1].alive:
            self.terminate(1)
        for node in self._nodes.values():
            node.end(signal.SIGKILL)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def require(self) -> None:
        """Raises KafkaUnavailableError when it could not be started here; fetches the jars if need be, and starts nothing."""
        java()
        kafka_jars()

    # ---- how it gets ready ----------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        if self._base_dir is not None:
            self._base_dir.mkdir(parents=True, exist_ok=True)
        jars = kafka_jars()
        self._directory = Path(tempfile.mkdtemp(prefix="choreo-kafka-", dir=self._base_dir))
        guard.watch_directory(self._directory)
        self._jvm = Jvm(jars, self._options, self._directory, may_archive=len(self._nodes) == 1 and not self.sasl)
        voters = list(self._nodes.values())
        for node in voters:
            node.prepare(self._directory / f"node-{node.number}", voters, sasl=self.sasl, properties=self._properties)
        self._format(self._jvm)

    def _format(self, jvm: Jvm) -> None:
        arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id=choreo{random.SystemRandom().getrandbits(64):016x}"]
        for user in (ADMIN, "payments") if self.sasl else ():
            arguments += ["--add-scram", f"SCRAM-SHA-256=[name={user},password={password_of(user)}]"]
        running = [
            subprocess.Popen(
                [*jvm.tool(), *arguments, "-c", str(node.settings_file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
            for node in self._nodes.values()
        ]
        said = [process.communicate(timeout=READY_DEADLINE_S)[0] for process in running]
        failed = [text for text, process in zip(said, running, strict=True) if process.returncode != 0]
        if failed:
            raise RuntimeError(f"Kafka's storage could not be formatted: {failed[0][-2000:]}")

    def _listed(self, nodes: Sequence[int]) -> bool:
        try:
            return set(nodes) <= set(self.access().admin.list_topics(timeout=2).brokers)
        except KafkaException:
            return False

    def _refuse_dead(self, nodes: Sequence[int]) -> None:
        dead = [number for number in nodes if not self._nodes[number].alive]
        if dead:
            raise RuntimeError(f"Kafka ended by itself: {self._last_words(dead)}")

    def _probe_topic(self) -> bool:
        try:
            if not self.access().partitions(PROBE):
                self.access().create_topic(PROBE)
        except KafkaException:
            return False
        return True

    def _probe_record(self) -> bool:
        failures: list[object] = []
        producer = Producer(self.access().config({"acks": "all", "message.timeout.ms": 5000}))
        producer.produce(PROBE, b"ready?", on_delivery=lambda error, _: failures.append(error) if error else None)
        return producer.flush(10) == 0 and not failures

    def _open_for_groups(self) -> None:
        """The first group that is asked for makes __consumer_offsets; not at the cost of the first test."""
        consumer = Consumer(self.access().config({"group.id": PROBE}))

        def answered() -> bool:
            try:
                return bool(consumer.committed([ClientPartition(PROBE, 0)], timeout=5))
            except KafkaException:
                return False

        try:
            wait_for(answered, "a group coordinator", deadline_s=READY_DEADLINE_S)
        finally:
            consumer.close()

    def _in_sync(self) -> bool:
        try:
            topics = self.access().admin.list_topics(timeout=REQUEST_S).topics.values()
        except KafkaException:
            return False
        return all(len(p.isrs) == len(p.replicas) and p.leader >= 0 for topic in topics for p in topic.partitions.values())

    def _last_words(self, nodes: Sequence[int]) -> str:
        return "; ".join(f"node {number} said: {self.log(number)[-1500:] or 'nothing'}" for number in nodes)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.support.kafka_cluster", description="Runs a Kafka until Ctrl-C.")
    parser.add_argument("--nodes", type=int, choices=(1, 3), default=1)
    parser.add_argument("--port", type=int, help="of the first broker; default: a free one")
    parser.add_argument("--sasl", action="store_true", help="SCRAM-SHA-256, users admin and payments, ACLs")
    asked = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        with KafkaCluster(asked.nodes, sasl=asked.sasl, jvm=STEADY_JVM, port=asked.port) as cluster:
            print(cluster.bootstrap, flush=True)
            print(f"Kafka is ready after {cluster.start_s:.1f} s; Ctrl-C ends it and removes its data", file=sys.stderr)
            while len(cluster.running) == asked.nodes:
                time.sleep(0.5)
            print("a broker ended by itself", file=sys.stderr)
            return 1
    except KeyboardInterrupt:
        return 0
    except KafkaUnavailableError as error:
        print(error, file=sys.stderr)
        return 4


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
