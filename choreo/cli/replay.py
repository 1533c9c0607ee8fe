"""``choreo replay SERVICE``: run dead letters again, each once, in the handler that failed. Shows the plan, asks, follows."""

from __future__ import annotations

import getpass
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from choreo.cli import options, screen
from choreo.cli.asking import confirm
from choreo.cli.loading import Target, find_target
from choreo.errors import ConfigurationError
from choreo.letter import UNREADABLE, LetterState, replay_topic
from choreo.replay.ledger import Ledger, RunView, read_ledger
from choreo.replay.plan import Refusal, ReplayPlan, Selection, plan_replay
from choreo.replay.run import Reason, follow, new_run_id, run_entries, tally, write_run

SHOWN = 10
TIMEOUT_S = 30.0


def replay(
    service: options.ServiceTarget,
    ids: Annotated[list[str] | None, typer.Option("--id", metavar="EVENT_ID", help="The letter of this event; may be repeated.")] = None,
    group: Annotated[str, typer.Option("--group", metavar="GROUP", help="All open letters of one failure, see 'dlq report'.")] = "",
    key: Annotated[str | None, typer.Option("--key", help="All open letters of this key.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All open letters.")] = False,
    handler: options.HandlerName = None,
    force: Annotated[bool, typer.Option("--force", help="Also where the handler has succeeded; its effects happen once more.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Also letters that wait in another run.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the log of runs.")] = "",
    follow_run: Annotated[str | None, typer.Option("--follow", metavar="RUN", help="Begin nothing; follow a run that was begun.")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", min=0, help="Stop following after so many seconds without news.")] = TIMEOUT_S,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Replay dead letters: only the handler that failed runs, in the order of their events. Exit 0: all resolved; 1: not all."""
    found = find_target(service, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    ledger = read_ledger(found.broker, found.name, found.names)
    if follow_run is not None:
        view, start = _known_run(ledger, follow_run), 0
        refused: tuple[Refusal, ...] = ()
    else:
        selection = Selection(ids=tuple(ids or ()), group=group, key=key, all=everything, handler=handler, forced=force, again=again)
        plan = plan_replay(ledger, selection)
        if not as_json:
            _show_plan(found, plan, selection)
        _may_go(found, plan, yes=yes, dry_run=dry_run, as_json=as_json)
        view, start = _begin(found, ledger, plan, Reason(by=_who(), why=reason, forced=force))
        refused = plan.refused
    if not as_json:
        screen.say(f"run {view.run}  {screen.many(len(view.requests), 'letter')} of {found.name}; Ctrl-C leaves it running")
    left = _follow(found, view, start, timeout_s, as_json=as_json)
    _conclude(found, view, refused, left=left, as_json=as_json)


def _known_run(ledger: Ledger, run: str) -> RunView:
    fits = [view for name, view in ledger.runs.items() if name.startswith(run)]
    if len(fits) != 1:
        known = f"; the last ones: {', '.join(list(ledger.runs)[-5:])}" if ledger.runs else ""
        raise ConfigurationError(f"{ledger.service}: {len(fits)} runs begin with {run!r}{known}")
    return fits[0]


def _may_go(found: Target, plan: ReplayPlan, *, yes: bool, dry_run: bool, as_json: bool) -> None:
    """Returns when the plan is to be carried out; else typer.Exit."""
    not_done = any(not refusal.done for refusal in plan.refused)
    if dry_run or not plan.letters:
        if as_json:
            screen.print_json({"service": found.name, "run": None, "letters": _letter_words(plan), "left_out": plan.refused})
        elif dry_run:
            screen.say("plan only, nothing written" if plan.letters else "nothing to replay")
        else:
            screen.say("nothing to replay")
        raise typer.Exit(1 if not_done else 0)
    what = f"replay {screen.many(len(plan.letters), 'letter')} of {found.name}"
    confirm(what, yes=yes, many=len(plan.letters) > 1, as_json=as_json)


def _letter_words(plan: ReplayPlan) -> list[dict[str, object]]:
    return [{"event_id": letter.event_id, "handler": letter.handler, "origin": str(letter.origin)} for letter in plan.letters]


def _begin(found: Target, ledger: Ledger, plan: ReplayPlan, reason: Reason) -> tuple[RunView, int]:
    """Writes the run; its view, with its requests in it, and where in the log following begins."""
    run = new_run_id(ledger.runs)
    entries = run_entries(run, plan.letters, reason, datetime.now(UTC))
    start = write_run(found.broker, found.names(replay_topic(found.name)), entries)
    view = RunView(run)
    for entry in entries:
        view.take(entry)
    return view, start


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"  # a container's user without a name


# ---- following ------------------------------------------------------------------------------------------------------


def _follow(found: Target, view: RunView, start: int, timeout_s: float, *, as_json: bool) -> bool:
    """Until every request has an outcome, nobody answers for `timeout_s`, or Ctrl-C; whether it was that. The run goes on."""
    reader = found.broker.reader()
    try:
        with _progress(view, hidden=as_json) as shown:
            for now in follow(reader, found.names(replay_topic(found.name)), view, start, silence_s=timeout_s):
                shown(now)
    except KeyboardInterrupt:
        return True
    finally:
        reader.close()
    return False


@contextmanager
def _progress(view: RunView, *, hidden: bool) -> Iterator[Callable[[RunView], None]]:
    console = screen.err()
    columns = (TextColumn("{task.description}"), BarColumn(40), MofNCompleteColumn(), TextColumn("{task.fields[counts]}"))
    # A bar is for eyes; where there is no terminal the last line says it all.
    with Progress(*columns, console=console, transient=True, disable=hidden or not console.is_terminal) as progress:
        task = progress.add_task(f"run {view.run}", total=len(view.requests), counts="")

        def shown(now: RunView) -> None:
            counts = tally(now.outcomes.values())
            words = f"resolved {counts['resolved']}   already done {counts['already-done']}   failed again {counts['failed-again']}"
            progress.update(task, completed=len(now.outcomes), total=len(now.requests), counts=words)

        yield shown


def _conclude(found: Target, view: RunView, refused: tuple[Refusal, ...], *, left: bool, as_json: bool) -> None:
    """Says how it ended; typer.Exit(1) unless every letter is resolved."""
    waiting = view.waiting()
    if as_json:
        counts = tally(view.outcomes.values())
        screen.print_json(
            {
                "service": found.name,
                "run": view.run,
                "letters": len(view.requests),
                **{name.replace("-", "_"): count for name, count in counts.items() if name != "refused"},
                "refused": counts["refused"] + sum(not refusal.done for refusal in refused),
                "waiting": len(waiting),
                "never_requested": view.never_requested(),
                "outcomes": [view.outcomes[letter] for letter in view.requests if letter in view.outcomes],
                "left_out": refused,
            }
        )
    else:
        _say_end(found, view, left=left)
    ended_well = all(outcome.result in ("resolved", "already-done") for outcome in view.outcomes.values())
    if waiting or not ended_well or view.never_requested() or any(not refusal.done for refusal in refused):
        raise typer.Exit(1)


def _say_end(found: Target, view: RunView, *, left: bool) -> None:
    counts = tally(view.outcomes.values())
    waiting = view.waiting()
    state = f"{len(waiting):,} still waiting" if waiting else "done"
    parts = ", ".join(f"{count:,} {name.replace('-', ' ')}" for name, count in counts.items() if count or name == "resolved")
    screen.say(f"run {view.run}  {state}: {parts}")
    for outcome in [o for o in view.outcomes.values() if o.result in ("failed-again", "refused")][:SHOWN]:
        screen.say(f"  {outcome.result:12}  {screen.safe(outcome.event_id, 128)} of {outcome.handler}: {screen.safe(outcome.error, 300)}")
    if counts["failed-again"]:
        screen.say(f"look  choreo dlq report {found.words}")
    if waiting:
        heard = "no more answers" if view.outcomes else "no answer"
        quiet = f"{heard}: is {found.name} running? The requests wait in the log, and it runs them when it starts; nothing is lost"
        screen.say("it goes on without you" if left else quiet)
        screen.say(f"look  choreo replay {found.words} --follow {view.run}")
    if view.never_requested():
        screen.say(f"{view.never_requested():,} letters were never asked for: whoever began the run died; replay them anew")


# ---- the plan -------------------------------------------------------------------------------------------------------


def _show_plan(found: Target, plan: ReplayPlan, selection: Selection) -> None:
    letters = plan.letters
    rows: list[tuple[str, str]] = []
    if letters:
        keys = len({(letter.origin.topic, letter.key) for letter in letters if letter.key is not None})
        parked = sum(letter.kind == "parked" for letter in letters)
        kinds = f" ({len(letters) - parked} failed, then {parked} parked behind them)" if parked else ""
        first, last = min(letter.first_failed_at for letter in letters), max(letter.last_failed_at for letter in letters)
        now = datetime.now(UTC)
        span = f"{screen.clock(first, now)} to {screen.clock(last, now)}"
        rows.append(("replays", f"{screen.many(len(letters), 'letter')}{kinds}; {screen.many(keys, 'key')}; died {span}"))
        handlers = Counter(_reached(letter) for letter in letters)
        reached = ", ".join(
            f"{found.name}/{name} ({count})" if len(handlers) > 1 else f"{found.name}/{name}" for name, count in handlers.items()
        )
        rows.append(("reaches", f"{reached}, nobody else"))
        rows.append(("order", "as their events stand in their topics; each in the lane of its key"))
        versions = sorted({letter.version for letter in letters if letter.version})
        if versions:
            rows.append(("code", f"died in {', '.join(screen.safe(version, 40) for version in versions)}"))
        if selection.forced:
            rows.append(("force", "runs also where the handler has succeeded: its effects happen once more, under this run's id"))
    rows += [("leaves out", line) for line in _left_out(plan)]
    if rows:
        screen.show_facts(rows)


def _reached(letter: LetterState) -> str:
    return "(all handlers of its topic)" if letter.handler == UNREADABLE else screen.safe(letter.handler, 60)


def _left_out(plan: ReplayPlan) -> list[str]:
    """The refusals, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for refusal in plan.refused:
        by_reason.setdefault(refusal.why, []).append(screen.safe(refusal.event_id, 128))
    lines = [f"{ids[0] if len(ids) == 1 else screen.many(len(ids), 'letter')}: {why}" for why, ids in by_reason.items()]
    return lines[:SHOWN] + ([f"{len(lines) - SHOWN:,} more reasons; --json has all"] if len(lines) > SHOWN else [])
