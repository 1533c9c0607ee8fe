"""``choreo dlq ls|show|report SERVICE``: what died, why, and how often. Reads only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal

import typer

from choreo.cli import letter_screen, options, screen
from choreo.cli.loading import Target, find_target
from choreo.errors import ConfigurationError
from choreo.letter import LetterState, Place
from choreo.replay.contents import MAX_SCANNED, Stray, dlq_size, fetch_places, read_dlq, strays
from choreo.replay.ledger import Ledger, read_ledger
from choreo.replay.report import Group, Report, producer, report, short_names, shown_handler, what_failed

app = typer.Typer(no_args_is_help=True, help="Dead letters: what died, why, and how often.")

States = Literal["open", "resolved", "discarded", "all"]
_PLACE = re.compile(r"(.+)\[(\d{1,9})\]@(\d{1,18})")


@app.command("ls")
def ls_command(
    service: options.ServiceTarget,
    state: Annotated[States, typer.Option("--state", help="Which letters.")] = "open",
    handler: options.HandlerName = None,
    group: Annotated[str, typer.Option("--group", metavar="GROUP", help="Letters of one failure, see 'report'.")] = "",
    key: Annotated[str | None, typer.Option("--key", help="Letters of this key.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Show so many at most.")] = 50,
    scan: Annotated[bool, typer.Option("--scan", help=f"Look for strays in a dlq of more than {MAX_SCANNED:,} records, too.")] = False,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """List letters in source order, and records of the dlq that are none. Exit 0: no open letter; 1: some."""
    found = find_target(service, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    ledger = read_ledger(found.broker, found.name, found.names)
    letters = [
        letter
        for letter in ledger.letters
        if state in ("all", letter.state)
        and handler in (None, letter.handler)
        and letter.fingerprint.startswith(group)
        and key in (None, letter.key_text())
    ]
    scanned = scan or dlq_size(ledger) <= MAX_SCANNED
    stray = strays(ledger, read_dlq(found.broker, ledger)) if scanned else []
    if as_json:
        screen.print_json(
            {
                "service": found.name,
                "open": len(ledger.open()),
                "letters": [letter_screen.as_json(letter) for letter in letters],
                "strays": stray,
                "scanned": scanned,
                "unreadable_states": ledger.unreadable,
            }
        )
    else:
        _show_list(found, ledger, letters, limit)
        _show_strays(found, ledger, stray, scanned=scanned)
    if ledger.open():
        raise typer.Exit(1)


@app.command("show")
def show_command(
    service: options.ServiceTarget,
    letter: Annotated[str, typer.Argument(metavar="LETTER", help="An event id or its beginning, a group, or a place: payments.dlq[3]@17.")],
    handler: options.HandlerName = None,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """Print one letter whole: why it died, its headers, its payload, its stack."""
    found = find_target(service, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    ledger = read_ledger(found.broker, found.name, found.names)
    wanted = _chosen(ledger, letter, handler)
    place = wanted.dlq if isinstance(wanted, LetterState) else wanted
    record = fetch_places(found.broker, ledger, [place]).get(place)
    state = wanted if isinstance(wanted, LetterState) else next((each for each in ledger.letters if each.dlq == place), None)
    if state is None and record is None:
        raise ConfigurationError(f"{found.name}: there is no record {place}")
    view = letter_screen.LetterView(state, place, record, letter_screen.history(ledger, state))
    if as_json:
        screen.print_json(view.as_json())
    else:
        view.show(found.words)


@app.command("report")
def report_command(
    service: options.ServiceTarget,
    handler: options.HandlerName = None,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """Group the open letters by failure: how many, since when, and what replays them. Exit 0: no open letter; 1: some."""
    found = find_target(service, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    ledger = read_ledger(found.broker, found.name, found.names)
    now = datetime.now(UTC)
    letters = [letter for letter in ledger.open() if handler in (None, letter.handler)]
    made = report(letters, now)
    examples = [group.example for group in made.groups]
    records = fetch_places(found.broker, ledger, [letter.dlq for letter in examples])
    stacks = [letter_screen.stack_of(records.get(letter.dlq)) for letter in examples]
    if as_json:
        groups = [_group_json(found, group, stack) for group, stack in zip(made.groups, stacks, strict=True)]
        screen.print_json({"service": found.name, "open": made.letters, "parked": made.parked, "keys": made.keys, "groups": groups})
    else:
        _show_report(found, ledger, made, stacks, now)
    if letters:
        raise typer.Exit(1)


def _chosen(ledger: Ledger, words: str, handler: str | None) -> LetterState | Place:
    """The letter that `words` mean: an event id, the beginning of one, a group, or a place in the dlq."""
    place = _PLACE.fullmatch(words)
    if place is not None:
        return Place(place[1], int(place[2]), int(place[3]))
    letters = [letter for letter in ledger.letters if handler in (None, letter.handler)]
    for fits in (
        [letter for letter in letters if letter.event_id == words],
        [letter for letter in letters if letter.state == "open" and letter.fingerprint.startswith(words)],
        [letter for letter in letters if letter.event_id.startswith(words)],
    ):
        if fits:
            others = {letter.handler for letter in fits if letter.event_id == fits[0].event_id} - {fits[0].handler}
            if others:
                raise ConfigurationError(
                    f"{words} died in {', '.join(sorted(others | {fits[0].handler}))}; say which: --handler {fits[0].handler}"
                )
            return fits[0]
    raise ConfigurationError(f"{ledger.service}: no letter {words!r}; choreo dlq ls {ledger.service} --state all lists them")


# ---- screens --------------------------------------------------------------------------------------------------------


def _show_list(found: Target, ledger: Ledger, letters: Sequence[LetterState], limit: int) -> None:
    now = datetime.now(UTC)
    screen.say(f"{found.name}: {screen.many(len(ledger.open()), 'open letter')}   {now:%H:%M} UTC")
    if not letters:
        return
    states = [_state(ledger, letter) for letter in letters[:limit]]
    plain = all(state == "open" for state in states)
    column = () if plain else ("state",)
    names = short_names(list({letter.fingerprint for letter in ledger.letters}))
    rows = [
        (
            screen.safe(letter.event_id, 40),
            *(() if plain else (state,)),
            screen.safe(shown_handler(letter), 40),
            str(letter.origin),
            screen.safe(letter.key_text(), 24),
            screen.clock(letter.last_failed_at, now),
            names[letter.fingerprint],
            screen.safe(what_failed(letter), 100),
        )
        for letter, state in zip(letters, states, strict=False)
    ]
    headings = ("event", *column, "handler", "origin", "key", "last", "group", "what")
    screen.show(screen.table(headings, rows, whole=headings[:-1], cut=("what",)))
    if len(letters) > limit:
        screen.say(f"{len(letters) - limit:,} more; --limit {len(letters)} shows them")


def _state(ledger: Ledger, letter: LetterState) -> str:
    if letter.state != "open":
        return letter.state
    if ledger.is_gone(letter):
        return "gone"
    waiting = ledger.waiting_in(letter)
    return f"in run {waiting}" if waiting else "parked" if letter.kind == "parked" else "open"


def _show_strays(found: Target, ledger: Ledger, stray: Sequence[Stray], *, scanned: bool) -> None:
    for each in stray[:20]:
        screen.say(f"{each.kind:9}  {each.place}  {screen.many(each.bytes, 'byte')}: {screen.safe(each.why)}")
    if len(stray) > 20:
        screen.say(f"{len(stray) - 20:,} more that are no letters; --json lists them")
    if stray:
        screen.say(f"look  choreo dlq show {found.words} '{stray[0].place}'      (neither is ever replayed)")
    if not scanned:
        screen.say(f"not looked for records that are no letters: the dlq has {dlq_size(ledger):,}; --scan does")
    for text in ledger.unreadable[:5]:
        screen.say(f"opaque     {screen.safe(text)}")


def _show_report(found: Target, ledger: Ledger, made: Report, stacks: Sequence[str], now: datetime) -> None:
    if not made.letters:
        screen.say(f"{found.name}: no open letter   {now:%H:%M} UTC")
        return
    failed = made.letters - made.parked
    parts = f" = {failed:,} failed + {made.parked:,} parked behind them" if made.parked else ""
    screen.say(f"{found.name}: {screen.many(made.letters, 'letter')} open{parts}; {screen.many(made.keys, 'key')}   {now:%H:%M} UTC")
    screen.say(_age(ledger, made, now))
    window = screen.duration(made.window.total_seconds())
    parked = ("parked",) if made.parked else ()
    rows = [
        (
            group.name,
            f"{group.failed:,}",
            *((f"{group.parked:,}",) if made.parked else ()),
            ", ".join(screen.safe("(decode)" if handler == "*" else handler, 40) for handler in group.handlers),
            screen.safe(what_failed(group.example, stack), 100),
            screen.clock(group.first, now),
            screen.clock(group.last, now),
            screen.sparkline(group.trend),
        )
        for group, stack in zip(made.groups, stacks, strict=True)
    ]
    headings = ("group", "failed", *parked, "handler", "what", "first", "last", f"trend, {window}")
    screen.show(screen.table(headings, rows, right=("failed", "parked"), whole=[name for name in headings if name != "what"]))
    for group in made.groups:
        screen.say(f"{group.name}  example  choreo dlq show {found.words} {screen.safe(group.example.event_id, 128)}")
        first = f"fix the producer {screen.safe(producer(group.example))}, then" if group.example.kind == "undecodable" else "when fixed"
        screen.say(f"{' ' * len(group.name)}  {first}  {_replay_words(found, group)}")


def _age(ledger: Ledger, made: Report, now: datetime) -> str:
    assert made.oldest is not None
    text = f"oldest {screen.duration((now - made.oldest).total_seconds())}"
    gone = sum(ledger.is_gone(letter) for letter in ledger.open())
    if ledger.retention_ms is not None and ledger.retention_ms >= 0:
        # A letter that died again is a new record.
        written = min(letter.last_failed_at for letter in ledger.open())
        left_s = ledger.retention_ms / 1000 - (now - written).total_seconds()
        text += f"; Kafka deletes the first in {screen.duration(left_s)}" if left_s > 0 else "; Kafka may delete the first now"
    return text + (f"; of {gone:,} the record is gone already" if gone else "")


def _replay_words(found: Target, group: Group) -> str:
    return f"choreo replay {found.words} --group {group.name}"


def _group_json(found: Target, group: Group, stack: str) -> dict[str, object]:
    return {
        "group": group.name,
        "fingerprint": group.fingerprint,
        "handlers": group.handlers,
        "failed": group.failed,
        "parked": group.parked,
        "what": what_failed(group.example, stack),
        "first": group.first,
        "last": group.last,
        "trend": group.trend,
        "versions": group.versions,
        "example": letter_screen.as_json(group.example),
        "replay": _replay_words(found, group),
    }
