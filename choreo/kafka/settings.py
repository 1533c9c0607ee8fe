"""Which librdkafka properties does each client get, and which may a user not set?

choreo's promises rest on some properties; those are refused by name when the settings are made, with the reason. What
librdkafka itself refuses is found when a broker is first used (broker.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from choreo.errors import ConfigurationError

GroupProtocol = Literal["auto", "classic", "consumer"]

EMBEDDED = "embedded://"
"""The bootstrap that means a Kafka inside this process, for demos (choreo/kafka/embedded.py)."""

REFUSED: Mapping[str, str] = {
    "group.id": "the group is the service's name",
    "enable.auto.commit": "choreo commits an offset only after its events are settled",
    "enable.auto.offset.store": "choreo stores an offset only after its events are settled",
    "auto.offset.reset": "use ServiceSettings(start=...): choreo never skips events silently",
    "partition.assignment.strategy": "choreo needs cooperative rebalances and sets cooperative-sticky",
    "enable.idempotence": "choreo's producer is always idempotent",
    "acks": "choreo's producer always waits for all in-sync replicas",
    "request.required.acks": "choreo's producer always waits for all in-sync replicas",
    "partitioner": "choreo partitions as Java does (murmur2), so that a key has one partition in every language",
    "transactional.id": "use ServiceSettings(transactional_id=...)",
    "enable.partition.eof": "choreo does not use it",
    "retries": "choreo's producer retries within delivery.timeout.ms",
    "message.send.max.retries": "choreo's producer retries within delivery.timeout.ms",
    "isolation.level": "choreo reads what is committed only: an aborted transaction's records never were",
    "allow.auto.create.topics": "choreo never makes a topic by accident; make it with: choreo topics apply",
    "error_cb": "choreo classifies errors itself",
    "on_commit": "choreo reads commit results itself",
}
CLASSIC_ONLY = ("session.timeout.ms", "heartbeat.interval.ms", "group.protocol.type")
MEMBERS_ONLY = frozenset(
    {"group.instance.id", "group.remote.assignor", "heartbeat.interval.ms", "max.poll.interval.ms", "session.timeout.ms"}
)
"""A reader outside of the group doesn't get them: librdkafka would check them against its defaults of the classic protocol."""
CONSUMER_ONLY = frozenset(
    {
        "auto.commit.interval.ms",
        "check.crcs",
        "fetch.error.backoff.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.queue.backoff.ms",
        "fetch.wait.max.ms",
        "group.instance.id",
        "group.protocol",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        "isolation.level",
        "max.partition.fetch.bytes",
        "max.poll.interval.ms",
        "queued.max.messages.kbytes",
        "queued.min.messages",
        "session.timeout.ms",
    }
)
PRODUCER_ONLY = frozenset(
    {
        "batch.num.messages",
        "batch.size",
        "compression.codec",
        "compression.level",
        "compression.type",
        "delivery.timeout.ms",
        "linger.ms",
        "max.in.flight",
        "message.timeout.ms",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        "request.timeout.ms",
        "retry.backoff.max.ms",
        "retry.backoff.ms",
        "sticky.partitioning.linger.ms",
        "topic.metadata.propagation.max.ms",
    }
)
TRANSACTIONS_ONLY = frozenset({"transaction.timeout.ms"})
KNOWN = (
    CONSUMER_ONLY
    | PRODUCER_ONLY
    | TRANSACTIONS_ONLY
    | {
        "broker.address.family",
        "client.id",
        "client.rack",
        "connections.max.idle.ms",
        "debug",
        "message.max.bytes",
        "metadata.max.age.ms",
        "reconnect.backoff.max.ms",
        "reconnect.backoff.ms",
        "sasl.mechanism",
        "sasl.password",
        "sasl.username",
        "security.protocol",
        "socket.connection.setup.timeout.ms",
        "socket.keepalive.enable",
        "socket.timeout.ms",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.endpoint.identification.algorithm",
        "ssl.key.location",
        "ssl.key.password",
        "statistics.interval.ms",
    }
)
"""What a name that librdkafka doesn't know may have meant; it has more, and won't list them."""
SECRETS = ("password", "secret", "sasl.jaas", "token", "ssl.key.pem")

_COMMON: dict[str, Any] = {
    # A stopped leader is noticed after this long; the default of 60 s made a gap of 40 s (TRAPS 12).
    "socket.timeout.ms": 10_000,
    "socket.nagle.disable": True,
    "reconnect.backoff.max.ms": 2_000,
    # A record one can read must be writable as a letter; the broker's own limit decides (TRAPS 17).
    "message.max.bytes": 10_485_760,
}
_CONSUMER: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    # Bounded memory under lag (TRAPS 20).
    "queued.min.messages": 2_000,
    "queued.max.messages.kbytes": 8_192,
    "fetch.queue.backoff.ms": 10,
    # A resumed partition waits for the fetch that is under way without it.
    "fetch.wait.max.ms": 100,
    "isolation.level": "read_committed",
    "allow.auto.create.topics": False,
}
_PRODUCER: dict[str, Any] = {
    "enable.idempotence": True,
    "acks": "all",
    "partitioner": "murmur2_random",
    "linger.ms": 0,
    "delivery.timeout.ms": 30_000,
    # A topic that isn't there is reported as that, before the delivery times out (both are 30 s by default; TRAPS 16).
    "topic.metadata.propagation.max.ms": 10_000,
    "allow.auto.create.topics": False,
}
_TRANSACTIONS: dict[str, Any] = {
    # What a dead member has left open holds up its heir, and all who read committed records, for so long.
    "transaction.timeout.ms": 10_000,
    # The coordinator answers "not yet" while it ends the transaction before: asked again after 100 ms, the default, a transaction takes 116 ms,
    # after 20 ms it takes 7 to 34 (ADR 0017).
    "retry.backoff.ms": 20,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaSettings:
    """Where Kafka is and how to get in.

    `bootstrap`: ``host:port[,host:port]``, or ``embedded://`` for the in-process broker of demos. `properties`:
    librdkafka's own (``security.protocol``, ``sasl.username``, ``linger.ms``); those choreo relies on are refused.
    `group_protocol`: ``auto`` takes KIP-848 (``consumer``) where the brokers offer it, else ``classic``.
    """

    bootstrap: str = "127.0.0.1:9092"
    properties: Mapping[str, str | int | float | bool] = field(default_factory=dict, repr=False)
    group_protocol: GroupProtocol = "auto"

    def __post_init__(self) -> None:
        if not self.bootstrap:
            raise ConfigurationError("Kafka: bootstrap is empty; say CHOREO_BOOTSTRAP=host:port")
        if self.group_protocol not in ("auto", "classic", "consumer"):
            raise ConfigurationError(f"Kafka: group_protocol={self.group_protocol!r}; use auto, classic or consumer")
        for name in self.properties:
            if name in REFUSED:
                raise ConfigurationError(f"Kafka property {name}: can't be set; {REFUSED[name]}")
            if name in CLASSIC_ONLY and self.group_protocol == "consumer":
                raise ConfigurationError(
                    f"Kafka property {name}: librdkafka can't combine it with group.protocol=consumer; remove one of them"
                )
            if name in ("bootstrap.servers", "metadata.broker.list"):
                raise ConfigurationError(f"Kafka property {name}: use KafkaSettings(bootstrap=...) or CHOREO_BOOTSTRAP")
            if name == "group.protocol":
                raise ConfigurationError("Kafka property group.protocol: use KafkaSettings(group_protocol=...) or CHOREO_GROUP_PROTOCOL")

    def settled_protocol(self) -> Literal["classic", "consumer"] | None:
        """The group protocol, unless the brokers have to be asked: a property that only the classic one knows chooses that."""
        if self.group_protocol != "auto":
            return self.group_protocol
        return "classic" if any(name in CLASSIC_ONLY for name in self.properties) else None

    def common(self) -> dict[str, Any]:
        """For a client that neither consumes nor produces."""
        skip = CONSUMER_ONLY | PRODUCER_ONLY | TRANSACTIONS_ONLY
        return {**_COMMON, **{k: v for k, v in self.properties.items() if k not in skip}, "bootstrap.servers": self.bootstrap}

    def consumer(self, group: str, protocol: Literal["classic", "consumer"]) -> dict[str, Any]:
        """For a member of `group`."""
        own: dict[str, Any] = {"group.id": group, "group.protocol": protocol}
        if protocol == "classic":
            own["partition.assignment.strategy"] = "cooperative-sticky"
        return {**self.reader(), **{k: v for k, v in self.properties.items() if k in MEMBERS_ONLY}, **own}

    def reader(self) -> dict[str, Any]:
        """For a client that reads by position, outside of any group."""
        theirs = {k: v for k, v in self.properties.items() if k not in PRODUCER_ONLY | TRANSACTIONS_ONLY | MEMBERS_ONLY}
        return {**_COMMON, **_CONSUMER, **theirs, "group.id": "choreo-reader", "bootstrap.servers": self.bootstrap}

    def producer(self) -> dict[str, Any]:
        """For the idempotent producer."""
        theirs = {k: v for k, v in self.properties.items() if k not in CONSUMER_ONLY | TRANSACTIONS_ONLY}
        return {**_COMMON, **_PRODUCER, **theirs, "bootstrap.servers": self.bootstrap}

    def transactor(self, transactional_id: str) -> dict[str, Any]:
        """For the transactional producer with this id. What it sends has less time to arrive than its transaction has to end: who is
        fenced is not told any more which record did not."""
        theirs = {k: v for k, v in self.properties.items() if k in TRANSACTIONS_ONLY | {"retry.backoff.ms"}}
        made = {**self.producer(), **_TRANSACTIONS, **theirs, "transactional.id": transactional_id}
        most_ms = int(made["transaction.timeout.ms"]) * 6 // 10
        for name in ("delivery.timeout.ms", "message.timeout.ms", "topic.metadata.propagation.max.ms"):
            if name in made:
                made[name] = min(int(made[name]), most_ms)
        return made


def masked(name: str, value: object) -> str:
    """The value as a screen may show it."""
    return "********" if any(word in name.lower() for word in SECRETS) else str(value)
