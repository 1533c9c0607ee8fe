"""Event classes: what their class line may say, and what their events can do."""

from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import msgspec
import pytest

from choreo.errors import ConfigurationError
from choreo.events import AnyEvent, Event, EventLike, EventMeta, EventSpec, Tombstone, key_of, own_spec


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int = 0


def refusal(name: str = "Wrong", **keywords: Any) -> str:
    """The message that ``class Wrong(Event, **keywords): order_id: str`` is refused with."""
    with pytest.raises(ConfigurationError) as refused:
        EventMeta(name, (Event,), {"__annotations__": {"order_id": str}, "__module__": __name__}, **keywords)
    return str(refused.value)


def test_the_class_line_is_kept_as_the_facts_of_the_type() -> None:
    actual = OrderPlaced.__event__

    assert actual == EventSpec(type="order.placed", topic="orders", key="order_id", version=1, kind="struct")


def test_an_event_is_an_event_like() -> None:
    event = OrderPlaced(order_id="o-1")

    actual = isinstance(event, EventLike)

    assert actual


def test_positional_arguments_are_refused_at_run_time_too() -> None:
    make: Any = OrderPlaced

    with pytest.raises(TypeError) as refused:
        make("o-1")

    assert str(refused.value) == "Extra positional arguments provided"


def test_positional_arguments_are_refused_by_a_subclass_of_a_mixin_too() -> None:
    class Stamped(Event):
        at: str

    class Shipped(Stamped, type="order.shipped", topic="orders", key=None):
        order_id: str

    make: Any = Shipped

    with pytest.raises(TypeError) as refused:
        make("now", "o-1")

    assert str(refused.value) == "Extra positional arguments provided"


def test_events_cannot_be_changed() -> None:
    event: Any = OrderPlaced(order_id="o-1")

    with pytest.raises(AttributeError) as refused:
        event.order_id = "o-2"

    assert str(refused.value) == "immutable type: 'OrderPlaced'"


def test_equal_events_are_equal_and_hash_alike() -> None:
    one, other = OrderPlaced(order_id="o-1"), OrderPlaced(order_id="o-1")

    actual = {one, other}

    assert actual == {one}


def test_fields_may_be_called_type_key_and_topic() -> None:
    class Odd(Event, type="odd", topic="odds", key="key"):
        type: str
        key: str
        topic: str
        version: int

    actual = Odd(type="t", key="k", topic="p", version=7)

    assert (actual.type, actual.key, actual.topic, actual.version, key_of(actual)) == ("t", "k", "p", 7, "k")


def test_a_class_without_type_is_a_mixin_and_no_event() -> None:
    class Priced(Event):
        total_cents: int

    actual = own_spec(Priced)

    assert actual is None


def test_a_mixin_gives_its_fields_to_events() -> None:
    class Priced(Event):
        total_cents: int = 0

    class Refunded(Priced, type="refunded", topic="payments", key="total_cents"):
        reason: str

    actual = Refunded(reason="late", total_cents=500)

    assert (actual.reason, actual.total_cents, key_of(actual)) == ("late", 500, "500")


def test_a_subclass_of_an_event_without_type_does_not_inherit_its_facts() -> None:
    class Special(OrderPlaced):
        discount: int = 0

    actual = own_spec(Special)

    assert actual is None


def test_one_event_type_may_have_two_classes_in_one_process() -> None:
    class Narrow(Event, type="order.placed", topic="orders", key="order_id"):
        order_id: str

    actual = Narrow.__event__

    assert actual == OrderPlaced.__event__


def test_struct_options_pass_through() -> None:
    class Renamed(Event, type="renamed", topic="t", key="order_id", rename="camel", omit_defaults=True):
        order_id: str
        note: str = ""

    actual = msgspec.json.encode(Renamed(order_id="o-1"))

    assert actual == b'{"orderId":"o-1"}'


def test_the_version_is_one_unless_said() -> None:
    class Second(Event, type="order.placed", topic="orders", key=None, version=2):
        order_id: str

    actual = (OrderPlaced.__event__.version, Second.__event__.version)

    assert actual == (1, 2)


def test_a_tombstone_says_whose_topic_and_which_key() -> None:
    actual = Tombstone(of=OrderPlaced, key="o-1")

    assert (actual.of, actual.key) == (OrderPlaced, "o-1")


def test_any_event_belongs_to_every_topic_and_has_no_key() -> None:
    actual = AnyEvent(fields={"a": 1})

    assert (actual.__event__, key_of(actual)) == (EventSpec(type="*", topic="*", key=None, kind="any"), None)


# ---- what the class line may not say --------------------------------------------------------------------------------


def test_a_misspelled_keyword_is_refused_with_the_right_one() -> None:
    actual = refusal(type="t", tpoic="orders", key=None)

    assert actual == "event Wrong: unknown class keyword 'tpoic'; did you mean 'topic'?"


def test_a_misspelled_key_is_refused_with_the_right_one() -> None:
    actual = refusal(type="t", topic="orders", key="ordr_id")

    assert actual == "event Wrong: key='ordr_id' is neither a field nor a property; did you mean 'order_id'?"


def test_a_key_that_resembles_nothing_is_refused_with_the_fields_there_are() -> None:
    actual = refusal(type="t", topic="orders", key="customer")

    assert actual == "event Wrong: key='customer' is neither a field nor a property; known: order_id"


def test_a_method_is_no_key() -> None:
    with pytest.raises(ConfigurationError) as refused:

        class Wrong(Event, type="t", topic="orders", key="identity"):
            order_id: str

            def identity(self) -> str:
                return self.order_id

    assert str(refused.value) == "event Wrong: key='identity' is neither a field nor a property; known: order_id"


@pytest.mark.parametrize(
    ("keywords", "expected"),
    [
        ({"type": "t", "key": None}, "event Wrong: topic= is missing; say topic='...'"),
        (
            {"type": "t", "topic": "orders"},
            "event Wrong: key= is missing; name the field that orders its events, or say key=None for no order",
        ),
        (
            {"topic": "orders"},
            "event Wrong: topic= without type=; add type='...' (its name on the wire), or leave both out for a mixin",
        ),
        (
            {"key": None},
            "event Wrong: key= without type=; add type='...' (its name on the wire), or leave both out for a mixin",
        ),
        (
            {"version": 2},
            "event Wrong: version= without type=; add type='...' (its name on the wire), or leave both out for a mixin",
        ),
        ({"type": "t", "topic": "o", "key": 3}, "event Wrong: key=3 is no field name; use the name of a field or property, or None"),
        (
            {"type": "t", "topic": "o", "key": None, "frozen": False},
            "event Wrong: events are frozen and keyword-only; remove frozen=False or kw_only=False",
        ),
        (
            {"type": "t", "topic": "o", "key": None, "kw_only": False},
            "event Wrong: events are frozen and keyword-only; remove frozen=False or kw_only=False",
        ),
    ],
)
def test_an_incomplete_class_line_is_refused_with_what_to_add(keywords: dict[str, Any], expected: str) -> None:
    actual = refusal(**keywords)

    assert actual == expected


@pytest.mark.parametrize("name", [3, "", " orders", "orders\n", "a\x1bb", "x" * 201, "*"])
def test_a_name_that_is_none_is_refused(name: object) -> None:
    actual = (refusal(type=name, topic="orders", key=None), refusal(type="t", topic=name, key=None))

    assert actual == (
        f"event Wrong: type={name!r} is no name; use a printable string of 1 to 200 characters, not '*'",
        f"event Wrong: topic={name!r} is no name; use a printable string of 1 to 200 characters, not '*'",
    )


@pytest.mark.parametrize("version", [0, -1, True, "2", 1.5, 1_000_000])
def test_a_version_that_a_header_could_not_carry_is_refused(version: object) -> None:
    actual = refusal(type="t", topic="orders", key=None, version=version)

    assert actual == f"event Wrong: version={version!r}; versions count from 1 to 999999"


# ---- keys -----------------------------------------------------------------------------------------------------------


class Colour(StrEnum):
    RED = "red"


class Rank(IntEnum):
    FIRST = 1

    def __str__(self) -> str:
        return "first!"


class Loud(str):
    def __str__(self) -> str:
        return self.upper()


class Counted(int):
    def __repr__(self) -> str:
        return "many"


class Keyed(Event, type="keyed", topic="t", key="id"):
    id: Any


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("o-1", "o-1"),
        ("", ""),
        ("Grüße", "Grüße"),
        (7, "7"),
        (-7, "-7"),
        (2**80, "1208925819614629174706176"),
        (Colour.RED, "red"),
        (Loud("o-1"), "o-1"),
        (Rank.FIRST, "1"),
        (Counted(7), "7"),
    ],
)
def test_the_key_is_the_text_of_a_str_or_an_int(value: object, expected: str) -> None:
    actual = key_of(Keyed(id=value))

    assert actual == expected


def test_the_key_of_a_str_subclass_is_a_plain_str() -> None:
    actual = type(key_of(Keyed(id=Loud("o-1"))))

    assert actual is str


@pytest.mark.parametrize(
    ("value", "shown"), [(True, "bool"), (None, "NoneType"), (1.0, "float"), (b"o-1", "bytes"), (UUID(int=1), "UUID"), (("a",), "tuple")]
)
def test_any_other_key_is_refused(value: object, shown: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        key_of(Keyed(id=value))

    assert str(refused.value) == f"keyed: its key 'id' is {shown}; a key is a str or an int (write a property that returns one)"


def test_a_property_can_be_the_key() -> None:
    class Transfer(Event, type="transfer", topic="transfers", key="pair"):
        source: str
        target: str

        @property
        def pair(self) -> str:
            return f"{self.source}>{self.target}"

    actual = key_of(Transfer(source="a", target="b"))

    assert actual == "a>b"


def test_a_property_of_a_mixin_can_be_the_key() -> None:
    class HasOrder(Event):
        number: int

        @property
        def order(self) -> str:
            return f"o-{self.number}"

    class Packed(HasOrder, type="packed", topic="orders", key="order"):
        boxes: int

    actual = key_of(Packed(number=7, boxes=1))

    assert actual == "o-7"


def test_no_key_means_no_order() -> None:
    class Logged(Event, type="logged", topic="log", key=None):
        line: str

    actual = key_of(Logged(line="x"))

    assert actual is None
