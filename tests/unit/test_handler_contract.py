"""What a handler's class says about it, read by `describe`: event types, emits, where it runs, what is refused."""

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Optional, TypeVar, Union

import pytest
from typing_extensions import TypeAliasType
from typing_extensions import TypeVar as DefaultingTypeVar

from choreo.core.retry import RetryPolicy
from choreo.envelope import Envelope
from choreo.errors import ConfigurationError
from choreo.events import AnyEvent, DataclassEvent, Event, EventLike, Tombstone
from choreo.handler import Context, Emit, Emits, Failure, Handler, HandlerSpec, describe, kebab_case
from choreo.pydantic import PydanticEvent
from tests.unit import postponed


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str


class OrderAmended(Event, type="order.amended", topic="orders", key="order_id"):
    order_id: str


class OrderShipped(Event, type="order.shipped", topic="shipping", key="order_id"):
    order_id: str


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


@dataclass(frozen=True)
class StockReserved(DataclassEvent, type="stock.reserved", topic="stock", key="sku"):
    sku: str


class RefundAsked(PydanticEvent, type="refund.asked", topic="payments", key="order_id"):
    order_id: str


class Connection:
    """Stands for psycopg's AsyncConnection."""


Row = TypeVar("Row")


class RowConnection(Generic[Row]):
    """Stands for AsyncConnection[DictRow]."""


P = TypeVar("P", bound=EventLike)
Q = TypeVar("Q", bound=EventLike)
Loose = TypeVar("Loose")


def described(cls: type[Handler[Any, Any]]) -> HandlerSpec:
    return describe(cls(), 0)


def refusal(cls: type[Handler[Any, Any]]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        described(cls)
    return str(refused.value)


def emitting(annotation: Any) -> type[Handler[Any, Any]]:
    """A handler of OrderPlaced with that return annotation."""

    class Emitting(Handler[OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
            return None

    Emitting.handle.__annotations__["return"] = annotation
    return Emitting


class Ship(Handler[OrderPlaced]):
    async def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderShipped:
        return OrderShipped(order_id=event.payload.order_id)


# ---- the whole ------------------------------------------------------------------------------------------------------


def test_a_plain_handler_is_described_with_the_defaults() -> None:
    handler = Ship()

    actual = describe(handler, 3)

    assert actual == HandlerSpec(
        handler=handler,
        index=3,
        name="ship",
        aliases=(),
        payloads=(OrderPlaced,),
        tombstones=(),
        topics=("orders",),
        emits=frozenset({OrderShipped}),
        transaction=None,
        on_thread=False,
        recovers=False,
        retry=RetryPolicy(),
        timeout_s=60.0,
        ordered=True,
        max_concurrency=None,
    )


def test_what_the_class_says_of_itself_is_described() -> None:
    class Careful(Ship):
        name = "the.careful_one-2"
        aliases = ("careful",)
        retry = RetryPolicy(max_attempts=7)
        timeout_s = 5
        ordered = False
        max_concurrency = 2

    actual = described(Careful)

    assert (actual.name, actual.aliases, actual.retry, actual.timeout_s, actual.ordered, actual.max_concurrency) == (
        "the.careful_one-2",
        ("careful",),
        RetryPolicy(max_attempts=7),
        5.0,
        False,
        2,
    )


def test_a_handler_without_handle_cannot_be_made() -> None:
    class Misspelled(Handler[OrderPlaced]):
        async def handel(self, event: Envelope[OrderPlaced], context: Context) -> None:
            return None

    make: Callable[[], object] = Misspelled

    with pytest.raises(TypeError) as refused:
        make()

    assert str(refused.value) == "Can't instantiate abstract class Misspelled with abstract method handle"


def test_a_handler_needs_no_super_init() -> None:
    class Stateful(Ship):
        def __init__(self) -> None:
            self.gateway = "g"

    actual = described(Stateful).name

    assert actual == "stateful"


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("ChargeCard", "charge-card"),
        ("HTTPHook", "http-hook"),
        ("ChargeV2", "charge-v2"),
        ("SendSMSNow", "send-sms-now"),
        ("_Private", "private"),
        ("Charge_Card", "charge-card"),
        ("X", "x"),
    ],
)
def test_the_default_name_is_the_class_in_kebab_case(written: str, expected: str) -> None:
    actual = kebab_case(written)

    assert actual == expected


def test_a_subclass_of_a_named_handler_has_a_name_of_its_own() -> None:
    class Named(Ship):
        name = "named"

    class Narrower(Named):
        pass

    actual = [described(Named).name, described(Narrower).name]

    assert actual == ["named", "narrower"]


@pytest.mark.parametrize("written", ["", "Charge", "charge card", "charge/card", "-charge", "überweisung", "a" * 129, "a\n"])
def test_a_name_that_could_not_be_stored_is_refused(written: str) -> None:
    class Named(Ship):
        name = written

    actual = refusal(Named)

    assert actual == f"handler Named: name {written!r}; use lower-case letters, digits, '.', '_' and '-', at most 128"


def test_an_alias_that_could_not_be_stored_is_refused() -> None:
    class Renamed(Ship):
        aliases = ("Old Name",)

    actual = refusal(Renamed)

    assert actual == "handler Renamed: name 'Old Name'; use lower-case letters, digits, '.', '_' and '-', at most 128"


@pytest.mark.parametrize("attribute", ["aliases", "topics", "emits"])
def test_a_tuple_of_one_without_its_comma_is_refused(attribute: str) -> None:
    class Commaless(Ship):
        pass

    setattr(Commaless, attribute, "orders")

    actual = refusal(Commaless)

    assert actual == f"handler Commaless: {attribute}='orders' is no tuple; write {attribute} = (...,), the comma makes it one"


@pytest.mark.parametrize(
    ("attribute", "value", "expected"),
    [
        ("timeout_s", 0, "handler Odd: timeout_s=0; use finite seconds above 0"),
        ("timeout_s", float("nan"), "handler Odd: timeout_s=nan; use finite seconds above 0"),
        ("timeout_s", float("inf"), "handler Odd: timeout_s=inf; use finite seconds above 0"),
        ("timeout_s", "60", "handler Odd: timeout_s='60'; use finite seconds above 0"),
        ("max_concurrency", 0, "handler Odd: max_concurrency=0; use at least 1, or None"),
        ("retry", 3, "handler Odd: retry=3; use RetryPolicy(max_attempts=...)"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(attribute: str, value: object, expected: str) -> None:
    class Odd(Ship):
        pass

    setattr(Odd, attribute, value)

    actual = refusal(Odd)

    assert actual == expected


def test_a_class_in_place_of_an_instance_is_refused() -> None:
    given: Any = Ship

    with pytest.raises(ConfigurationError) as refused:
        describe(given, 0)

    assert str(refused.value) == "handler Ship is a class; pass an instance, Ship(...)"


# ---- which events ---------------------------------------------------------------------------------------------------


def test_a_union_names_several_types_of_which_each_has_its_topic_once() -> None:
    class Both(Handler[OrderPlaced | OrderAmended | PaymentReceived]):
        async def handle(self, event: Envelope[OrderPlaced | OrderAmended | PaymentReceived], context: Context) -> None:
            return None

    actual = described(Both)

    assert (actual.payloads, actual.topics, actual.event_names()) == (
        (OrderPlaced, OrderAmended, PaymentReceived),
        ("orders", "payments"),
        ("order.placed", "order.amended", "payment.received"),
    )


def test_a_typing_union_is_a_union_too() -> None:
    class Both(Handler[Union[OrderPlaced, OrderAmended]]):  # noqa: UP007
        async def handle(self, event: Envelope[Any], context: Context) -> None:
            return None

    actual = described(Both).payloads

    assert actual == (OrderPlaced, OrderAmended)


def test_a_named_alias_of_a_union_is_a_union_too() -> None:
    either: Any = TypeAliasType("either", OrderPlaced | OrderAmended)

    class Both(Handler[either]):
        async def handle(self, event: Envelope[Any], context: Context) -> either:
            return None

    actual = described(Both)

    assert (actual.payloads, actual.emits) == ((OrderPlaced, OrderAmended), frozenset({OrderPlaced, OrderAmended}))


def test_all_three_kinds_of_payload_can_be_handled() -> None:
    class All(Handler[OrderPlaced | StockReserved | RefundAsked]):
        async def handle(self, event: Envelope[OrderPlaced | StockReserved | RefundAsked], context: Context) -> None:
            return None

    actual = described(All).payloads

    assert actual == (OrderPlaced, StockReserved, RefundAsked)


def test_a_tombstone_in_the_union_asks_for_null_values() -> None:
    class Both(Handler[OrderPlaced | Tombstone[OrderPlaced]]):
        async def handle(self, event: Envelope[OrderPlaced | Tombstone[OrderPlaced]], context: Context) -> None:
            return None

    actual = described(Both)

    assert (actual.payloads, actual.tombstones, actual.topics, actual.event_names()) == (
        (OrderPlaced,),
        (OrderPlaced,),
        ("orders",),
        ("order.placed",),
    )


def test_a_tombstone_can_stand_alone() -> None:
    class Only(Handler[Tombstone[OrderPlaced]]):
        async def handle(self, event: Envelope[Tombstone[OrderPlaced]], context: Context) -> None:
            return None

    actual = described(Only)

    assert (actual.payloads, actual.tombstones, actual.topics) == ((), (OrderPlaced,), ("orders",))


def test_two_tombstones_of_one_topic_are_refused() -> None:
    class Twice(Handler[Tombstone[OrderPlaced] | Tombstone[OrderAmended]]):
        async def handle(self, event: Envelope[Any], context: Context) -> None:
            return None

    actual = refusal(Twice)

    assert actual == "handler Twice: orders is there twice: two Tombstones of one topic, and a null says no type; name one of them"


def test_two_classes_of_one_type_are_refused() -> None:
    class Narrow(Event, type="order.placed", topic="orders", key="order_id"):
        order_id: str

    class Twice(Handler[OrderPlaced | Narrow]):
        async def handle(self, event: Envelope[Any], context: Context) -> None:
            return None

    actual = refusal(Twice)

    assert actual == "handler Twice: ('orders', 'order.placed') is there twice: two classes of one type; name one of them"


def test_any_event_takes_the_topics_it_is_told() -> None:
    class Audit(Handler[AnyEvent]):
        topics = ("orders", "payments")

        async def handle(self, event: Envelope[AnyEvent], context: Context) -> None:
            return None

    actual = described(Audit)

    assert (actual.takes_any, actual.topics, actual.event_names()) == (True, ("orders", "payments"), ("*",))


def test_any_event_without_topics_is_refused() -> None:
    class Audit(Handler[AnyEvent]):
        async def handle(self, event: Envelope[AnyEvent], context: Context) -> None:
            return None

    actual = refusal(Audit)

    assert actual == "handler audit: AnyEvent stands alone and needs topics=('...',)"


@pytest.mark.parametrize("other", [OrderPlaced, Tombstone[OrderPlaced]])
def test_any_event_beside_another_is_refused(other: Any) -> None:
    class Audit(Handler[AnyEvent | other]):
        topics = ("orders",)

        async def handle(self, event: Envelope[Any], context: Context) -> None:
            return None

    actual = refusal(Audit)

    assert actual == "handler audit: AnyEvent stands alone and needs topics=('...',)"


def test_topics_beside_a_typed_event_are_refused() -> None:
    class Ambiguous(Ship):
        topics = ("orders",)

    actual = refusal(Ambiguous)

    assert actual == "handler ambiguous: topics= is for AnyEvent only; the topics come from its event types"


class Priced(Event):
    total_cents: int


@pytest.mark.parametrize(
    ("payload", "shown"),
    [
        (int, "int"),
        (Event, "Event"),
        (Priced, "Priced"),
        (Any, "Any"),
        (None, "NoneType"),
        (OrderPlaced | int, "int"),
        (Tombstone[Any], "Any"),
        (Tombstone[AnyEvent], "AnyEvent"),
    ],
)
def test_a_payload_that_is_no_event_type_is_refused(payload: Any, shown: str) -> None:
    class Wrong(Handler[payload]):
        async def handle(self, event: Envelope[Any], context: Context) -> None:
            return None

    actual = refusal(Wrong)

    assert actual == f"handler Wrong: {shown} is no event type; it needs a class with type=, topic=, key= (or AnyEvent)"


def test_a_payload_in_quotes_is_refused() -> None:
    class Quoted(Handler["OrderPlaced"]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
            return None

    actual = refusal(Quoted)

    assert actual == "handler Quoted: ForwardRef('OrderPlaced') is no event type; it needs a class with type=, topic=, key= (or AnyEvent)"


def test_a_handler_that_names_no_event_is_refused() -> None:
    class Bare(Handler):  # type: ignore[type-arg]
        async def handle(self, event: Any, context: Any) -> None:
            return None

    actual = refusal(Bare)

    assert actual == "handler Bare: which event? write class Bare(Handler[SomeEvent])"


def test_the_key_of_a_dataclass_event_is_checked_here() -> None:
    @dataclass(frozen=True)
    class Wrong(DataclassEvent, type="wrong", topic="t", key="skv"):
        sku: str

    class HandlesIt(Handler[Wrong]):
        async def handle(self, event: Envelope[Wrong], context: Context) -> None:
            return None

    actual = refusal(HandlesIt)

    assert actual == "event Wrong: key='skv' is neither a field nor a property; did you mean 'sku'?"


# ---- bases of a team's own ------------------------------------------------------------------------------------------


class ShopHandler(Handler[P, Connection], Generic[P]):
    def before(self) -> str:
        return "before"


class Deeper(ShopHandler[Q], Generic[Q]):
    pass


class AndItsTombstone(Handler[P | Tombstone[P], Connection], Generic[P]):
    pass


def test_the_event_type_is_found_through_a_generic_base() -> None:
    class Pay(ShopHandler[OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context[Connection]) -> None:
            return None

    actual = described(Pay)

    assert (actual.payloads, actual.transaction) == ((OrderPlaced,), Connection)


def test_the_event_type_is_found_through_two_generic_bases() -> None:
    class Pay(Deeper[OrderPlaced | OrderAmended]):
        async def handle(self, event: Envelope[OrderPlaced | OrderAmended], context: Context[Connection]) -> None:
            return None

    actual = described(Pay)

    assert (actual.payloads, actual.transaction) == ((OrderPlaced, OrderAmended), Connection)


def test_the_event_type_is_found_within_a_union_of_the_base() -> None:
    class Mirror(AndItsTombstone[OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced | Tombstone[OrderPlaced]], context: Context[Connection]) -> None:
            return None

    actual = described(Mirror)

    assert (actual.payloads, actual.tombstones) == ((OrderPlaced,), (OrderPlaced,))


def test_the_event_type_is_found_behind_mixins_and_plain_subclasses() -> None:
    class Logged(Generic[Loose]):
        pass

    class Mixin:
        pass

    class Pay(Logged[int], ShopHandler[OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context[Connection]) -> None:
            return None

    class PayTwice(Pay):
        pass

    class PayThrice(Mixin, PayTwice):
        pass

    actual = [described(cls).payloads for cls in (Pay, PayTwice, PayThrice)]

    assert actual == [(OrderPlaced,), (OrderPlaced,), (OrderPlaced,)]


def test_the_parameters_of_a_base_are_told_apart_by_their_order() -> None:
    C = TypeVar("C")

    class Swapped(Handler[P, C], Generic[C, P]):
        pass

    class Pay(Swapped[Connection, OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context[Connection]) -> None:
            return None

    actual = described(Pay)

    assert (actual.payloads, actual.transaction) == ((OrderPlaced,), Connection)


def test_a_default_of_the_bases_own_type_variable_counts() -> None:
    C = DefaultingTypeVar("C", default=Connection)

    class Defaulted(Handler[P, C], Generic[P, C]):
        pass

    class Pay(Defaulted[OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context[Connection]) -> None:
            return None

    actual = described(Pay).transaction

    assert actual is Connection


def test_a_base_that_was_given_no_event_is_refused() -> None:
    class Pay(ShopHandler):  # type: ignore[type-arg]
        async def handle(self, event: Envelope[Any], context: Context[Connection]) -> None:
            return None

    actual = refusal(Pay)

    assert actual == "handler Pay: which event? write class Pay(ShopHandler[SomeEvent])"


# ---- the second parameter -------------------------------------------------------------------------------------------


def test_the_second_parameter_is_the_connection_of_the_transaction() -> None:
    class Book(Handler[OrderPlaced, Connection]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context[Connection]) -> None:
            return None

    actual = described(Book).transaction

    assert actual is Connection


def test_a_parametrised_connection_is_its_class() -> None:
    class Book(Handler[OrderPlaced, RowConnection[int]]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context[RowConnection[int]]) -> None:
            return None

    actual = described(Book).transaction

    assert actual is RowConnection


@pytest.mark.parametrize("wanted", [Any, Connection | int, "Connection"])
def test_a_second_parameter_that_is_no_class_is_refused(wanted: Any) -> None:
    class Book(Handler[OrderPlaced, wanted]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context[Any]) -> None:
            return None

    actual = refusal(Book)

    assert actual.startswith("handler Book: its second parameter ")
    assert actual.endswith(" is no class of connections; use AsyncConnection")


# ---- where it runs --------------------------------------------------------------------------------------------------


def test_async_def_runs_on_the_loop_and_def_on_a_thread() -> None:
    class Plain(Handler[OrderPlaced]):
        def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
            return None

    actual = [described(Ship).on_thread, described(Plain).on_thread]

    assert actual == [False, True]


Function = Callable[..., Any]


def logged(function: Function) -> Function:
    """A careful decorator that forgets that functions may be async."""

    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        return function(*arguments)

    return wrapper


def logged_async(function: Function) -> Function:
    @functools.wraps(function)
    async def wrapper(*arguments: Any) -> Any:
        return await function(*arguments)

    return wrapper


def test_an_async_handle_under_a_plain_decorator_is_refused_and_the_decorator_named() -> None:
    class Decorated(Handler[OrderPlaced]):
        @logged
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> None:
            return None

    actual = refusal(Decorated)

    assert actual == (
        "handler decorated: handle is 'async def', but its decorator's wrapper logged.<locals>.wrapper is not; "
        "make that wrapper 'async def' too, and await in it"
    )


def test_a_plain_decorator_is_found_under_an_async_one_only_where_it_hides_the_coroutine() -> None:
    class Decorated(Handler[OrderPlaced]):
        @logged_async
        @logged
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderShipped | None:
            return None

    actual = described(Decorated)

    assert (actual.on_thread, actual.emits) == (False, frozenset({OrderShipped}))


def test_an_async_recover_under_a_plain_decorator_is_refused() -> None:
    class Decorated(Ship):
        @logged
        async def recover(self, event: Envelope[OrderPlaced], failure: Failure, context: Context) -> None:
            return None

    actual = refusal(Decorated)

    assert actual == (
        "handler decorated: recover is 'async def', but its decorator's wrapper logged.<locals>.wrapper is not; "
        "make that wrapper 'async def' too, and await in it"
    )


def test_a_decorator_that_is_async_is_fine_over_both_kinds() -> None:
    class OverAsync(Handler[OrderPlaced]):
        @logged_async
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderShipped:
            return OrderShipped(order_id="o-1")

    class OverPlain(Handler[OrderPlaced]):
        @logged_async
        def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderShipped:
            return OrderShipped(order_id="o-1")

    actual = [(described(cls).on_thread, described(cls).emits) for cls in (OverAsync, OverPlain)]

    assert actual == [(False, frozenset({OrderShipped})), (False, frozenset({OrderShipped}))]


def test_a_plain_decorator_over_a_plain_handle_is_fine() -> None:
    class Decorated(Handler[OrderPlaced]):
        @logged
        def handle(self, event: Envelope[OrderPlaced], context: Context) -> OrderShipped:
            return OrderShipped(order_id="o-1")

    actual = described(Decorated)

    assert (actual.on_thread, actual.emits) == (True, frozenset({OrderShipped}))


def test_generators_are_refused() -> None:
    class Yields(Handler[OrderPlaced]):
        def handle(self, event: Envelope[OrderPlaced], context: Context) -> Iterator[OrderShipped]:
            yield OrderShipped(order_id="o-1")

    actual = refusal(Yields)

    assert actual == "handler yields: handle must not yield; return the events (one, a list, or None)"


def test_async_generators_are_refused() -> None:
    class Yields(Handler[OrderPlaced]):
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> AsyncIterator[OrderShipped]:  # type: ignore[override]
            yield OrderShipped(order_id="o-1")

    actual = refusal(Yields)

    assert actual == "handler yields: handle must not yield; return the events (one, a list, or None)"


def test_async_generators_are_refused_under_a_decorator_too() -> None:
    class Yields(Handler[OrderPlaced]):
        @logged
        async def handle(self, event: Envelope[OrderPlaced], context: Context) -> AsyncIterator[OrderShipped]:
            yield OrderShipped(order_id="o-1")

    actual = refusal(Yields)

    assert actual == "handler yields: handle must not yield; return the events (one, a list, or None)"


def test_a_recover_that_yields_is_refused() -> None:
    class Yields(Ship):
        def recover(self, event: Envelope[OrderPlaced], failure: Failure, context: Context) -> Iterator[OrderShipped]:
            yield OrderShipped(order_id="o-1")

    actual = refusal(Yields)

    assert actual == "handler yields: recover must not yield; return the events (one, a list, or None)"


# ---- what it emits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (None, set()),
        (OrderShipped, {OrderShipped}),
        (Optional[OrderShipped], {OrderShipped}),  # noqa: UP045
        (OrderShipped | PaymentReceived | None, {OrderShipped, PaymentReceived}),
        (list[OrderShipped], {OrderShipped}),
        (tuple[OrderShipped, PaymentReceived], {OrderShipped, PaymentReceived}),
        (tuple[OrderShipped, ...], {OrderShipped}),
        (Sequence[OrderShipped | PaymentReceived] | None, {OrderShipped, PaymentReceived}),
        (Iterable[Emit[OrderShipped] | PaymentReceived], {OrderShipped, PaymentReceived}),
        (Iterator[OrderShipped], {OrderShipped}),
        (Emit[OrderShipped], {OrderShipped}),
        (Emit[OrderShipped | PaymentReceived], {OrderShipped, PaymentReceived}),
        (Tombstone[OrderShipped], {OrderShipped}),
        (Awaitable[OrderShipped | None], {OrderShipped}),
        (Coroutine[Any, Any, OrderShipped | None], {OrderShipped}),
        (StockReserved | RefundAsked, {StockReserved, RefundAsked}),
        (NoReturn, set()),
        ("OrderShipped | None", {OrderShipped}),
    ],
)
def test_the_return_annotation_says_what_is_emitted(annotation: Any, expected: set[type]) -> None:
    actual = described(emitting(annotation)).emits

    assert actual == frozenset(expected)


@pytest.mark.parametrize(
    "annotation", [Emits, Any, EventLike, object, list[Any], OrderShipped | EventLike, Emit[Any], Tombstone[Any], Iterable[EventLike], P]
)
def test_emits_and_other_wide_annotations_mean_undeclared(annotation: Any) -> None:
    actual = described(emitting(annotation)).emits

    assert actual is None


@pytest.mark.parametrize("annotation", [int, list[int], OrderShipped | str, Event, Priced, list, dict[str, OrderShipped], AnyEvent, Emit])
def test_an_annotation_that_names_no_event_type_is_refused(annotation: Any) -> None:
    actual = refusal(emitting(annotation))

    assert actual.startswith("handler emitting: its return annotation names ")
    assert actual.endswith(", which is no event type; see Emits")


def test_no_return_annotation_is_refused() -> None:
    class Silent(Handler[OrderPlaced]):
        async def handle(self, event, context):  # type: ignore[no-untyped-def]
            return None

    actual = refusal(Silent)

    assert actual == (
        "handler silent: handle has no return annotation, and it is the contract; "
        "write '-> OrderPaid | None', '-> None', or '-> Emits' for undeclared"
    )


def test_what_recover_emits_belongs_to_the_contract() -> None:
    class Recovers(Ship):
        async def recover(self, event: Envelope[OrderPlaced], failure: Failure, context: Context) -> PaymentReceived | None:
            return None

    actual = described(Recovers)

    assert (actual.recovers, actual.emits) == (True, frozenset({OrderShipped, PaymentReceived}))


def test_emits_on_the_class_replaces_the_annotations() -> None:
    class Declared(Ship):
        emits = (PaymentReceived,)

    actual = described(Declared).emits

    assert actual == frozenset({PaymentReceived})


def test_an_empty_emits_allows_nothing() -> None:
    class Declared(Ship):
        emits = ()

    actual = described(Declared).emits

    assert actual == frozenset()


@pytest.mark.parametrize("named", [int, Priced, AnyEvent])
def test_an_emits_that_names_no_event_type_is_refused(named: Any) -> None:
    class Declared(Ship):
        emits = (named,)

    actual = refusal(Declared)

    assert actual == f"handler declared: emits names {named!r}, which is no event type that can be emitted"


def test_an_inherited_handle_keeps_its_contract() -> None:
    class Inherits(Ship):
        pass

    actual = described(Inherits).emits

    assert actual == frozenset({OrderShipped})


# ---- annotations as text (from __future__ import annotations) -------------------------------------------------------


def test_postponed_annotations_are_read() -> None:
    actual = described(postponed.ReadsWell)

    assert (actual.payloads, actual.emits) == ((postponed.OrderPlaced,), frozenset({postponed.PaymentReceived}))


def test_a_parameter_that_cannot_be_read_does_no_harm() -> None:
    actual = described(postponed.ReadsWellButForAParameter).emits

    assert actual == frozenset({postponed.PaymentReceived})


def test_a_return_type_imported_for_type_checking_alone_is_refused_with_the_way_out() -> None:
    actual = refusal(postponed.NamesAnAbsentImport)

    assert actual == (
        "handler names-an-absent-import: its return annotation can't be read (name 'OrderShipped' is not defined; imported under "
        "TYPE_CHECKING, or a class made inside a function?); import it for real, or say emits = (...) on the class"
    )


def test_an_attribute_that_is_not_there_is_refused_the_same_way() -> None:
    actual = refusal(postponed.NamesAnAbsentAttribute)

    assert actual.startswith(
        "handler names-an-absent-attribute: its return annotation can't be read (module 'collections' has no attribute"
    )


def test_emits_on_the_class_is_the_way_out() -> None:
    actual = described(postponed.SaysItBesides).emits

    assert actual == frozenset({postponed.PaymentReceived})


def test_postponed_emits_means_undeclared() -> None:
    actual = described(postponed.Undeclared).emits

    assert actual is None
