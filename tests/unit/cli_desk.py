"""The service that the tests of the command line mean, on a broker in memory, and `choreo`, which runs a command on it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping

from typer.testing import CliRunner

from choreo import Context, Envelope, Event, Handler, KafkaSettings, MemoryStore, PermanentError, RetryPolicy, Service, ServiceSettings
from choreo.cli.main import app
from choreo.letter import dlq_topic, letters_topic, replay_topic
from choreo.testing import MemoryBroker

DESK = "tests.unit.cli_desk:desk"


class OrderPlaced(Event, type="order.placed", topic="orders", key="order_id"):
    order_id: str
    total_cents: int = 0


class PaymentReceived(Event, type="payment.received", topic="payments", key="order_id"):
    order_id: str


class ChargeCard(Handler[OrderPlaced]):
    """Fails for orders above 1,000 cents until it is `mended`; takes DESK_SLOW_S seconds."""

    retry = RetryPolicy(max_attempts=2, base_delay_s=0.0)
    timeout_s = 20.0

    def handle(self, event: Envelope[OrderPlaced], context: Context) -> PaymentReceived:
        if event.payload.total_cents > 1_000 and not mended:
            raise PermanentError(f"the gateway does not know the card of {event.payload.order_id}")
        if "DESK_SLOW_S" in os.environ:
            print("the desk is at it", flush=True)
            time.sleep(float(os.environ["DESK_SLOW_S"]))
        return PaymentReceived(order_id=event.payload.order_id)


broker = MemoryBroker()
mended = False
not_a_service = 7


def fresh(*, own_topics: bool = True) -> MemoryBroker:
    """A new broker, which `desk` is on from now on; with all of its topics, or none."""
    global broker, mended
    broker, mended = MemoryBroker(), False
    if own_topics:
        for topic in ("orders", "payments", dlq_topic("desk"), letters_topic("desk"), replay_topic("desk")):
            broker.create_topic(topic)
    return broker


def mend() -> None:
    """From now on the handler succeeds."""
    global mended
    mended = True


def desk() -> Service:
    settings = ServiceSettings(broker=broker, drain_s=2.0)
    return Service("desk", version="2.3.1", handlers=[ChargeCard()], publishes=[OrderPlaced], store=MemoryStore(), settings=settings)


def ready_desk() -> Service:
    """The same for a process of its own: its broker has the topics, and an order where DESK_ORDER says so."""
    fresh()
    if "DESK_ORDER" in os.environ:
        with desk().publisher() as publisher:
            publisher.publish(OrderPlaced(order_id=os.environ["DESK_ORDER"]))
    return desk()


def elsewhere() -> Service:
    return Service("elsewhere", settings=ServiceSettings(kafka=KafkaSettings(bootstrap="kafka:9092")))


def needs(argument: int) -> Service:
    raise AssertionError(argument)


def breaks() -> Service:
    raise RuntimeError("no gateway configured")


async def too_late() -> Service:
    return desk()


def answers() -> int:
    return 7


class Said:
    """How a command ended: its exit code, and what it wrote."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err


def choreo(*words: str, given: str | None = None, environment: Mapping[str, str | None] | None = None) -> Said:
    """Runs ``choreo`` with these words in this process, without a terminal."""
    ours: dict[str, str | None] = {name: None for name in os.environ if name.startswith("CHOREO_")}
    result = CliRunner().invoke(app, list(words), input=given, env={**ours, "COLUMNS": "140", **(environment or {})})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Said(result.exit_code, result.stdout, result.stderr)
