"""What does the demo look like? Its head, chapters, counts, tree and summary. Calm where there is no terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from choreo.cli import screen
from choreo.flows.render import in_ascii
from choreo.flows.tree import Letter
from choreo.service import choreo_version
from services_example.orders.book import Status
from services_example.scenario import Books, Plan

_COUNTED = {"handled": "handled", "retried": "retried", "duplicates": "duplicates dropped", "dead_lettered": "dead letters"}
_STYLES = {"✓": "green", "✗": "red", "⏸": "yellow"}


class _Fault(NamedTuple):
    """One kind of trouble: what is planned, the orders it is planned for (none for records that are no order), and what is
    special about its end when all is well."""

    planned: str
    orders: Sequence[str]
    well: str


def head(kafka: str, story: Plan) -> None:
    """Where it plays, and what is planned."""
    screen.say(f"choreo {choreo_version()}  demo")
    screen.show_facts(
        [
            ("kafka", kafka),
            ("services", "orders, payments, stock, shipping; no conductor: each reacts to what the others have said"),
            ("trouble", "; ".join(fault.planned for fault in _faults(story))),
        ]
    )


def chapter(number: int, title: str) -> None:
    screen.out().print(Text(f"\n{number}  {title}", "bold"), soft_wrap=True)


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


def placed(story: Plan, waiting: Sequence[str], counters: Mapping[str, int], took_s: float) -> None:
    """How the first chapter ended."""
    orders = len(story.orders)
    rows = [("ended", f"{orders - len(waiting)} of {orders} orders, after {screen.duration(took_s)}"), ("counted", _counts(counters))]
    if waiting:
        shown = ", ".join(waiting[:8]) + (", ..." if len(waiting) > 8 else "")
        why = ": their charges are dead letters" if {*waiting} <= {*story.faults.gateway_bug} else ""
        rows.append(("waiting", shown + why))
    screen.show_facts(rows)


def tree(lines: Sequence[str], flow_id: str, read: int, topics: int) -> None:
    """A flow, drawn."""
    screen.show_facts([("flow", f"{flow_id}, found on Kafka: {read:,} records of {topics} topics")])
    for line in lines:
        text = Text(line if screen.can_show(line) else in_ascii(line))
        for mark, style in _STYLES.items():
            text.highlight_words([mark], style)
        screen.out().print(text, soft_wrap=True)


def summary(story: Plan, books: Books, letters: Sequence[Letter], counters: Mapping[str, int], wrong: Sequence[str]) -> None:
    """What was planned and what came of it; then what was checked, when nothing is wrong."""
    ends = {order.order_id: order.status for order in books.orders}
    rows = []
    for fault in _faults(story):
        came = _ends([ends.get(order_id) for order_id in fault.orders]) if fault.orders else _unreadable(letters)
        rows.append((fault.planned, came if wrong or not fault.well else f"{came}: {fault.well}"))
    screen.show_facts(rows)
    if wrong:
        return
    charged = sum(entry.cents > 0 for entry in books.entries)
    returned = sum(entry.cents < 0 for entry in books.entries)
    effects = f"{charged} cards charged once, {returned} of them paid back, {len(books.parcels)} parcels"
    screen.show_facts(
        [
            ("ok", f"every order has ended: {_ends(list(ends.values()))}"),
            (
                "ok",
                f"no effect happened twice: {effects}; {counters['retried']} retries and {counters['duplicates']} duplicates did no harm",
            ),
            ("ok", f"no letter is open but the {len(letters)} of bytes that are no event"),
        ]
    )


def left_behind(bootstrap: str, prefix: str) -> None:
    """What stays on a real Kafka, and how to look at it."""
    screen.show_facts([("left", f"topics and groups of this run stay; their names begin with {prefix}")])
    screen.say(f"look       choreo dlq report payments --bootstrap {bootstrap} --topic-prefix {prefix}")


def _faults(story: Plan) -> list[_Fault]:
    faults = story.faults
    planned = [
        _Fault(
            f"{screen.many(len(faults.answer_lost), 'lost answer')} of the card gateway", faults.answer_lost, "asked again, charged once"
        ),
        _Fault(
            f"{screen.many(len(faults.gateway_bug), 'card')} of a brand that the gateway chokes on", faults.gateway_bug, "by the replay"
        ),
        _Fault(f"{screen.many(len(faults.over_limit), 'order')} over every card's limit", faults.over_limit, "nothing stays reserved"),
        _Fault(f"{screen.many(len(faults.scarce), 'order')} for one of 3 lamps", faults.scarce, "nobody pays for nothing"),
        _Fault(f"{screen.many(len(faults.published_twice), 'order')} published twice", faults.published_twice, "charged and sent once"),
    ]
    unreadable = (
        [_Fault(f"{screen.many(len(faults.undecodable), 'record')} of bytes that are no event", (), "")] if faults.undecodable else []
    )
    return [*(fault for fault in planned if fault.orders), *unreadable]


def _ends(ends: Sequence[Status | None]) -> str:
    counted = Counter("not ended" if end not in (Status.SHIPPED, Status.CANCELLED) else str(end) for end in ends)
    return ", ".join(f"{counted[name]} {name}" for name in ("shipped", "cancelled", "not ended") if counted[name])


def _unreadable(letters: Sequence[Letter]) -> str:
    services = ", ".join(sorted({letter.service for letter in letters}))
    return f"letters in {services}, which stay open: no replay mends bytes, only their producer can" if letters else "no letter"


def _counts(counters: Mapping[str, int]) -> str:
    return ", ".join(f"{counters[name]:,} {words}" for name, words in _COUNTED.items())
