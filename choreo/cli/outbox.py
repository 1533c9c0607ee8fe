"""``choreo outbox ls|retry|discard MODULE:NAME``: events that were committed with their service's data, and are not published."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from choreo.cli import options, screen
from choreo.cli.asking import confirm
from choreo.cli.loading import Target, load_target
from choreo.envelope import CORRELATION_ID, header_text
from choreo.errors import ConfigurationError
from choreo.store import OutboxDesk, StoredRow, Transactional

app = typer.Typer(no_args_is_help=True, help="Events that wait to be published, and those that can't be.")

MOST = 10_000
Numbers = Annotated[list[int] | None, typer.Argument(metavar="NUMBER", help="The row's number, as 'ls' shows it.")]
All = Annotated[bool, typer.Option("--all", help="All that were set aside.")]


@app.command("ls")
def ls_command(
    target: options.ModuleTarget,
    aside: Annotated[bool, typer.Option("--aside", help="Only those that were set aside.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show so many at most.")] = 50,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """List what waits, those that were set aside first. Exit 0: none was set aside; 1: some."""
    found = load_target(target, {"topic_prefix": topic_prefix})
    with closing(_outbox(found)) as outbox:
        state, rows = outbox.state(), outbox.waiting(limit, aside_only=aside)
    if as_json:
        screen.print_json(
            {
                "service": found.name,
                "due": state.due,
                "oldest_s": round(state.oldest_s, 3),
                "timers": state.timers,
                "aside": state.aside,
                "events": [_as_json(row) for row in rows],
            }
        )
    else:
        due = f"{screen.many(state.due, 'event')} to publish" + (f", the oldest for {screen.duration(state.oldest_s)}" if state.due else "")
        screen.say(f"{found.name}: {due}; {screen.many(state.timers, 'timer')}; {state.aside:,} set aside")
        _show(rows)
        if state.aside:
            screen.say(f"mend the cause, then: choreo outbox retry {target} --all")
    if state.aside:
        raise typer.Exit(1)


@app.command("retry")
def retry_command(
    target: options.ModuleTarget,
    numbers: Numbers = None,
    every: All = False,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """Put events that were set aside back in their place: a running worker of the service publishes them, then those behind them."""
    _change("retry", target, numbers, every=every, yes=yes, dry_run=dry_run, topic_prefix=topic_prefix, as_json=as_json)


@app.command("discard")
def discard_command(
    target: options.ModuleTarget,
    numbers: Numbers = None,
    every: All = False,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """Delete events that were set aside: they are never published, and those behind them go on."""
    _change("discard", target, numbers, every=every, yes=yes, dry_run=dry_run, topic_prefix=topic_prefix, as_json=as_json)


def _change(
    what: str, target: str, numbers: list[int] | None, *, every: bool, yes: bool, dry_run: bool, topic_prefix: str | None, as_json: bool
) -> None:
    if bool(numbers) == every:
        raise ConfigurationError(f"choreo outbox {what}: name events by their numbers, or all of them with --all")
    found = load_target(target, {"topic_prefix": topic_prefix})
    with closing(_outbox(found)) as outbox:
        rows = outbox.waiting(MOST, aside_only=True)
        wanted = [row for row in rows if every or row.seq in (numbers or ())]
        missing = sorted(set(numbers or ()) - {row.seq for row in wanted})
        if missing:
            raise ConfigurationError(f"{found.name}: {', '.join(map(str, missing))}: not set aside; see: choreo outbox ls {target} --aside")
        if not as_json and (dry_run or not yes):
            _show(wanted)
        if dry_run:
            _done(found, what, wanted, 0, as_json=as_json)
            screen.tell("plan only, nothing written")
            return
        if wanted:
            confirm(f"{what} {screen.many(len(wanted), 'event')} of {found.name}", yes=yes, many=len(wanted) > 1, as_json=as_json)
        seqs = [row.seq for row in wanted]
        changed = outbox.retry(seqs) if what == "retry" else outbox.discard(seqs)
    _done(found, what, wanted, changed, as_json=as_json)
    if changed < len(wanted):
        raise typer.Exit(1)


def _done(found: Target, what: str, wanted: Sequence[StoredRow], changed: int, *, as_json: bool) -> None:
    if as_json:
        screen.print_json({"service": found.name, "chosen": [row.seq for row in wanted], "changed": changed})
    elif not wanted:
        screen.say(f"{found.name}: nothing was set aside")
    elif changed:
        screen.say(f"{'put back' if what == 'retry' else 'discarded'}  {screen.many(changed, 'event')}")


def _outbox(found: Target) -> Any:
    """The service's outbox, which its store has. Raises ConfigurationError where there is none."""
    store: object = found.service.store
    outbox: object = store.outbox(found.settings.topic_prefix + found.name) if isinstance(store, Transactional) else None
    if not isinstance(outbox, OutboxDesk):
        given = "no store was given" if store is None else f"{type(store).__name__} has none"
        raise ConfigurationError(f"{found.name}: its outbox is in its store's database, and {given}: Service(store=...)")
    return outbox


# ---- the screen -----------------------------------------------------------------------------------------------------


def _show(rows: Sequence[StoredRow]) -> None:
    if not rows:
        return
    now = datetime.now(UTC)
    lines: list[tuple[str, ...]] = [
        (str(row.seq), row.event_type, row.record.topic, screen.safe(_key(row)), row.event_id, _age(row, now), screen.safe(row.reason))
        for row in rows
    ]
    headings: tuple[str, ...] = ("number", "type", "topic", "key", "event", "since", "set aside because")
    if not any(row.reason for row in rows):
        headings, lines = headings[:-1], [line[:-1] for line in lines]
    screen.show(screen.table(headings, lines, right=("number",), whole=("number", "event")))


def _key(row: StoredRow) -> str | None:
    return None if row.record.key is None else row.record.key.decode("utf-8", "backslashreplace")


def _age(row: StoredRow, now: datetime) -> str:
    if row.due_at is not None and row.due_at > now:
        return f"due in {screen.duration((row.due_at - now).total_seconds())}"
    return screen.duration(max(0.0, (now - row.created_at).total_seconds()))


def _as_json(row: StoredRow) -> dict[str, object]:
    return {
        "number": row.seq,
        "type": row.event_type,
        "topic": row.record.topic,
        "key": _key(row),
        "event_id": row.event_id,
        "flow_id": header_text(dict(row.record.headers).get(CORRELATION_ID)),
        "created_at": row.created_at,
        "due_at": row.due_at,
        "aside": row.reason,
    }
