"""Dataclasses as events."""

from dataclasses import dataclass, field

import pytest

from choreo.errors import ConfigurationError
from choreo.events import DataclassEvent, EventLike, EventSpec, check_event, key_of, own_spec


@dataclass(frozen=True)
class OrderPlaced(DataclassEvent, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    tags: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Slotted(DataclassEvent, type="slotted", topic="orders", key="order_id", version=3):
    order_id: str


def test_a_dataclass_event_has_the_facts_of_its_class_line() -> None:
    actual = OrderPlaced.__event__

    assert actual == EventSpec(type="order.placed", topic="orders", key="order_id", version=1, kind="dataclass")


def test_a_dataclass_event_is_an_event_like_with_a_key() -> None:
    event = OrderPlaced(order_id="o-1")

    actual = (isinstance(event, EventLike), key_of(event))

    assert actual == (True, "o-1")


def test_a_slotted_dataclass_keeps_its_facts_though_its_class_is_made_twice() -> None:
    actual = own_spec(Slotted)

    assert actual == EventSpec(type="slotted", topic="orders", key="order_id", version=3, kind="dataclass")


def test_a_slotted_dataclass_that_is_not_frozen_is_an_event_too() -> None:
    @dataclass(slots=True)
    class Loose(DataclassEvent, type="loose", topic="orders", key="order_id"):
        order_id: str

    actual = (own_spec(Loose), key_of(Loose("o-1")))

    assert actual == (EventSpec(type="loose", topic="orders", key="order_id", kind="dataclass"), "o-1")


def test_a_dataclass_without_type_is_a_mixin() -> None:
    @dataclass(frozen=True)
    class Base(DataclassEvent):
        order_id: str

    @dataclass(frozen=True)
    class Shipped(Base, type="shipped", topic="orders", key="order_id"):
        carrier: str

    actual = (own_spec(Base), key_of(Shipped(order_id="o-1", carrier="dhl")))

    assert actual == (None, "o-1")


def test_a_subclass_of_a_dataclass_event_does_not_inherit_its_facts() -> None:
    @dataclass(frozen=True)
    class Special(OrderPlaced):
        discount: int = 0

    actual = own_spec(Special)

    assert actual is None


def test_a_misspelled_keyword_is_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigurationError) as refused:

        class Wrong(DataclassEvent, type="wrong", topic="orders", kye="order_id"):
            order_id: str

    assert str(refused.value) == "event Wrong: unknown class keyword 'kye'; did you mean 'key'?"


@pytest.mark.parametrize("keywords", [{"type": "t"}, {"type": "t", "topic": "o"}, {"topic": "o"}])
def test_an_incomplete_class_line_is_refused(keywords: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        type("Wrong", (DataclassEvent,), {}, **keywords)

    assert str(refused.value).startswith("event Wrong: ")


@pytest.mark.parametrize("cls", [OrderPlaced, Slotted])
def test_a_good_dataclass_event_passes_the_check(cls: type[EventLike]) -> None:
    check_event(cls)


def test_a_wrong_key_is_found_by_the_check() -> None:
    @dataclass(frozen=True)
    class Wrong(DataclassEvent, type="wrong", topic="orders", key="ordr_id"):
        order_id: str

    with pytest.raises(ConfigurationError) as refused:
        check_event(Wrong)

    assert str(refused.value) == "event Wrong: key='ordr_id' is neither a field nor a property; did you mean 'order_id'?"


def test_a_forgotten_decorator_is_found_by_the_check() -> None:
    class Wrong(DataclassEvent, type="wrong", topic="orders", key="order_id"):
        order_id: str

    with pytest.raises(ConfigurationError) as refused:
        check_event(Wrong)

    assert str(refused.value) == "event Wrong is no dataclass; put @dataclass(frozen=True) above its class line"


def test_a_forgotten_decorator_is_found_where_the_base_has_one() -> None:
    class Wrong(OrderPlaced, type="wrong", topic="orders", key="order_id"):
        carrier: str

    with pytest.raises(ConfigurationError) as refused:
        check_event(Wrong)

    assert str(refused.value) == "event Wrong is no dataclass; put @dataclass(frozen=True) above its class line"


def test_a_property_can_be_the_key() -> None:
    @dataclass(frozen=True)
    class Transfer(DataclassEvent, type="transfer", topic="transfers", key="pair"):
        source: str

        @property
        def pair(self) -> str:
            return f"{self.source}>"

    check_event(Transfer)

    assert key_of(Transfer("a")) == "a>"
