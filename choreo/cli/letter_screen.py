"""One letter, whole: why it died, what was tried since, its headers, its payload and its stack. All of it bounded and safe."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import orjson

from choreo.cli import screen
from choreo.letter import LetterState, Place, dlq_headers, without_dlq_headers
from choreo.record import Record
from choreo.replay.ledger import Ledger, LetterId
from choreo.replay.report import shown_handler, what_failed

MAX_PAYLOAD_CHARS = 4_000
MAX_VALUE_BYTES = 1_000_000
MAX_HEADERS = 50
MAX_HEADER_CHARS = 300


@dataclass(frozen=True, slots=True)
class Tried:
    """One run that had this letter; `result` is ``waiting`` where it has not answered."""

    run: str
    by: str
    reason: str
    at: str
    result: str
    error: str


@dataclass(frozen=True, slots=True)
class LetterView:
    """A letter's state and record. `state` None: no letter, a stray record; `record` None: retention has deleted it."""

    state: LetterState | None
    place: Place
    record: Record | None
    tried: Sequence[Tried]

    def show(self, words: str) -> None:
        """Prints it; `words` mean its service on a command line."""
        rows: list[tuple[str, str]] = [("stray", f"{self.place}: no letter's state points here; it is never replayed")]
        if self.state is not None:
            rows = _state_rows(self.state, self.record, self.place)
        rows += [("tried", f"run {t.run} by {screen.safe(t.by)} at {t.at}: {t.result} {screen.safe(t.error)}".rstrip()) for t in self.tried]
        if self.state is not None and self.state.state == "open":
            handler = f" --handler {self.state.handler}" if self.state.handler != "*" else ""
            rows.append(("do", f"choreo replay {words} --id {screen.safe(self.state.event_id, 128)}{handler}"))
        screen.show_facts(rows)
        if self.record is None:
            screen.say(f"its record {self.place} is gone: Kafka's retention deleted it")
            return
        _section("headers", _header_lines(self.record))
        _section("payload", shown_value(self.record.value).splitlines())
        _section("stack", stack_of(self.record).rstrip().splitlines())

    def as_json(self) -> dict[str, object]:
        """The same for a program; bytes that are not text as base64."""
        document: dict[str, object] = {
            "letter": None if self.state is None else as_json(self.state),
            "place": str(self.place),
            "tried": self.tried,
            "record": None,
        }
        if self.record is not None:
            document["record"] = {
                "key": _text_or_base64(self.record.key),
                "value": _text_or_base64(self.record.value),
                "timestamp_ms": self.record.timestamp_ms,
                "headers": [[name, _text_or_base64(value)] for name, value in self.record.headers],
            }
        return document


def history(ledger: Ledger, letter: LetterState | None) -> list[Tried]:
    """The runs that had this letter, the oldest first."""
    if letter is None:
        return []
    wanted = LetterId(letter.handler, letter.event_id)
    tried = []
    for view in ledger.runs.values():
        request = view.requests.get(wanted)
        if request is not None:
            outcome = view.outcomes.get(wanted)
            result, error = ("waiting", "") if outcome is None else (outcome.result, outcome.error)
            tried.append(Tried(view.run, request.by, request.reason, screen.when(request.at), result, error))
    return tried


def as_json(letter: LetterState) -> dict[str, object]:
    """A letter's state for a program, with its key as text and its places as they are written everywhere."""
    document: dict[str, object] = msgspec.to_builtins(letter)
    return {**document, "key": letter.key_text(), "dlq": str(letter.dlq), "origin": str(letter.origin)}


def stack_of(record: Record | None) -> str:
    """The stack a letter carries; empty for none."""
    return "" if record is None else dlq_headers(record).get("error-stack", "")


def _state_rows(state: LetterState, record: Record | None, place: Place) -> list[tuple[str, str]]:
    headers = {} if record is None else dlq_headers(record)
    version = f", version {screen.safe(state.version)}" if state.version else ""
    host = f" on {screen.safe(headers['host'])}" if headers.get("host") else ""
    source = _source(record)
    by = f" by {screen.safe(source)}" if source else ""
    return [
        ("letter", f"{state.state}, {state.kind}, of {screen.safe(shown_handler(state))}; group {state.fingerprint}"),
        ("event", f"{screen.safe(state.event_type)}  {screen.safe(state.event_id, 128)}{by}"),
        ("key", screen.safe(state.key_text())),
        ("origin", str(state.origin)),
        ("dlq", str(place)),
        ("died", screen.safe(what_failed(state, stack_of(record)), 1_200)),
        ("attempts", f"{state.attempts}; {screen.when(state.first_failed_at)} to {screen.when(state.last_failed_at)}{version}{host}"),
    ]


def _source(record: Record | None) -> str | None:
    if record is None:
        return None
    value = dict(record.headers).get("choreo-source")
    return None if value is None else value.decode("utf-8", "replace")


def _section(name: str, lines: Sequence[str]) -> None:
    if lines:
        screen.say(f"\n{name}")
        for line in lines:
            screen.say(f"  {screen.safe(line.expandtabs(4), 2_000)}")


def _header_lines(record: Record) -> list[str]:
    # The dlq's own are above; the stack is below.
    own = [(name, value) for name, value in without_dlq_headers(record.headers)]
    lines = [f"{screen.safe(name, 100)}: {_short(value)}" for name, value in own[:MAX_HEADERS]]
    return lines + ([f"({len(own) - MAX_HEADERS} more)"] if len(own) > MAX_HEADERS else [])


def _short(value: bytes | None) -> str:
    if value is None:
        return "(null)"
    try:
        return screen.safe(value.decode(), MAX_HEADER_CHARS)
    except UnicodeDecodeError:
        return f"{screen.many(len(value), 'byte')}, not text: {value[:32].hex()}"


def shown_value(value: bytes | None) -> str:
    """A record's value as it may be shown: JSON indented, text as it is, other bytes as hex; cut where it is long."""
    if value is None:
        return "(null: a tombstone)"
    if not value:
        return "(empty)"
    text = _indented(value) or _plain(value)
    if len(text) > MAX_PAYLOAD_CHARS:
        return f"{text[:MAX_PAYLOAD_CHARS]}\n… ({len(value):,} bytes; --json has all)"
    return text


def _indented(value: bytes) -> str | None:
    if len(value) > MAX_VALUE_BYTES:
        return None
    try:
        # msgspec and not orjson: it reads integers of any size as they are.
        return orjson.dumps(msgspec.json.decode(value), option=orjson.OPT_INDENT_2).decode()
    except (ValueError, TypeError, RecursionError):
        return None


def _plain(value: bytes) -> str:
    try:
        return value[: MAX_PAYLOAD_CHARS * 4].decode()
    except UnicodeDecodeError:
        shown = value[:256]
        return "\n".join(shown[at : at + 32].hex(" ") for at in range(0, len(shown), 32)) + ("\n…" if len(value) > 256 else "")


def _text_or_base64(value: bytes | None) -> object:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
