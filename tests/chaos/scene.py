"""One service in one test: its topics, its group, its workers, what they left behind, and the oracle's word on it."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from choreo.core.offset_map import OffsetMap
from choreo.envelope import CAUSATION_ID, ID, child_id, header_text
from choreo.letter import LetterState, dlq_headers, dlq_topic, letters_topic, read_state, replay_topic
from choreo.record import Record, TopicPartition
from choreo.testing.murmur2 import partition_of
from tests.chaos.attempts import AttemptsFile
from tests.chaos.conduct import CHILD_TYPE, DONE, HANDLER, SERVICE, Conduct
from tests.support.checker import Report, check
from tests.support.commits import CommitWatch
from tests.support.databases import Database, claimed, effects, waiting_rows
from tests.support.effects import EffectsLedger
from tests.support.facts import Admitted
from tests.support.history import CleanStop, Commit, Effect, History, Letter, Produced, Recovery
from tests.support.kafka_access import KafkaAccess
from tests.support.names import Names
from tests.support.nemesis import SEED_VARIABLE
from tests.support.offset_maps import maps
from tests.support.process import READY, WorkerProcess
from tests.support.producer import produce_events, random_events
from tests.support.waiting import wait_for

WORKER = Path(__file__).with_name("worker_main.py")
PARTITIONS = 4
PATIENT_SESSION_MS = 45_000
"""As it is by default. For members that leave by themselves, if at all: the machine may be busy, or a broker away."""
HEARTBEAT_MS = 300
CATCH_UP_S = 45.0
PUBLISHED_S = 20.0
"""A dead relay keeps its shards until its lease ends."""
END_S = 30.0
SHOWN_CHARS = 6000


class Scene:
    """Owns its topics and its workers; `close` ends both. `protocol`: the workers' group protocol, unless one is told another.
    `login`: who the workers are; the test itself is who `kafka` says. `session_ms`: how long a silent member is waited for;
    short, so that a dead one's partitions move soon. All workers share one ledger and one claims file; or `database`, which then has
    the claims, and the effects of conducts with a `transaction`.
    """

    def __init__(
        self,
        kafka: KafkaAccess,
        names: Names,
        protocol: str,
        directory: Path,
        *,
        partitions: int = PARTITIONS,
        session_ms: int = 1500,
        login: Mapping[str, str] | None = None,
        database: Database | None = None,
    ) -> None:
        self.kafka = kafka
        self._session_ms = session_ms
        self._login = kafka.security if login is None else login
        self.protocol = protocol
        self.directory = directory
        self.prefix = f"{names.prefix}."
        self.group = names.group(SERVICE)
        self.orders, self.notes = names.topic("orders"), names.topic("notes")
        self.dlq, self.letters, self.replays = (names.topic(topic(SERVICE)) for topic in (dlq_topic, letters_topic, replay_topic))
        self.gate = directory / "gate"
        self.store = directory / "claims.db"
        self.database = database
        self.ledger = EffectsLedger(directory / "ledger.db")
        self.attempts = AttemptsFile(directory / "attempts")
        self._workers: list[WorkerProcess] = []
        kafka.create_topic(self.orders, partitions=partitions)
        kafka.create_topic(self.notes, partitions=2)
        kafka.create_topic(self.dlq, partitions=2)
        kafka.create_topic(self.letters, partitions=2, config={"cleanup.policy": "compact"})
        kafka.create_topic(self.replays)
        kafka.set_session(self.group, session_ms=session_ms, heartbeat_ms=HEARTBEAT_MS)

    # ---- workers --------------------------------------------------------------------------------------------------

    def conduct(self) -> Conduct:
        """What a worker does unless told otherwise: effects in the ledger, claims in the file of all."""
        return Conduct(
            ledger=str(self.ledger.path),
            attempts=str(self.attempts.path),
            store=str(self.store) if self.database is None else self.database.address,
            gate=str(self.gate),
            killed=str(self.directory / "killed"),
        )

    def worker(
        self,
        name: str = "a",
        conduct: Conduct | None = None,
        *,
        failpoint: str | None = None,
        properties: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        protocol: str | None = None,
        script: Path | Sequence[str] = WORKER,
        ready: str = READY,
    ) -> WorkerProcess:
        """A member that is not started yet. `properties`: librdkafka's, over the session's and the cluster's."""
        protocol = protocol or self.protocol
        classic = {"session.timeout.ms": f"{self._session_ms}", "heartbeat.interval.ms": f"{HEARTBEAT_MS}"}
        session = classic if protocol == "classic" else {}
        settings = {
            "CHOREO_BOOTSTRAP": self.kafka.bootstrap,
            "CHOREO_GROUP_PROTOCOL": protocol,
            "CHOREO_TOPIC_PREFIX": self.prefix,
            "CHOREO_KAFKA_PROPERTIES": json.dumps({**self._login, **session, **(properties or {})}),
        }
        worker = WorkerProcess(
            script,
            log=self.directory / f"{name}-{len(self._workers)}.log",
            environment={**settings, **(conduct or self.conduct()).environment(), **(environment or {})},
            failpoint=failpoint,
            ready=ready,
            cwd=self.directory,
        )
        self._workers.append(worker)
        return worker

    def open_gate(self) -> None:
        """Handlers that hold may go on."""
        self.gate.touch()

    # ---- what went in and what came out -----------------------------------------------------------------------------

    def produce(self, count: int, *, keys: int = 10, seed: int = 1) -> list[Produced]:
        """So many events of so many keys, acknowledged."""
        return produce_events(self.kafka, self.orders, random_events(count, keys=keys, seed=seed))

    def produce_keys(self, *keys: str) -> list[Produced]:
        """One event of each of these keys, in this order, acknowledged."""
        return produce_events(self.kafka, self.orders, [(key, 1 + number) for number, key in enumerate(keys)])

    def produce_to(self, partition: int, count: int) -> list[Produced]:
        """So many events of keys that stand in one partition, acknowledged."""
        of = len(self.kafka.partitions(self.orders))
        keys = [key for key in (f"k-{number}" for number in range(100 * of)) if partition_of(key.encode(), of) == partition]
        return produce_events(self.kafka, self.orders, [(keys[number % len(keys)], 1) for number in range(count)])

    def claimed(self) -> frozenset[str]:
        """The ids of the events that are claimed on disk."""
        if self.database is not None:
            return claimed(self.database)
        if not self.store.exists():
            return frozenset()
        with closing(sqlite3.connect(f"file:{self.store}?mode=ro", uri=True)) as connection:
            try:
                return frozenset(row[0] for row in connection.execute("select event_id from choreo_claims"))
            except sqlite3.OperationalError:
                return frozenset()

    @contextmanager
    def claims_held(self) -> Iterator[None]:
        """Nobody else has the lock of the claims' file meanwhile: who is stopped here does not keep it from all others, as SQLite would."""
        with closing(sqlite3.connect(self.store, timeout=END_S, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def unclaimed(self) -> frozenset[tuple[str, str]]:
        """What a crash at this moment may do twice: effects without a claim, and calls that have not ended."""
        claimed = self.claimed()
        effects = {(effect.handler, effect.event_id) for effect in self.effects()}
        return frozenset(pair for pair in effects | self.ledger.unfinished() if pair[1] not in claimed)

    def effect_ids(self) -> list[str]:
        """The events of all effects, in their order."""
        return [effect.event_id for effect in self.effects()]

    def effects(self) -> list[Effect]:
        """What handlers did: in the ledger, and in their transactions."""
        return [*self.ledger.effects(), *(() if self.database is None else effects(self.database))]

    def called_ids(self) -> list[str]:
        """The events of all calls, in the order they began."""
        return [call.event_id for call in self.ledger.calls()]

    def committed(self) -> dict[TopicPartition, int | None]:
        return self.kafka.committed(self.group, [self.orders])

    def maps(self) -> dict[int, OffsetMap]:
        """What stands beside the committed offsets, by partition."""
        return maps(self.kafka, self.group, self.orders)

    def committed_events(self, produced: Collection[Produced]) -> list[Produced]:
        """Those of `produced` that the group will not read again."""
        committed = self.committed()
        return [event for event in produced if event.offset < (committed[event.place] or 0)]

    def watch_commits(self) -> CommitWatch:
        return CommitWatch(self.kafka, self.group, [self.orders])

    def letters_written(self) -> list[Letter]:
        """The records of the dead-letter topic."""
        return [_letter(record) for record in self.kafka.read_all(self.dlq)]

    def letter_states(self) -> list[LetterState]:
        """What the letters topic says, oldest first."""
        states = [read_state(record) for record in self.kafka.read_all(self.letters)]
        return [state for state in states if isinstance(state, LetterState)]

    def children(self) -> dict[str, list[str]]:
        """The ids of the children of each event, in the order of their log."""
        found: dict[str, list[str]] = defaultdict(list)
        for record in self.kafka.read_all(self.notes):
            headers = dict(record.headers)
            found[header_text(headers[CAUSATION_ID]) or ""].append(header_text(headers[ID]) or "")
        return found

    def require_children(self, produced: Sequence[Produced], *, again: Collection[str] = ()) -> None:
        """Each event has its child, with the id that follows from it, and only those in `again` have it more than once; else one that
        stands in the log twice, which a producer may do whose broker does not answer, has it twice."""
        children = self.children()
        copies = Counter(header_text(dict(record.headers).get(ID)) for record in self.kafka.read_all(self.orders))
        for event in produced:
            expected = child_id(event.event_id, SERVICE, HANDLER, "", CHILD_TYPE, (event.key or b"").decode(), "0")
            assert set(children.get(event.event_id, ())) == {expected}, f"children of {event}: {children.get(event.event_id)}"
            found, there = len(children[event.event_id]), copies[event.event_id]
            assert found <= there or event.event_id in again, f"{event} has {found} children, and stands in the log {there} times"

    # ---- the end --------------------------------------------------------------------------------------------------

    def settle(
        self,
        produced: Sequence[Produced],
        *running: WorkerProcess,
        admitted: Admitted | None = None,
        commits: Sequence[Commit] | CommitWatch = (),
        healed_at_s: float | None = None,
        deadline_s: float = CATCH_UP_S,
        earlier_stops: Sequence[CleanStop] = (),
    ) -> Report:
        """Waits until the group has committed everything and the outbox is empty, stops `running` cleanly, and has the oracle judge the run.

        `healed_at_s`: when the last fault was mended, if it is longer ago than this call.
        """
        healed_at_s = time.monotonic() if healed_at_s is None else healed_at_s
        self.kafka.wait_for_no_lag(self.group, [self.orders], deadline_s=max(1.0, healed_at_s + deadline_s - time.monotonic()))
        if self.database is not None:
            database = self.database
            wait_for(lambda: waiting_rows(database) == 0, "all that was committed is published", deadline_s=PUBLISHED_S, every_s=0.05)
        recovery = Recovery(healed_at_s, time.monotonic(), deadline_s)
        stops = self.stop_cleanly(*running)
        if isinstance(commits, CommitWatch):
            commits = commits.stop()
        history = History(
            handlers={HANDLER: frozenset({self.orders})},
            produced=produced,
            effects=self.effects(),
            calls=self.ledger.calls(),
            letters=self.letters_written(),
            commits=commits,
            log=self.kafka.read_all(self.orders),
            recovery=recovery,
            clean_stops=[*earlier_stops, *stops],
        )
        report = check(history, admitted)
        print(report.table())
        return report

    def stop_cleanly(self, *running: WorkerProcess) -> list[CleanStop]:
        """SIGTERM to each at once; each must end by itself with exit code 0."""
        for worker in running:
            worker.sigterm()
        codes = [worker.wait(END_S) for worker in running]
        assert codes == [DONE] * len(running), [worker.output()[-SHOWN_CHARS:] for worker in running]
        return [CleanStop(time.monotonic(), frozenset(worker.pid for worker in running))] if running else []

    def close(self) -> None:
        """Ends the workers, shows what they said, deletes the topics."""
        for worker in self._workers:
            worker.close()
            if worker.log.exists():
                print(f"---- {worker.log.name}, {worker.lives} lives\n{worker.output(all_lives=True)[-SHOWN_CHARS:]}")
        self.ledger.close()
        self.kafka.delete_topics([self.orders, self.notes, self.dlq, self.letters, self.replays])
        self.kafka.close()


def counts(worker: WorkerProcess) -> dict[str, int]:
    """The counters a worker printed at the end of its last life."""
    lines = [line for line in worker.output().splitlines() if line.startswith("COUNTS ")]
    found: dict[str, int] = json.loads(lines[-1].removeprefix("COUNTS "))
    return found


def _letter(record: Record) -> Letter:
    why = dlq_headers(record)
    source = TopicPartition(why["topic"], int(why["partition"]))
    return Letter(why["handler"], why["event-id"], source, int(why["offset"]), record.key, record.value, tuple(record.headers))


def full() -> bool:
    """Whether CHOREO_FULL asks for the long version of the tests."""
    return os.environ.get("CHOREO_FULL", "") not in ("", "0")


def seed_of_run() -> int:
    """CHOREO_SEED, else a new one; printed, so that a run can be repeated."""
    given = os.environ.get(SEED_VARIABLE)
    seed = int(given) if given else random.SystemRandom().getrandbits(32)
    print(f"{SEED_VARIABLE}={seed} repeats this run's choices", flush=True)
    return seed
