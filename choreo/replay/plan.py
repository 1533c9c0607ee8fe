"""Which letters does this selection name, and which of them may not run? Pure; nothing is read or written here."""

from __future__ import annotations

from dataclasses import dataclass

from choreo.errors import ConfigurationError, did_you_mean
from choreo.letter import LetterState
from choreo.replay.ledger import Ledger, LetterId


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What an operator asked for: some letters by `ids` (of their events), by `group` (of their failure), by `key`, or `all`.

    `handler` narrows it. `forced` runs a letter past a success, also a resolved one if it is named by its id. `again` takes
    letters that wait in another run, too.
    """

    ids: tuple[str, ...] = ()
    group: str = ""
    key: str | None = None
    all: bool = False
    handler: str | None = None
    forced: bool = False
    again: bool = False

    def __post_init__(self) -> None:
        ways = [
            way for way, said in (("--id", self.ids), ("--group", self.group), ("--key", self.key is not None), ("--all", self.all)) if said
        ]
        if len(ways) != 1:
            said = f"both {' and '.join(ways)}" if ways else "nothing"
            raise ConfigurationError(f"which letters? {said} was said; use one of --id EVENT_ID, --group GROUP, --key KEY, --all")


@dataclass(frozen=True, slots=True)
class Refusal:
    """A letter that is left out, and why. `done`: there is nothing left to do for it."""

    event_id: str
    handler: str
    why: str
    done: bool = False


@dataclass(frozen=True, slots=True)
class ReplayPlan:
    """What a run would do: these letters, in source order, and not those."""

    letters: tuple[LetterState, ...]
    refused: tuple[Refusal, ...]


def plan_replay(ledger: Ledger, selection: Selection) -> ReplayPlan:
    """Decides for each letter. Raises ConfigurationError when `handler` or `group` is unknown here."""
    _check_words(ledger, selection)
    named = [letter for letter in ledger.letters if _is_named(letter, selection)]
    refused = [Refusal(event_id, "", "no such letter") for event_id in _unknown_ids(ledger, selection)]
    letters: list[LetterState] = []
    taken: set[LetterId] = set()
    for letter in named:
        refusal = _refusal(ledger, letter, selection, taken)
        if refusal is None:
            taken.add(LetterId(letter.handler, letter.event_id))
            letters.append(letter)
        else:
            refused.append(refusal)
    return ReplayPlan(tuple(letters), tuple(refused))


def _is_named(letter: LetterState, selection: Selection) -> bool:
    if selection.handler is not None and letter.handler != selection.handler:
        return False
    if selection.ids:
        return letter.event_id in selection.ids
    if letter.state != "open":
        return False  # what is settled runs again only by its id, and forced
    if selection.group:
        return letter.fingerprint.startswith(selection.group)
    return selection.all or letter.key_text() == selection.key


def _refusal(ledger: Ledger, letter: LetterState, selection: Selection, taken: set[LetterId]) -> Refusal | None:
    def because(why: str, *, done: bool = False) -> Refusal:
        return Refusal(letter.event_id, letter.handler, why, done)

    if letter.state != "open" and not selection.forced:
        by = f" by run {letter.run}" if letter.run else ""
        return because(f"{letter.state} already{by}; to run it all the same: --force", done=True)
    if ledger.is_gone(letter):
        return because(f"its record {letter.dlq} is gone: Kafka's retention deleted it")
    run = ledger.waiting_in(letter)
    if run is not None and not selection.again:
        return because(f"in run {run} already, waiting; to follow it: --follow {run}, to ask once more: --again")
    if LetterId(letter.handler, letter.event_id) in taken:
        return because(f"the same event once more, from {letter.origin}; replay it in a run of its own")
    return None


def _unknown_ids(ledger: Ledger, selection: Selection) -> list[str]:
    known = {letter.event_id for letter in ledger.letters if selection.handler in (None, letter.handler)}
    return [event_id for event_id in dict.fromkeys(selection.ids) if event_id not in known]


def _check_words(ledger: Ledger, selection: Selection) -> None:
    handlers = {letter.handler for letter in ledger.letters}
    if selection.handler is not None and selection.handler not in handlers:
        raise ConfigurationError(f"{ledger.service}: no letter of handler {selection.handler}{did_you_mean(selection.handler, handlers)}")
    groups = {letter.fingerprint for letter in ledger.open()}
    if selection.group and not any(group.startswith(selection.group) for group in groups):
        raise ConfigurationError(f"{ledger.service}: no open letter of group {selection.group}{did_you_mean(selection.group, groups)}")
