"""Who must act when something goes wrong, and what do they read?

::

    ChoreoError
    ├── ConfigurationError   the operator: a setting, a name, a topic that is not as declared (also a ValueError)
    ├── DecodeError          the producer: bytes that do not say what their type promises; never retried
    ├── HandlerError         the service's author
    │   ├── PermanentError   no retry: dead-lettered at once
    │   │   ├── UndeclaredEmitError   a handler emitted a type that its contract does not name
    │   │   └── CrashLoopError   the process ended each time a handler had an event
    │   └── TransientError   retried; `retry_after_s` overrides the backoff
    │       └── HandlerTimeoutError
    ├── BrokerError          Kafka: `retriable`, `fatal`
    ├── StoreError           the store: `retriable`
    │   └── TransactionLostError   a handlers' transaction ended by itself; its deliveries run again
    └── StateError           us: an invariant does not hold; stop without committing

A message says what happened, against what, and what to do; the facts it was made of stay as attributes. The messages
that more than one place needs are composed here.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class ChoreoError(Exception):
    """The root: `except ChoreoError` catches everything choreo raises on purpose."""


class ConfigurationError(ChoreoError, ValueError):
    """A setting, a name or a topic is not what the service needs; nothing was started or written."""


class DecodeError(ChoreoError):
    """The bytes of a record are not the event they claim to be. Never retried.

    `reason` is one of `value`, `envelope`, `type`, `version`, `payload`; `path` is where in the value
    (``payload.total_cents``), `detail` what was expected and what came, `event_type` the type where it was readable.
    All of them may hold what a stranger wrote: they are shortened, and what can't be printed is escaped.
    """

    def __init__(self, reason: str, detail: str, *, path: str = "", event_type: str | None = None) -> None:
        self.reason = reason
        self.detail = printable(detail, 400)
        self.path = printable(path, 200)
        self.event_type = None if event_type is None else printable(event_type, 200)
        super().__init__(reason, self.detail)

    def __str__(self) -> str:
        field = self.path.removeprefix("payload").removeprefix(".") if self.reason == "payload" else self.path
        what = f"payload of {self.event_type}" if self.reason == "payload" and self.event_type else self.reason
        return f"{what}: {field}: {self.detail}" if field else f"{what}: {self.detail}"


class HandlerError(ChoreoError):
    """The handler says how its failure is to be treated."""


class PermanentError(HandlerError):
    """Trying again cannot help: the delivery is dead-lettered at once.

    >>> raise PermanentError("card 4421 is unknown to the gateway")
    Traceback (most recent call last):
    ...
    choreo.errors.PermanentError: card 4421 is unknown to the gateway
    """


class UndeclaredEmitError(PermanentError):
    """A handler emitted an event type that its return annotation (or `emits`) does not name."""


class CrashLoopError(PermanentError):
    """The process ended each time it handled this event, alone: it is not handled any more."""


class TransientError(HandlerError):
    """Trying again may help. `retry_after_s` (seconds) replaces the policy's delay for this attempt."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        # float(): a Retry-After header is text, and this must fail here, not in the engine.
        self.retry_after_s = None if retry_after_s is None else float(retry_after_s)


class HandlerTimeoutError(TransientError):
    """An async handler ran longer than its `timeout_s` and was cancelled."""


class BrokerError(ChoreoError):
    """Kafka refused or failed. `code` is librdkafka's or the broker's error name."""

    def __init__(self, message: str, *, code: str = "", retriable: bool = True, fatal: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.retriable = retriable
        self.fatal = fatal


class StoreError(ChoreoError):
    """The store refused or failed; `retriable` says whether waiting may help."""

    def __init__(self, message: str, *, retriable: bool = True) -> None:
        super().__init__(message)
        self.retriable = retriable


class TransactionLostError(StoreError):
    """The transaction of a burst can't go on, or nobody knows whether it was committed; its deliveries run again, one by one.

    `reason` is one of `claimed` (another member has claimed an event of it), `deadlock`, `serialization`, `lock` (one was waited for too
    long), `quiet` (the database ended it, for it was silent for too long), `connection` (lost, COMMIT unanswered or not sent),
    `rolled-back` (a statement of a handler did that).
    """

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message, retriable=True)
        self.reason = reason


class StateError(ChoreoError):
    """An invariant of choreo does not hold. The process stops without committing."""


def told(error: BaseException) -> str:
    """What an error says of itself, also one whose `__str__` fails; its type where that is nothing."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - somebody else's code, asked while its failure is being handled
        text = ""
    return text or type(error).__qualname__


def printable(text: str, max_chars: int) -> str:
    """The text as it may be shown on a terminal and sent in a header: control characters escaped, the middle of what is too long left out."""
    if len(text) > max_chars:
        text = f"{text[: max_chars // 2]}…{text[-((max_chars - 1) // 2) :]}"
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The tail of a message about an unknown word: ``; did you mean 'order_id'?``, else the known ones, else nothing."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(names)}" if names else ""
