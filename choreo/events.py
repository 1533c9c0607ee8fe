"""What can happen? Event types: a type name, a topic, a key, and a typed payload.

The facts of a type are `cls.__event__`. They are read from the class's own dict, because Python would inherit them and a
subclass without ``type=`` is a mixin, not an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, Generic, Literal, Protocol, dataclass_transform, runtime_checkable

import msgspec
from typing_extensions import TypeVar

from choreo.errors import ConfigurationError, did_you_mean

_STRUCT_OPTIONS = frozenset({"rename", "forbid_unknown_fields", "omit_defaults", "order", "eq", "gc", "cache_hash", "dict", "weakref"})
_OWN_OPTIONS = frozenset({"type", "topic", "key", "version"})
MAX_VERSION = 999_999
PayloadKind = Literal["struct", "dataclass", "pydantic", "any"]


class _Missing:
    """The default of a class keyword: was it given at all?"""


MISSING = _Missing()


@dataclass(frozen=True, slots=True)
class EventSpec:
    """The facts of an event type. `key` names a field or property of the payload; None means: no order."""

    type: str
    topic: str
    key: str | None
    version: int = 1
    kind: PayloadKind = "struct"


@runtime_checkable
class EventLike(Protocol):
    """Anything with `__event__`: an Event, a dataclass event, a pydantic event."""

    __event__: ClassVar[EventSpec]


P = TypeVar("P", bound=EventLike)


def event_spec(
    name: str,
    *,
    type: str | _Missing,
    topic: str | _Missing,
    key: str | _Missing | None,
    version: int,
    kind: PayloadKind,
) -> EventSpec | None:
    """The checked facts of one event class; None for a mixin (no `type`)."""
    if isinstance(type, _Missing):
        for keyword, given in (("topic", topic is not MISSING), ("key", key is not MISSING), ("version", version != 1)):
            if given:
                raise ConfigurationError(
                    f"event {name}: {keyword}= without type=; add type='...' (its name on the wire), or leave both out for a mixin"
                )
        return None
    for keyword, value in (("type", type), ("topic", topic)):
        if isinstance(value, _Missing):
            raise ConfigurationError(f"event {name}: {keyword}= is missing; say {keyword}='...'")
        if not _is_name(value):
            raise ConfigurationError(
                f"event {name}: {keyword}={value!r} is no name; use a printable string of 1 to 200 characters, not '*'"
            )
    if isinstance(key, _Missing):
        raise ConfigurationError(f"event {name}: key= is missing; name the field that orders its events, or say key=None for no order")
    if key is not None and not isinstance(key, str):
        raise ConfigurationError(f"event {name}: key={key!r} is no field name; use the name of a field or property, or None")
    if isinstance(version, bool) or not isinstance(version, int) or not 1 <= version <= MAX_VERSION:  # type: ignore[redundant-expr]
        raise ConfigurationError(f"event {name}: version={version!r}; versions count from 1 to {MAX_VERSION}")
    assert isinstance(topic, str)
    return EventSpec(type=type, topic=topic, key=key, version=version, kind=kind)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() and value == value.strip() and value != "*"


def check_key(cls: type, spec: EventSpec, *, known: tuple[str, ...]) -> None:
    """Refuses a key that is neither a field nor a property of the payload."""
    if spec.key is None or spec.key in known or isinstance(getattr(cls, spec.key, None), property | cached_property):
        return
    raise ConfigurationError(f"event {cls.__name__}: key={spec.key!r} is neither a field nor a property{did_you_mean(spec.key, known)}")


def check_event(cls: type[EventLike]) -> None:
    """Checks what could not be checked while the class of a dataclass or pydantic event was made: its fields, and its key."""
    spec = cls.__event__
    if spec.kind == "dataclass":
        if "__dataclass_fields__" not in cls.__dict__:
            raise ConfigurationError(f"event {cls.__name__} is no dataclass; put @dataclass(frozen=True) above its class line")
        check_key(cls, spec, known=tuple(field.name for field in fields(cls)))  # type: ignore[arg-type]
    elif spec.kind == "pydantic":
        check_key(cls, spec, known=(*cls.model_fields, *cls.model_computed_fields))  # type: ignore[attr-defined]


class EventMeta(msgspec.StructMeta):
    """Makes every Event frozen and keyword-only and checks its class keywords, which no type checker does."""

    def __new__(
        mcls: type[EventMeta],
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        type: str | _Missing = MISSING,
        topic: str | _Missing = MISSING,
        key: str | _Missing | None = MISSING,
        version: int = 1,
        **options: Any,
    ) -> EventMeta:
        for option in options.keys() - _STRUCT_OPTIONS - {"frozen", "kw_only"}:
            raise ConfigurationError(
                f"event {name}: unknown class keyword {option!r}{did_you_mean(option, _STRUCT_OPTIONS | _OWN_OPTIONS)}"
            )
        if not options.get("frozen", True) or not options.get("kw_only", True):
            raise ConfigurationError(f"event {name}: events are frozen and keyword-only; remove frozen=False or kw_only=False")
        options.update(frozen=True, kw_only=True)
        cls = super().__new__(mcls, name, bases, namespace, **options)
        spec = event_spec(name, type=type, topic=topic, key=key, version=version, kind="struct")
        if spec is not None:
            check_key(cls, spec, known=cls.__struct_fields__)
            # Not declared on the metaclass: pyright would then find it there, and no Event an EventLike.
            cls.__event__ = spec  # type: ignore[attr-defined]
        return cls


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(msgspec.field,))
class Event(msgspec.Struct, metaclass=EventMeta, frozen=True, kw_only=True):
    """A typed payload with a type name, a topic and a key: what services emit and react to.

    ::

        class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
            order_id: str
            total_cents: int

    Class keywords: `type` (the stored name; renaming it breaks consumers), `topic` (logical name, see
    ``ServiceSettings.topic_names``), `key` (a field or property holding a str or an int; ``key=None``: no order),
    `version` (1). Without `type` the class is a mixin. Raises ConfigurationError at class creation.
    """

    __event__: ClassVar[EventSpec]


class DataclassEvent:
    """The same for a dataclass: ``@dataclass(frozen=True) class X(DataclassEvent, type=..., topic=..., key=...)``.

    Its key is checked by ``Service(...)``: while the class is made its fields don't exist yet.
    """

    __event__: ClassVar[EventSpec]

    def __init_subclass__(
        cls,
        *,
        type: str | _Missing = MISSING,
        topic: str | _Missing = MISSING,
        key: str | _Missing | None = MISSING,
        version: int = 1,
        **options: Any,
    ) -> None:
        for option in options:
            raise ConfigurationError(f"event {cls.__name__}: unknown class keyword {option!r}{did_you_mean(option, _OWN_OPTIONS)}")
        super().__init_subclass__()
        spec = event_spec(cls.__name__, type=type, topic=topic, key=key, version=version, kind="dataclass")
        # @dataclass(slots=True) makes the class a second time, with no keywords but with our attribute in its dict.
        if spec is not None:
            cls.__event__ = spec


class AnyEvent(Event):
    """Any event of the topics in ``Handler.topics``: its payload as a mapping, unchecked."""

    __event__: ClassVar[EventSpec] = EventSpec(type="*", topic="*", key=None, kind="any")
    fields: Mapping[str, object]


class Tombstone(msgspec.Struct, Generic[P], frozen=True, kw_only=True):
    """A null value of a compacted topic, in and out: the key's state is gone. `of` says whose topic; `key` is the text of the key."""

    of: type[P]
    key: str


def own_spec(cls: object) -> EventSpec | None:
    """The facts this very class declared, not those it inherited; None for a mixin or something else."""
    found = getattr(cls, "__dict__", {}).get("__event__")
    return found if isinstance(found, EventSpec) else None


def key_of(event: EventLike) -> str | None:
    """The text of an event's key; None for ``key=None``. Raises ConfigurationError unless it is a str or an int."""
    name = event.__event__.key
    if name is None:
        return None
    value = getattr(event, name)
    if type(value) is str:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return int.__repr__(value)  # of an IntEnum too, whatever its __str__ says
    if isinstance(value, str):
        return str.__str__(value)
    raise ConfigurationError(
        f"{event.__event__.type}: its key {name!r} is {type(value).__name__}; a key is a str or an int (write a property that returns one)"
    )
