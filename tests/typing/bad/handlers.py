"""Handlers that are written wrongly."""

from collections.abc import AsyncIterator
from typing import assert_never

from psycopg import AsyncConnection

from choreo.core.retry import RetryPolicy
from choreo.envelope import Envelope
from choreo.events import Event, Tombstone
from choreo.handler import Context, Emit, Emits, Failure, Handler


class A(Event, type="a", topic="t", key="id"):
    id: str


class B(Event, type="b", topic="t", key="id"):
    id: str
    more: int


class NotAnEvent:
    id: str


class WrongAttribute(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> None:
        print(event.payload.order_id)  # error
        print(event.payload.id + 1)  # error
        print(event.order_id)  # error
        event.payload = A(id="x")  # error
        context.attempt = 2  # error
        context.headers["x"] = "y"  # error


class Misspelled(Handler[A]):
    async def handel(self, event: Envelope[A], context: Context) -> None:
        return None


Misspelled()  # error


class OtherEvent(Handler[A]):
    async def handle(self, event: Envelope[B], context: Context) -> None:  # error
        return None


class OneOfTwo(Handler[A | B]):
    async def handle(self, event: Envelope[A], context: Context) -> None:  # error
        return None


class NoTransaction(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> None:
        await context.transaction.execute("select 1")  # error


class TransactionUndeclared(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context[AsyncConnection]) -> None:  # error
        return None


class TransactionForgotten(Handler[A, AsyncConnection]):
    async def handle(self, event: Envelope[A], context: Context) -> None:  # error
        return None


class NoEvent(Handler[NotAnEvent]):  # error
    async def handle(self, event: Envelope[NotAnEvent], context: Context) -> None:
        return None


class NoEventEither(Handler[A | int]):  # error
    async def handle(self, event: Envelope[A | int], context: Context) -> None:
        return None


class NoEventInATombstone(Handler[Tombstone[int]]):  # error
    async def handle(self, event: Envelope[Tombstone[int]], context: Context) -> None:  # error
        return None


class AnswersANumber(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> int:  # error
        return 3


class AnswersNumbers(Handler[A]):
    def handle(self, event: Envelope[A], context: Context) -> list[A | int]:  # error
        return []


class AnswersAnother(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> A | None:
        return B(id="x", more=1)  # error


class Undeclared(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> Emits:
        return "a"  # error


class Yields(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> AsyncIterator[A]:  # error
        yield A(id="x")


class TooFew(Handler[A]):
    async def handle(self, event: Envelope[A]) -> None:  # error
        return None


class WrongSettings(Handler[A]):
    retry = 3  # error
    timeout_s = "60"  # error
    aliases = "old"  # error
    emits = (int,)  # error

    async def handle(self, event: Envelope[A], context: Context) -> None:
        return None

    async def recover(self, event: Envelope[B], failure: Failure, context: Context) -> None:  # error
        return None


class NotExhaustive(Handler[A | B]):
    async def handle(self, event: Envelope[A | B], context: Context) -> None:
        match event.payload:
            case A():
                return
            case _ as never:
                assert_never(never)  # error


Emit(3)  # error
Emit(A(id="x"), "key")  # error
Emit(A(id="x"), kye="key")  # error
Emit(A(id="x"), key=3)  # error
Tombstone(A, "key")  # error
Tombstone(of=A)  # error
RetryPolicy(3)  # error
RetryPolicy(max_attempts="3")  # error
RetryPolicy(permanent=(404,))  # error
RetryPolicy(permanent=(lambda error: "yes",))  # error
