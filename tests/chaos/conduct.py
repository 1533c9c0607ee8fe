"""How shall a worker's handlers behave? Told by the test, as JSON in the environment variable TEST_CONDUCT."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import msgspec

SERVICE = "payments"
HANDLER = "book"
CHILD_TYPE = "test.noted"
VARIABLE = "TEST_CONDUCT"

DONE, CUT_SHORT, REFUSED, CANT_GO_ON = 0, 1, 2, 4
"""Exit codes of a worker, DESIGN section 6: all came to its end; something did not; wrong settings or topics; no Kafka or store."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """What a worker's handlers do, some of it only for events of certain keys.

    `ledger`: where each call and each effect is written down; None: nowhere. Without `calls`, only the effects: the
    ledger's lock must not be held by a process that is stopped on another thread. `attempts`: where the attempt of each effect is,
    if there is a ledger. `store`: the claims' file or PostgreSQL's address; None: effects are `offsets`, or `kafka` if `atomic`. `transaction`: the handler
    writes its effects into the store's database, in its transaction, and the ledger has only the calls. `emits`: each event causes a child on the
    topic ``notes``. `on_thread`: the handler is a plain `def`. `work_s`: how long each handler works before its effect.
    Events of the keys in `held` wait before their effect until the file `gate` is there; those in `stubborn` too, and won't
    be cancelled. The first one of the keys in `killing` kills its process before its effect, and the file `killed` keeps
    the others from it. Those in `failing` fail for good, those in `shaky` each time, to be tried again `again_s` seconds
    later, those in `forking` try choreo's clients in a forked child; the first one of those in `locking` holds the interpreter's lock for
    `locked_s` before its effect. Events whose ids are in `ending` end their process
    whenever they begin, by `ended_by`.
    """

    ledger: str | None = None
    calls: bool = True
    attempts: str = ""
    store: str | None = None
    atomic: bool = False
    transaction: Literal["", "sqlite3", "psycopg", "psycopg-async"] = ""
    gate: str = ""
    killed: str = ""
    emits: bool = False
    on_thread: bool = False
    max_attempts: int = 2
    work_s: float = 0.0
    held: tuple[str, ...] = ()
    stubborn: tuple[str, ...] = ()
    killing: tuple[str, ...] = ()
    failing: tuple[str, ...] = ()
    shaky: tuple[str, ...] = ()
    again_s: float = 0.05
    forking: tuple[str, ...] = ()
    locking: tuple[str, ...] = ()
    locked_s: float = 0.0
    ending: tuple[str, ...] = ()
    ended_by: Literal["SIGKILL", "abort"] = "SIGKILL"

    def environment(self) -> dict[str, str]:
        """For the worker's process."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @staticmethod
    def of_this_process() -> Conduct:
        """The other way."""
        return msgspec.json.decode(os.environ[VARIABLE], type=Conduct)
