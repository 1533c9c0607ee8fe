"""``choreo publish MODULE:NAME EVENT_TYPE JSON``: one event, checked against the service's own class, then published."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
import typer

from choreo.cli import options, screen
from choreo.cli.loading import Target, load_target
from choreo.codec import Codec, format_timestamp
from choreo.errors import ConfigurationError, DecodeError, did_you_mean
from choreo.events import EventLike
from choreo.handler import Emit
from choreo.runtime.emitting import Emitter
from choreo.runtime.preflight import check_topics
from choreo.runtime.publishing import Publishing


def publish(
    target: options.ModuleTarget,
    event_type: Annotated[str, typer.Argument(metavar="EVENT_TYPE", help="The event's name on the wire: order.placed.")],
    payload: Annotated[str, typer.Argument(metavar="JSON", help="Its payload; '-' reads it from stdin.")],
    key: Annotated[str | None, typer.Option("--key", help="In place of the key that the event type names.")] = None,
    event_id: Annotated[str | None, typer.Option("--event-id", help="The same id again makes it the same event.")] = None,
    bootstrap: options.Bootstrap = None,
    topic_prefix: options.TopicPrefix = None,
    as_json: options.AsJson = False,
) -> None:
    """Publish one event as this service."""
    found = load_target(target, {"bootstrap": bootstrap, "topic_prefix": topic_prefix})
    plan = found.service.plan(found.settings)
    event = read_event(found, plan.codec, event_type, payload)
    topic = plan.names(event.__event__.topic)
    _check_topic(found, topic)
    publishing = Publishing(plan.service, Emitter(plan.service, plan.codec, plan.names), lambda: found.broker, None)
    with publishing as publisher:
        published = publisher.publish(Emit(event, key=key) if key is not None else event, event_id=event_id)
    if as_json:
        screen.print_json({"event_id": published.event_id, "flow_id": published.flow_id, "type": event_type, "topic": topic})
        return
    screen.show_facts([("published", f"{event_type} -> {topic}"), ("event", published.event_id), ("flow", published.flow_id)])


def read_event(found: Target, codec: Codec, event_type: str, payload: str) -> EventLike:
    """The payload as the service's class of that type. Raises ConfigurationError for a type it doesn't know and for what the
    class doesn't accept; a field it doesn't name is refused too, for it would not be published."""
    classes = {cls.__event__.type: cls for cls in found.service.event_types()}
    cls = classes.get(event_type)
    if cls is None:
        raise ConfigurationError(f"{found.name} has no event type {event_type!r}{did_you_mean(event_type, classes)}")
    text = sys.stdin.read() if payload == "-" else payload
    try:
        given = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, RecursionError) as error:
        raise ConfigurationError(f"the payload is not JSON: {error}: {screen.safe(text, 60)}") from error
    head = {"type": event_type, "timestamp": format_timestamp(datetime.now(UTC)), "payload": msgspec.Raw(text.encode())}
    try:
        event: Any = codec.decoder(cls)(msgspec.json.encode(head)).payload
    except DecodeError as error:
        raise ConfigurationError(str(error)) from error
    _refuse_lost_fields(found, codec, event, given)
    return event  # type: ignore[no-any-return]


def _refuse_lost_fields(found: Target, codec: Codec, event: Any, given: object) -> None:
    written = msgspec.json.decode(codec.encode(event.__event__.type, datetime.now(UTC), event))["payload"]
    if not isinstance(given, dict) or not isinstance(written, dict):
        return
    lost = sorted(given.keys() - written.keys())
    if lost:
        raise ConfigurationError(
            f"{event.__event__.type}: {type(event).__name__} of {found.name} has no field {', '.join(map(repr, lost))}, it would be lost"
            + did_you_mean(lost[0], written)
        )


def _check_topic(found: Target, topic: str) -> None:
    """Kafka answers and has the topic: without this an unreachable one is noticed after the producer's 30 s."""
    cluster = found.broker.cluster()
    try:
        check_topics(cluster.topics(), [topic], found.name, lambda _: "of this event")
    finally:
        cluster.close()
