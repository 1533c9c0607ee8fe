"""``choreo``: the command line. Each group of commands is a file beside this one; here they meet, and their errors become lines.

Exit codes, everywhere: 0 done or nothing wrong, 1 found something or not all done, 2 wrong usage, 3 not confirmed (nothing
written), 4 can't reach Kafka or store.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from choreo.cli import dlq, outbox, replay, store, topics
from choreo.cli.config import config
from choreo.cli.demo import demo
from choreo.cli.publish import publish
from choreo.cli.run import run
from choreo.cli.screen import complain, say
from choreo.errors import BrokerError, ChoreoError, ConfigurationError, StoreError
from choreo.service import choreo_version

FOUND_SOMETHING = 1
USAGE = 2
UNREACHABLE = 4
_OWN_FAULT = frozenset(
    {
        "FENCED_INSTANCE_ID",
        "INVALID_CONFIG",
        "INVALID_PARTITIONS",
        "INVALID_RECORD",
        "INVALID_REPLICATION_FACTOR",
        "INVALID_TOPIC_EXCEPTION",
        "LOST_OFFSETS",
        "MSG_SIZE_TOO_LARGE",
        "POLICY_VIOLATION",
        "TOPIC_ALREADY_EXISTS",
        "UNRELEASED_INSTANCE_ID",
        "_AUTO_OFFSET_RESET",
    }
)
"""Kafka was reached and said no."""


def exit_code(error: ChoreoError) -> int:
    """Which exit code says what this error says."""
    if isinstance(error, ConfigurationError):
        return USAGE
    if isinstance(error, BrokerError):
        return FOUND_SOMETHING if error.code in _OWN_FAULT else UNREACHABLE
    return UNREACHABLE if isinstance(error, StoreError) else FOUND_SOMETHING


class _Commands(TyperGroup):
    """Turns choreo's own errors into one line and an exit code; a stack trace is for mistakes in code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ChoreoError as error:
            complain(error)
            raise typer.Exit(exit_code(error)) from error


app = typer.Typer(
    name="choreo",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Event choreography over Kafka that can be debugged at 3 AM.",
)


def _version(asked: bool) -> None:
    if asked:
        say(f"choreo {choreo_version()}")
        raise typer.Exit


@app.callback()
def _main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    # Without a handler Python would print librdkafka's log lines beside our one; `run` sets up its own.
    logger = logging.getLogger("choreo")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


app.command("run")(run)
app.command("demo")(demo)
app.command("config")(config)
app.command("publish")(publish)
app.add_typer(dlq.app, name="dlq")
app.command("replay")(replay.replay)
app.add_typer(topics.app, name="topics")
app.add_typer(store.app, name="store")
app.add_typer(outbox.app, name="outbox")


def main() -> None:
    """The script ``choreo``."""
    app(prog_name="choreo")
