"""``choreo topics plan|apply MODULE:NAME``: the topics a service needs, against those that Kafka has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, assert_never

import typer

from choreo.broker import TopicInfo
from choreo.cli import options, screen
from choreo.cli.asking import confirm
from choreo.cli.loading import Target, load_target
from choreo.operations.topics import (
    Configure,
    Create,
    Declared,
    Differs,
    Fine,
    Grow,
    Needs,
    Step,
    Wishes,
    apply_topics,
    declare,
    plan_topics,
    to_do,
)
from choreo.replay.ledger import open_by_topic

app = typer.Typer(no_args_is_help=True, help="The topics a service needs: what is missing, and making it.")

Partitions = Annotated[
    int | None, typer.Option("--partitions", min=1, help="Of each topic of events (default: 6 for a new one, else as it is).")
]
Replication = Annotated[
    int | None, typer.Option("--replication", min=1, help="Of each topic (default: 3, or as many brokers as there are).")
]

_DAYS = ("retention.ms", "min.compaction.lag.ms")


@app.command("plan")
def plan_command(
    target: options.ModuleTarget,
    partitions: Partitions = None,
    replication: Replication = None,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """Show what 'apply' would do. Exit 0: nothing; 1: something is missing or differs."""
    found = load_target(target, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    wishes = Wishes(partitions=partitions, replication=replication)
    steps = _plan(found, wishes)
    if as_json:
        _print(found, steps, applied=None)
    else:
        _show(steps)
        if to_do(steps):
            screen.say(f"go    choreo topics apply {found.code_words}{_wish_words(wishes)} --yes")
    if not all(isinstance(step, Fine) for step in steps):
        raise typer.Exit(1)


@app.command("apply")
def apply_command(
    target: options.ModuleTarget,
    partitions: Partitions = None,
    replication: Replication = None,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    yes: options.Yes = False,
    dry_run: options.DryRun = False,
    as_json: options.AsJson = False,
) -> None:
    """Make the missing topics, raise settings that are too low. Takes nothing away."""
    found = load_target(target, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    steps = _plan(found, Wishes(partitions=partitions, replication=replication))
    work = to_do(steps)
    if not as_json and (dry_run or not yes or not work):
        _show(steps)
    if dry_run:
        if as_json:
            _print(found, steps, applied=[])
        screen.tell("plan only, nothing written")
        raise typer.Exit(1 if work else 0)
    if work:
        confirm(f"{screen.many(len(work), 'change')} to the topics of {found.name}", yes=yes, many=True, as_json=as_json)
    applied = _apply(found, steps, tell=not as_json)
    if as_json:
        _print(found, steps, applied=applied)
    if any(isinstance(step, Differs) for step in steps):
        raise typer.Exit(1)


def _plan(found: Target, wishes: Wishes) -> list[Step]:
    service = found.service
    own: Sequence[str | None] = service.own_topics() or (None, None, None)
    needs = Needs(
        consumed=service.consumed_topics(),
        emitted=service.emitted_topics(),
        dlq=own[0],
        letters=own[1],
        replay=own[2],
        names=found.names,
    )
    cluster = found.broker.cluster()
    try:
        actual: Mapping[str, TopicInfo] = cluster.topics()
        brokers = cluster.brokers()
    finally:
        cluster.close()
    # Only partitions that are to be added can tear a key from its letters.
    asks = wishes.partitions is not None and needs.letters is not None
    waiting = open_by_topic(found.broker, found.names(needs.letters)) if asks and needs.letters is not None else {}
    return plan_topics(declare(needs, wishes, actual, brokers), actual, waiting)


def _apply(found: Target, steps: Sequence[Step], *, tell: bool) -> list[Step]:
    applied: list[Step] = []

    def done(step: Step) -> None:
        applied.append(step)
        if tell:
            screen.say(f"done  {_WORDS[type(step)]:5} {step.topic.name}  {_action(step)}")

    cluster = found.broker.cluster()
    try:
        apply_topics(cluster, steps, done)
    finally:
        cluster.close()
    return applied


# ---- the screen -----------------------------------------------------------------------------------------------------


def _print(found: Target, steps: Sequence[Step], *, applied: Sequence[Step] | None) -> None:
    document: dict[str, object] = {"service": found.name, "steps": [_as_json(step) for step in steps]}
    if applied is not None:
        document["applied"] = [step.topic.name for step in applied]
    screen.print_json(document)


def _show(steps: Sequence[Step]) -> None:
    remarked = any(_remark(step) for step in steps)
    rows = [(_WORDS[type(step)], step.topic.name, _action(step), *((_remark(step),) if remarked else ())) for step in steps]
    screen.show(screen.table(("", "topic", "what", *(("but",) if remarked else ())), rows, whole=("", "topic")))


def _wish_words(wishes: Wishes) -> str:
    partitions = "" if wishes.partitions is None else f" --partitions {wishes.partitions}"
    return partitions + ("" if wishes.replication is None else f" --replication {wishes.replication}")


_WORDS: Mapping[type[Step], str] = {Fine: "ok", Create: "make", Configure: "set", Grow: "grow", Differs: "DIFFERS"}


def _action(step: Step) -> str:
    match step:
        case Fine(_, actual, _):
            return f"{screen.many(actual.partitions, 'partition')}, replication {actual.replication}"
        case Create(topic):
            return f"{screen.many(topic.partitions, 'partition')}, replication {topic.replication}{_settings(topic.config)}"
        case Configure(_, changes, was):
            return ", ".join(f"{name}={_value(name, value)} (is {_value(name, was[name])})" for name, value in changes.items())
        case Grow(topic, actual):
            return f"{actual} -> {topic.partitions} partitions"
        case Differs(_, what, _):
            return what
        case never:
            assert_never(never)


def _remark(step: Step) -> str:
    match step:
        case Fine(_, _, note):
            return note
        case Grow():
            return "the order of a key does not hold across the change"
        case Differs(_, _, advice):
            return advice
        case Create() | Configure():
            return ""
        case never:
            assert_never(never)


def _settings(config: Mapping[str, str]) -> str:
    return "".join(f", {name}={_value(name, value)}" for name, value in config.items())


def _value(name: str, value: str | None) -> str:
    if value is None:
        return "not set"
    return f"{int(value) / 86_400_000:g}\u00a0d" if name in _DAYS and value.isdecimal() else value


def _as_json(step: Step) -> dict[str, object]:
    topic: Declared = step.topic
    document: dict[str, object] = {
        "topic": topic.name,
        "role": topic.role,
        "action": _ACTIONS[type(step)],
        "partitions": topic.partitions,
        "replication": topic.replication,
        "config": dict(topic.config),
        "says": _action(step),
        "remark": _remark(step),
    }
    if isinstance(step, Configure):
        document["changes"] = dict(step.changes)
    return document


_ACTIONS: Mapping[type[Step], str] = {Fine: "none", Create: "create", Configure: "configure", Grow: "grow", Differs: "differs"}
