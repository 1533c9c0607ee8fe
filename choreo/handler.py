"""Who reacts to what? Handlers, what they are given, what they may emit, and what their class says about them.

A handler's contract is read from its class once, by `describe`, when a Service is made: the event types from
``Handler[...]`` (also through generic bases of a team's own), the emitted types from the return annotation.
"""

from __future__ import annotations

import collections.abc
import hashlib
import inspect
import re
import types
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any, ClassVar, Generic, Never, NoReturn, TypeAlias, Union, get_args, get_origin, get_type_hints

import msgspec
from typing_extensions import NoDefault, TypeAliasType, TypeVar

from choreo.core.retry import RetryPolicy
from choreo.envelope import CONTROL_PREFIX, Envelope, Wire, parse_baggage, text_headers
from choreo.errors import ConfigurationError, PermanentError
from choreo.events import AnyEvent, EventLike, Tombstone, check_event, own_spec
from choreo.record import Record

P = TypeVar("P", bound="EventLike | Tombstone[Any]")
T = TypeVar("T", default=None)
E = TypeVar("E", bound=EventLike, covariant=True)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


class Origin(msgspec.Struct, frozen=True):
    """Where the record stands. `timestamp` is the record's own, UTC; None where the topic has none."""

    topic: str
    partition: int
    offset: int
    timestamp: datetime | None

    def __str__(self) -> str:
        return f"{self.topic}[{self.partition}]@{self.offset}"


class Replay(msgspec.Struct, frozen=True):
    """The run this delivery belongs to: its id, who asked, why, and whether it was forced past a success."""

    run: str
    by: str
    reason: str
    forced: bool = False


class Failure(msgspec.Struct, frozen=True):
    """Why a delivery failed for good, as `recover` and letters see it. Times are aware, UTC."""

    error_type: str
    message: str
    attempts: int
    permanent: bool
    first_failed_at: datetime
    last_failed_at: datetime


class Context(msgspec.Struct, Generic[T], frozen=True):
    """What a handler may know about the delivery it handles; all of it read-only.

    `event_id`, `flow_id` (the id of the flow: everything one first event caused), `attempt` (from 1), `max_attempts`,
    `replay` (None for live events), `transaction` (None unless the handler asks for a connection).
    """

    service: str
    handler: str
    attempt: int
    max_attempts: int
    replay: Replay | None
    transaction: T
    _record: Record
    _wire: Wire
    _identity: str = ""

    @property
    def event_id(self) -> str:
        """The event's id; of an event that came without one, derived from where it stands and what it holds."""
        return self._wire.event_id

    @property
    def flow_id(self) -> str:
        """The id of the flow: everything that one first event caused."""
        return self._wire.flow_id

    @property
    def cause_id(self) -> str | None:
        """The id of the event that caused this one; None for the first of a flow."""
        return self._wire.cause_id

    @property
    def source(self) -> str | None:
        """Who emitted it: ``orders/place-order``."""
        return self._wire.source

    @property
    def key(self) -> str | None:
        """The record's key as text; bytes that are not UTF-8 show as replacement characters."""
        key = self._record.key
        return None if key is None else key.decode("utf-8", "replace")

    @property
    def origin(self) -> Origin:
        """Where the record stands in Kafka."""
        record = self._record
        at = _EPOCH + timedelta(milliseconds=record.timestamp_ms) if 0 <= record.timestamp_ms < 253402300800000 else None
        return Origin(record.topic, record.partition, record.offset, at)

    @property
    def headers(self) -> Mapping[str, str]:
        """Every readable header as text."""
        return text_headers(self._record.headers)

    @property
    def baggage(self) -> Mapping[str, str]:
        """W3C baggage: tenant, locale, whatever travels along the flow."""
        return parse_baggage(self._wire.text("baggage"))

    def idempotency_key(self, purpose: str = "") -> str:
        """A key for a gateway: the same on every retry, crash and replay, another when a replay is forced.

        `purpose` tells two calls of one handler apart. 32 hex digits.
        """
        run = self.replay.run if self.replay is not None and self.replay.forced else ""
        parts = (self.event_id, self.service, self._identity or self.handler, run, purpose)
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


class _Carries(msgspec.Struct, Generic[E], frozen=True):
    event: E


class Emit(_Carries[E], Generic[E], frozen=True, kw_only=True):
    """An event with more said about it than the event itself can say.

    `key` and `topic` (a logical name) replace the type's own, `headers` are added (names that begin with ``choreo-``
    are refused), `id_key` makes the child id independent of the order of emits. `after` (from the commit on) or `at` (aware) makes it a
    timer, which can't be cancelled: it is published then, by the database's clock, whatever has happened meanwhile. Only
    ``Handler[..., Connection]`` and `Service.outbox` have timers. Raises PermanentError for what can't be.
    """

    key: str | None = None
    topic: str | None = None
    headers: Mapping[str, str] = {}
    id_key: str | None = None
    after: timedelta | None = None
    at: datetime | None = None

    def __post_init__(self) -> None:
        if self.after is not None and self.at is not None:
            raise PermanentError("Emit: after= and at= are two times; give one")
        if self.at is not None and self.at.tzinfo is None:
            raise PermanentError(f"Emit: at={self.at!r} has no time zone; use an aware datetime")
        for name in self.headers:
            if name.startswith(CONTROL_PREFIX):
                raise PermanentError(f"Emit: header {name!r}; names that begin with {CONTROL_PREFIX} are choreo's own, use another")


EmitItem: TypeAlias = EventLike | Emit[EventLike] | Tombstone[Any]
Emits: TypeAlias = EmitItem | Iterable[EmitItem] | None
"""What a handler may return; as its return annotation: undeclared, anything."""


class Handler(ABC, Generic[P, T]):
    """Reacts to events: ``class ChargeCard(Handler[OrderPlaced])`` with an ``async def handle`` or a ``def handle``.

    ``async def`` runs on the event loop, ``def`` on a worker thread. One instance serves many events at once and keeps
    no state between them. The base has no ``__init__``: yours needs no ``super().__init__()``.
    """

    name: str = ""
    aliases: tuple[str, ...] = ()
    retry: RetryPolicy = RetryPolicy()
    timeout_s: float = 60.0
    ordered: bool = True
    max_concurrency: int | None = None
    topics: tuple[str, ...] = ()
    emits: ClassVar[tuple[type[EventLike], ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" not in cls.__dict__:
            cls.name = kebab_case(cls.__name__)

    @abstractmethod
    def handle(self, event: Envelope[P], context: Context[T], /) -> Emits | Awaitable[Emits]:
        """Handles one event; what it returns is emitted. Raise TransientError or PermanentError to say what a failure is."""

    def recover(self, event: Envelope[P], failure: Failure, context: Context[T], /) -> Emits | Awaitable[Emits]:
        """The last resort, when it is overridden: turns a final failure into emits (compensation) instead of a letter."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class HandlerSpec:
    """What a handler's class says, read once. `emits` None: undeclared, everything is allowed."""

    handler: Handler[Any, Any]
    index: int
    name: str
    aliases: tuple[str, ...]
    payloads: tuple[type[EventLike], ...]
    tombstones: tuple[type[EventLike], ...]
    topics: tuple[str, ...]
    emits: frozenset[type] | None
    transaction: type | None
    on_thread: bool
    recovers: bool
    retry: RetryPolicy = field(repr=False)
    timeout_s: float = 60.0
    ordered: bool = True
    max_concurrency: int | None = None

    @property
    def identity(self) -> str:
        """Its first name: claims, child ids and idempotency keys are made with it, so that a rename changes none of them."""
        return self.aliases[0] if self.aliases else self.name

    @property
    def takes_any(self) -> bool:
        return AnyEvent in self.payloads

    def event_names(self) -> tuple[str, ...]:
        """The wire names it reacts to, ``*`` for AnyEvent."""
        return tuple(dict.fromkeys(cls.__event__.type for cls in (*self.payloads, *self.tombstones)))


def describe(handler: Handler[Any, Any], index: int) -> HandlerSpec:
    """Reads a handler's contract. Raises ConfigurationError that says what to write instead."""
    cls = type(handler)
    if isinstance(handler, type):
        raise ConfigurationError(f"handler {handler.__name__} is a class; pass an instance, {handler.__name__}(...)")
    _check_attributes(handler)
    payloads, tombstones = _payload_types(cls)
    name = handler.name
    topics = _topics(handler, payloads, tombstones)
    on_thread = _runs_on_thread(handler)
    return HandlerSpec(
        handler=handler,
        index=index,
        name=name,
        aliases=handler.aliases,
        payloads=payloads,
        tombstones=tombstones,
        topics=topics,
        emits=_emits(handler),
        transaction=_transaction_type(cls),
        on_thread=on_thread,
        recovers=cls.recover is not Handler.recover,
        retry=handler.retry,
        timeout_s=float(handler.timeout_s),
        ordered=handler.ordered,
        max_concurrency=handler.max_concurrency,
    )


def _check_attributes(handler: Handler[Any, Any]) -> None:
    shown = f"handler {type(handler).__name__}"
    for attribute in ("aliases", "topics", "emits"):
        value: object = getattr(handler, attribute, ())
        if not isinstance(value, tuple):
            raise ConfigurationError(f"{shown}: {attribute}={value!r} is no tuple; write {attribute} = (...,), the comma makes it one")
    for written in (handler.name, *handler.aliases):
        if not _NAME.fullmatch(written):
            raise ConfigurationError(f"{shown}: name {written!r}; use lower-case letters, digits, '.', '_' and '-', at most 128")
    retry, timeout_s, at_once = (getattr(handler, attribute) for attribute in ("retry", "timeout_s", "max_concurrency"))
    if not isinstance(retry, RetryPolicy):
        raise ConfigurationError(f"{shown}: retry={retry!r}; use RetryPolicy(max_attempts=...)")
    if not (isinstance(timeout_s, int | float) and isfinite(timeout_s) and timeout_s > 0):
        raise ConfigurationError(f"{shown}: timeout_s={timeout_s!r}; use finite seconds above 0")
    if at_once is not None and not (isinstance(at_once, int) and at_once >= 1):
        raise ConfigurationError(f"{shown}: max_concurrency={at_once!r}; use at least 1, or None")


def kebab_case(name: str) -> str:
    """``ChargeCard`` -> ``charge-card``, ``HTTPHook`` -> ``http-hook``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name.strip("_")).replace("_", "-").lower()


def handler_arguments(cls: type) -> tuple[Any, Any]:
    """The P and T of ``Handler[P, T]``, resolved through generic bases of the user's own."""
    found = _resolve(cls, {})
    if found is None or isinstance(found[0], TypeVar):
        raise ConfigurationError(f"handler {cls.__name__}: which event? write class {cls.__name__}({cls.__bases__[0].__name__}[SomeEvent])")
    return found


def _resolve(cls: Any, bound: Mapping[Any, Any]) -> tuple[Any, Any] | None:
    for base in cls.__dict__.get("__orig_bases__", cls.__bases__):
        origin = get_origin(base) or base
        if not issubclass(origin, Handler):
            continue
        arguments = tuple(_substitute(argument, bound) for argument in get_args(base))
        if origin is Handler:
            return (arguments[0], arguments[1] if len(arguments) > 1 else type(None)) if arguments else None
        parameters: tuple[Any, ...] = getattr(origin, "__parameters__", ())
        defaults = {parameter: _default_of(parameter) for parameter in parameters[len(arguments) :]}
        return _resolve(origin, defaults | dict(zip(parameters, arguments, strict=False)))
    return None


def _default_of(parameter: Any) -> Any:
    # Where a type variable has no default it stays what it is, and handler_arguments refuses it.
    default = getattr(parameter, "__default__", NoDefault)
    return parameter if default is NoDefault else default


def _substitute(argument: Any, bound: Mapping[Any, Any]) -> Any:
    if argument in bound:
        return bound[argument]
    parameters = getattr(argument, "__parameters__", ())
    if parameters and not isinstance(argument, type):
        return argument[tuple(bound.get(parameter, parameter) for parameter in parameters)]
    return argument


def _payload_types(cls: type) -> tuple[tuple[type[EventLike], ...], tuple[type[EventLike], ...]]:
    payloads: list[type[EventLike]] = []
    tombstones: list[type[EventLike]] = []
    for member in _members(handler_arguments(cls)[0]):
        wanted, into = (get_args(member)[0], tombstones) if get_origin(member) is Tombstone else (member, payloads)
        if own_spec(wanted) is None or (wanted is AnyEvent and into is tombstones):
            shown = getattr(wanted, "__name__", repr(wanted))
            raise ConfigurationError(
                f"handler {cls.__name__}: {shown} is no event type; it needs a class with type=, topic=, key= (or AnyEvent)"
            )
        check_event(wanted)
        into.append(wanted)
    _refuse_ambiguous(cls, [(payload.__event__.topic, payload.__event__.type) for payload in payloads], "two classes of one type")
    _refuse_ambiguous(cls, [tombstone.__event__.topic for tombstone in tombstones], "two Tombstones of one topic, and a null says no type")
    return tuple(payloads), tuple(tombstones)


def _refuse_ambiguous(cls: type, names: list[Any], why: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(f"handler {cls.__name__}: {name} is there twice: {why}; name one of them")


def _members(annotation: Any) -> tuple[Any, ...]:
    if isinstance(annotation, TypeAliasType):
        return _members(annotation.__value__)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(member for part in get_args(annotation) for member in _members(part))
    return (annotation,)


def _transaction_type(cls: type) -> type | None:
    wanted = handler_arguments(cls)[1]
    if wanted in (None, type(None)) or isinstance(wanted, TypeVar):
        return None
    connection = get_origin(wanted) or wanted  # AsyncConnection[DictRow] is an AsyncConnection
    if not isinstance(connection, type) or connection in (Any, types.UnionType):
        raise ConfigurationError(f"handler {cls.__name__}: its second parameter {wanted!r} is no class of connections; use AsyncConnection")
    return connection


def _topics(handler: Handler[Any, Any], payloads: tuple[type[EventLike], ...], tombstones: tuple[type[EventLike], ...]) -> tuple[str, ...]:
    if AnyEvent in payloads:
        if len(payloads) > 1 or tombstones or not handler.topics:
            raise ConfigurationError(f"handler {handler.name}: AnyEvent stands alone and needs topics=('...',)")
        return tuple(handler.topics)
    if handler.topics:
        raise ConfigurationError(f"handler {handler.name}: topics= is for AnyEvent only; the topics come from its event types")
    return tuple(dict.fromkeys(cls.__event__.topic for cls in (*payloads, *tombstones)))


def _runs_on_thread(handler: Handler[Any, Any]) -> bool:
    cls = type(handler)
    if cls.recover is not Handler.recover:
        _is_async(handler, cls.recover)
    return not _is_async(handler, cls.handle)


def _is_async(handler: Handler[Any, Any], function: Callable[..., object]) -> bool:
    inner = inspect.unwrap(function)
    for layer in (function, inner):
        if inspect.isasyncgenfunction(layer) or inspect.isgeneratorfunction(layer):
            raise ConfigurationError(f"handler {handler.name}: {inner.__name__} must not yield; return the events (one, a list, or None)")
    if inspect.iscoroutinefunction(inner) and not inspect.iscoroutinefunction(function):
        # It would run on a thread, and its answer would be a coroutine that nobody awaits.
        decorator = getattr(getattr(function, "__code__", None), "co_qualname", type(function).__qualname__)
        raise ConfigurationError(
            f"handler {handler.name}: {inner.__name__} is 'async def', but its decorator's wrapper {decorator} is not; "
            "make that wrapper 'async def' too, and await in it"
        )
    return inspect.iscoroutinefunction(function)


def _emits(handler: Handler[Any, Any]) -> frozenset[type] | None:
    declared = getattr(handler, "emits", None)
    if declared is not None:
        for cls in declared:
            if own_spec(cls) is None or cls is AnyEvent:
                raise ConfigurationError(f"handler {handler.name}: emits names {cls!r}, which is no event type that can be emitted")
            check_event(cls)
        return frozenset(declared)
    found: set[type] = set()
    functions: list[Callable[..., object]] = [type(handler).handle]
    if type(handler).recover is not Handler.recover:
        functions.append(type(handler).recover)
    for function in functions:
        hints = _return_hint(handler, function)
        if not _collect(handler, hints, found):
            return None
    return frozenset(found)


def _return_hint(handler: Handler[Any, Any], function: Any) -> Any:
    inner = inspect.unwrap(function)
    written = inspect.get_annotations(inner)
    if "return" not in written:
        raise ConfigurationError(
            f"handler {handler.name}: {inner.__name__} has no return annotation, and it is the contract; "
            f"write '-> OrderPaid | None', '-> None', or '-> Emits' for undeclared"
        )
    try:
        # The return annotation alone: a connection that is imported under TYPE_CHECKING for a parameter does no harm.
        alone = types.SimpleNamespace(__annotations__={"return": written["return"]})
        return get_type_hints(alone, globalns=getattr(inner, "__globals__", {}))["return"]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigurationError(
            f"handler {handler.name}: its return annotation can't be read ({error}; imported under TYPE_CHECKING, "
            "or a class made inside a function?); import it for real, or say emits = (...) on the class"
        ) from error


_CONTAINERS = (
    Iterable,
    collections.abc.Iterator,
    list,
    tuple,
    set,
    frozenset,
    collections.abc.Sequence,
    collections.abc.Collection,
    Awaitable,
)


def _collect(handler: Handler[Any, Any], annotation: Any, into: set[type]) -> bool:
    """Adds the event types an annotation names; False when it is `Emits`, or anything: undeclared."""
    if annotation in (None, type(None), Ellipsis, Never, NoReturn):
        return True
    if annotation in (Any, EventLike, object) or isinstance(annotation, TypeVar):
        return False
    if isinstance(annotation, TypeAliasType):
        return _collect(handler, annotation.__value__, into)
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType) or origin in _CONTAINERS or origin in (Emit, Tombstone):
        return all(_collect(handler, part, into) for part in get_args(annotation))
    if origin is collections.abc.Coroutine:
        return _collect(handler, get_args(annotation)[2], into)
    if own_spec(annotation) is not None and annotation is not AnyEvent:
        check_event(annotation)
        into.add(annotation)
        return True
    raise ConfigurationError(f"handler {handler.name}: its return annotation names {annotation!r}, which is no event type; see Emits")
