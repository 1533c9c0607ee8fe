"""What handle may answer, how it may be written, and what a handler may say of itself."""

from collections.abc import Iterable, Sequence
from typing import assert_type

from choreo.core.retry import RetryPolicy, http_client_error
from choreo.envelope import Envelope
from choreo.errors import PermanentError, TransientError
from choreo.events import Event, Tombstone
from choreo.handler import Context, Emit, Emits, Failure, Handler


class A(Event, type="a", topic="t", key="id"):
    id: str


class B(Event, type="b", topic="t", key="id"):
    id: str


class Nothing(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> None:
        print(context.baggage.get("tenant"), context.headers.get("x"), context.origin.offset, context.key)


class OnThread(Handler[A]):
    def handle(self, event: Envelope[A], context: Context) -> B | None:
        return B(id=event.payload.id) if context.attempt == 1 else None


class AList(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> list[A | B]:
        return [event.payload, B(id="x")]


class ATuple(Handler[A]):
    def handle(self, event: Envelope[A], context: Context) -> tuple[A, B]:
        return event.payload, B(id="x")


class ASequence(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> Sequence[B] | None:
        return ()


class AnEmit(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> Emit[B]:
        return Emit(B(id="x"), key="other", topic="elsewhere", headers={"x-tenant": "acme"}, id_key="one")


class Mixed(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> Iterable[Emit[A] | B | Tombstone[B]]:
        return [Emit(event.payload, id_key="one"), B(id="x"), Tombstone(of=B, key="y")]


class WideEmit(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> list[Emit[A | B]]:
        return [Emit(event.payload), Emit(B(id="x"))]


class Undeclared(Handler[A]):
    async def handle(self, event: Envelope[A], context: Context) -> Emits:
        if context.attempt == 1:
            return [A(id="x"), Emit(B(id="x")), Tombstone(of=A, key="y")]
        return Emit(B(id="x")) if context.attempt == 2 else Tombstone(of=A, key="y")


class UndeclaredOnThread(Handler[A]):
    def handle(self, event: Envelope[A], context: Context) -> Emits:
        return B(id="x")


class ParametersMayBeCalledAnything(Handler[A]):
    async def handle(self, placed: Envelope[A], _context: Context) -> None:
        print(placed.payload.id)


class SaysMuch(Handler[A]):
    name = "says-much"
    aliases = ("said-little", "said-nothing")
    retry = RetryPolicy(max_attempts=5, base_delay_s=1, permanent=(ValueError, http_client_error, lambda error: "gone" in str(error)))
    timeout_s = 20
    ordered = False
    max_concurrency = 4
    emits = (A, B)

    async def handle(self, event: Envelope[A], context: Context) -> Emits:
        if context.replay is not None and context.replay.forced:
            raise PermanentError("not again")
        raise TransientError("busy", retry_after_s=3)

    async def recover(self, event: Envelope[A], failure: Failure, context: Context) -> B | None:
        return None if failure.permanent else B(id=event.payload.id)


class RecoversOnThread(Handler[A]):
    def handle(self, event: Envelope[A], context: Context) -> B:
        return B(id=event.payload.id)

    def recover(self, event: Envelope[A], failure: Failure, context: Context) -> None:
        print(failure.error_type)


async def answers_are_narrow(event: Envelope[A], failure: Failure, context: Context) -> None:
    assert_type(OnThread().handle(event, context), B | None)
    assert_type(await AList().handle(event, context), list[A | B])
    assert_type((await AnEmit().handle(event, context)).event, B)
    assert_type(await SaysMuch().recover(event, failure, context), B | None)
