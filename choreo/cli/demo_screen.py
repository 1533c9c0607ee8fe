"""What does the demo look like? Its head, chapters, counts, tree and summary. Calm where there is no terminal."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from choreo.cli import screen
from choreo.flows.render import in_ascii
from choreo.flows.tree import Letter
from choreo.service import choreo_version
from services_example.orders.book import Status
from services_example.scenario import Books, Plan

COLUMNS = 100
_NAMES = 10
_COUNTED = {"handled": "handled", "retried": "retried", "duplicates": "duplicates dropped", "dead_lettered": "dead letters"}
_STYLES = {"✓": "green", "✗": "red", "⏸": "yellow"}


def columns() -> int:
    """How wide the demo draws."""
    return max(60, min(COLUMNS, screen.out().width))


def head(kafka: str, story: Plan) -> None:
    """Where it plays, and what is planned."""
    screen.out().print(Text.assemble(("choreo", "bold"), f" {choreo_version()}  ", ("demo", "bold")))
    _fact("kafka", kafka)
    _fact("services", "orders, payments, stock, shipping; no conductor: each reacts to what the others have said")
    _fact("trouble", "; ".join(planned for planned, _ in _faults(story)))


def chapter(number: int, title: str) -> None:
    screen.say("")
    screen.out().print(Text(f"{number}  {title}", "bold"))


def prompt(words: str) -> None:
    """A command that the demo runs, as a reader would write it."""
    screen.out().print(Text.assemble(("$ ", "dim"), (words, "cyan")), soft_wrap=True)


@contextmanager
def progress(orders: int) -> Iterator[Callable[[int, Mapping[str, int]], None]]:
    """A bar of the orders that have ended, with what has been counted; nothing where there is no terminal."""
    console = screen.err()
    bars = (TextColumn("orders ended"), BarColumn(20), MofNCompleteColumn(), TextColumn("{task.fields[counts]}", style="dim"))
    with Progress(*bars, console=console, transient=True, disable=not console.is_terminal) as drawn:
        task = drawn.add_task("", total=orders, counts="")

        def shown(ended: int, counters: Mapping[str, int]) -> None:
            drawn.update(task, completed=ended, counts=_counts(counters))

        yield shown


def placed(orders: int, waiting: Sequence[str], counters: Mapping[str, int], took_s: float) -> None:
    """How the first chapter ended."""
    _fact("ended", f"{orders - len(waiting)} of {orders} orders, after {screen.duration(took_s)}")
    _fact("counted", _counts(counters))
    if waiting:
        _fact("waiting", ", ".join(waiting[:8]) + (", ..." if len(waiting) > 8 else "") + ": their charges are dead letters")


def tree(lines: Sequence[str], flow_id: str, read: int, topics: int) -> None:
    """A flow, drawn."""
    _fact("flow", f"{flow_id}, found on Kafka in {topics} topics ({read:,} records)")
    for line in lines:
        text = Text(line if screen.can_show(line) else in_ascii(line))
        for mark, style in _STYLES.items():
            text.highlight_words([mark], style)
        screen.out().print(text, soft_wrap=True)


def summary(story: Plan, books: Books, letters: Sequence[Letter], counters: Mapping[str, int], wrong: Sequence[str]) -> None:
    """What was planned and what came of it; then what was checked, when nothing is wrong."""
    ends = {order.order_id: order.status for order in books.orders}
    shown = screen.table("trouble", "came to this")
    for planned, orders in _faults(story):
        shown.add_row(planned, _ends([ends.get(order_id) for order_id in orders]) if orders else _unreadable(letters))
    screen.out().print(shown)
    if wrong:
        return
    charged = sum(entry.cents > 0 for entry in books.entries)
    returned = sum(entry.cents < 0 for entry in books.entries)
    _ok(f"every order has ended: {_ends(list(ends.values()))}")
    _ok(
        f"no effect happened twice: {charged} cards charged once, {returned} of them paid back; {len(books.parcels)} parcels; "
        f"{counters['retried']} retries and {counters['duplicates']} duplicates did no harm"
    )
    _ok(f"no letter is open but the planned {len(letters)}")


def left_behind(bootstrap: str, prefix: str) -> None:
    """What stays on a real Kafka, and how to look at it."""
    _fact("left", f"topics {prefix}* stay; delete them with kafka-topics --delete --topic '{prefix}.*'".replace("..*", ".*"))
    screen.say(f"look      CHOREO_BOOTSTRAP={bootstrap} CHOREO_TOPIC_PREFIX={prefix} choreo dlq report payments")


def _faults(story: Plan) -> list[tuple[str, Sequence[str]]]:
    """What is planned, and the orders it is planned for; none for records that are no order."""
    faults = story.faults
    planned = [
        (f"{_some(faults.answer_lost, 'answer')} of the card gateway get lost", faults.answer_lost),
        (f"{_some(faults.gateway_bug, 'card')} meet a bug of the gateway", faults.gateway_bug),
        (f"{_some(faults.over_limit, 'order')} are over every card's limit", faults.over_limit),
        (f"{_some(faults.scarce, 'order')} want one of 3 lamps", faults.scarce),
        (f"{_some(faults.published_twice, 'order')} published twice", faults.published_twice),
    ]
    unreadable = [(f"{_some(faults.undecodable, 'record')} of bytes that are no event", ())] if faults.undecodable else []
    return [*((words, orders) for words, orders in planned if orders), *unreadable]


def _some(things: Sequence[object], noun: str) -> str:
    return screen.many(len(things), noun)


def _ends(ends: Sequence[Status | None]) -> str:
    counted = Counter("not ended" if end not in (Status.SHIPPED, Status.CANCELLED) else str(end) for end in ends)
    return ", ".join(f"{counted[name]} {name}" for name in ("shipped", "cancelled", "not ended") if counted[name])


def _unreadable(letters: Sequence[Letter]) -> str:
    services = ", ".join(sorted({letter.service for letter in letters}))
    return f"letters in {services}: no replay mends bytes, their producer must; they stay open" if letters else "no letter"


def _ok(text: str) -> None:
    _fact("ok", text, style="green")


def _fact(name: str, text: str, *, style: str = "dim") -> None:
    for number, line in enumerate(textwrap.wrap(text, columns() - _NAMES) or [""]):
        screen.out().print(Text.assemble((f"{name if number == 0 else '':<{_NAMES}}", style), line), soft_wrap=True)


def _counts(counters: Mapping[str, int]) -> str:
    return ", ".join(f"{counters[name]:,} {words}" for name, words in _COUNTED.items())
