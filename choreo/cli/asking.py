"""May this be written? One rule for every command that changes things: above one letter it asks on a terminal and ends with
exit code 3 elsewhere; ``--yes`` goes, ``--dry-run`` never does."""

from __future__ import annotations

import sys

import typer

from choreo.cli.screen import tell

NOT_CONFIRMED = 3


def on_a_terminal() -> bool:
    """Whether somebody is there to be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(what: str, *, yes: bool, many: bool, as_json: bool) -> None:
    """Returns when `what` may be done. Raises typer.Exit(3) when nobody said so; nothing is written then."""
    if yes or not many:
        return
    if as_json or not on_a_terminal():
        tell(f"not confirmed, nothing written: {what}; to go: the same command with --yes")
        raise typer.Exit(NOT_CONFIRMED)
    if not typer.confirm(f"{what}?", default=False, err=True):
        tell("nothing written")
        raise typer.Exit(NOT_CONFIRMED)
