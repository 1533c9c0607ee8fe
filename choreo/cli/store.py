"""``choreo store plan|apply MODULE:NAME``: the tables of a service's store, against those that this choreo needs."""

from __future__ import annotations

from collections.abc import Sequence

import typer

from choreo.cli import options, screen
from choreo.cli.asking import confirm
from choreo.cli.loading import Target, load_target
from choreo.store import Migrating, Migration, SchemaPlan

app = typer.Typer(no_args_is_help=True, help="The tables of a service's store: what is missing, and making it.")


@app.command("plan")
def plan_command(target: options.ModuleTarget, as_json: options.AsJson = False) -> None:
    """Print the SQL that 'apply' would run, as a script. Exit 0: nothing to run; 1: tables are missing, or newer."""
    found = load_target(target, {})
    store = _migrating(found, as_json)
    plan = store.plan_schema()
    if as_json:
        _print(found, plan, applied=None)
    else:
        _show(plan)
        if plan.steps:
            screen.say(f"-- go: choreo store apply {target} --yes")
    if plan.found != plan.needed:
        raise typer.Exit(1)


@app.command("apply")
def apply_command(
    target: options.ModuleTarget, yes: options.Yes = False, dry_run: options.DryRun = False, as_json: options.AsJson = False
) -> None:
    """Run the missing SQL in one transaction, once: of two at the same time the second finds nothing to do."""
    found = load_target(target, {})
    store = _migrating(found, as_json)
    plan = store.plan_schema()
    if not as_json and (dry_run or not yes or not plan.steps):
        _show(plan)
    if dry_run:
        if as_json:
            _print(found, plan, applied=())
        screen.tell("plan only, nothing written")
        raise typer.Exit(0 if plan.found == plan.needed else 1)
    if plan.steps:
        confirm(f"{screen.many(len(plan.steps), 'migration')} of {plan.where}", yes=yes, many=True, as_json=as_json)
    applied = store.apply_schema().steps if plan.steps else ()
    if as_json:
        _print(found, plan, applied=applied)
    for step in () if as_json else applied:
        screen.say(f"done  {step.name}")
    if plan.found > plan.needed:
        raise typer.Exit(1)


def _migrating(found: Target, as_json: bool) -> Migrating:
    """The service's store, where somebody makes its tables; else says why there is nothing to do, and exits with 0."""
    store = found.service.plan(found.settings).store
    kept: object = store
    if isinstance(kept, Migrating):
        return kept
    why = "it keeps no claims" if store is None else f"{store.describe()}: it makes what it needs by itself"
    if as_json:
        screen.print_json({"service": found.name, "store": why, "migrations": []})
    else:
        screen.say(f"{found.name}: {why}; nothing to do")
    raise typer.Exit


# ---- the screen -----------------------------------------------------------------------------------------------------


def _show(plan: SchemaPlan) -> None:
    """A script for psql: what is no SQL is a comment."""
    screen.say(f"-- {plan.where}: {_state(plan)}")
    if plan.script:
        screen.say(plan.script.rstrip("\n"))


def _state(plan: SchemaPlan) -> str:
    if plan.found == plan.needed:
        return f"version {plan.found}, nothing to do"
    if plan.found > plan.needed:
        return f"version {plan.found}, made by a newer choreo than this one, which knows {plan.needed}: nothing to do here"
    return f"version {plan.found}, this choreo needs {plan.needed}" if plan.found else f"no tables, this choreo needs version {plan.needed}"


def _print(found: Target, plan: SchemaPlan, *, applied: Sequence[Migration] | None) -> None:
    document: dict[str, object] = {
        "service": found.name,
        "store": plan.where,
        "version": plan.found,
        "needed": plan.needed,
        "migrations": [{"version": step.version, "name": step.name} for step in plan.steps],
        "script": plan.script,
    }
    if applied is not None:
        document["applied"] = [step.name for step in applied]
    screen.print_json(document)
