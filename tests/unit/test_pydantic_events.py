"""Pydantic models as events."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, computed_field

from choreo.errors import ConfigurationError
from choreo.events import EventLike, EventSpec, check_event, key_of, own_spec
from choreo.pydantic import PydanticEvent


class Line(BaseModel):
    sku: str
    price: int


class OrderPlaced(PydanticEvent, type="order.placed", topic="orders", key="order_id"):
    order_id: str = Field(alias="orderId")
    lines: list[Line] = []

    model_config = ConfigDict(title="An order")


def test_a_pydantic_event_has_the_facts_of_its_class_line() -> None:
    actual = OrderPlaced.__event__

    assert actual == EventSpec(type="order.placed", topic="orders", key="order_id", version=1, kind="pydantic")


def test_a_pydantic_event_is_an_event_like_with_a_key() -> None:
    event = OrderPlaced(orderId="o-1")

    actual = (isinstance(event, EventLike), key_of(event))

    assert actual == (True, "o-1")


def test_pydantic_events_are_frozen_also_where_a_subclass_configures_more() -> None:
    event: Any = OrderPlaced(orderId="o-1")

    with pytest.raises(ValidationError) as refused:
        event.order_id = "o-2"

    assert refused.value.errors()[0]["type"] == "frozen_instance"


def test_what_json_cannot_write_is_refused_when_the_event_is_made() -> None:
    class Priced(PydanticEvent, type="priced", topic="t", key=None):
        amount: float

    with pytest.raises(ValidationError) as refused:
        Priced(amount=float("nan"))

    assert refused.value.errors()[0]["type"] == "finite_number"


def test_a_model_without_type_is_a_mixin() -> None:
    class Base(PydanticEvent):
        order_id: str

    class Shipped(Base, type="shipped", topic="orders", key="order_id"):
        carrier: str

    actual = (own_spec(Base), key_of(Shipped(order_id="o-1", carrier="dhl")))

    assert actual == (None, "o-1")


def test_a_subclass_of_a_pydantic_event_does_not_inherit_its_facts() -> None:
    class Special(OrderPlaced):
        discount: int = 0

    actual = own_spec(Special)

    assert actual is None


def test_pydantics_own_class_keywords_pass_through() -> None:
    class Strict(PydanticEvent, type="strict", topic="t", key=None, extra="forbid"):
        order_id: str

    with pytest.raises(ValidationError) as refused:
        Strict.model_validate({"order_id": "o-1", "more": 1})

    assert refused.value.errors()[0]["type"] == "extra_forbidden"


def test_a_misspelled_keyword_is_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigurationError) as refused:

        class Wrong(PydanticEvent, type="wrong", topc="orders", key=None):
            order_id: str

    assert str(refused.value) == "event Wrong: unknown class keyword 'topc'; did you mean 'topic'?"


def test_a_wrong_key_is_found_by_the_check() -> None:
    class Wrong(PydanticEvent, type="wrong", topic="orders", key="ordr_id"):
        order_id: str

    with pytest.raises(ConfigurationError) as refused:
        check_event(Wrong)

    assert str(refused.value) == "event Wrong: key='ordr_id' is neither a field nor a property; did you mean 'order_id'?"


def test_a_property_and_a_computed_field_can_be_the_key() -> None:
    class ByProperty(PydanticEvent, type="a", topic="t", key="pair"):
        source: str

        @property
        def pair(self) -> str:
            return f"{self.source}>"

    class ByComputedField(PydanticEvent, type="b", topic="t", key="pair"):
        source: str

        @computed_field  # type: ignore[prop-decorator]
        @property
        def pair(self) -> str:
            return f"{self.source}>"

    check_event(ByProperty)
    check_event(ByComputedField)

    assert [key_of(ByProperty(source="a")), key_of(ByComputedField(source="b"))] == ["a>", "b>"]
