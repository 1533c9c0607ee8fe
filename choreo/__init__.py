"""choreo: event-driven choreography over Kafka that can be debugged at 3 AM.

The public names, in reading order: what happens, who reacts, what a failure means, and the service that runs it.
"""

from choreo.batcher import Batcher
from choreo.core.retry import RetryPolicy, http_client_error
from choreo.envelope import Envelope, derived_id
from choreo.errors import (
    BrokerError,
    ChoreoError,
    ConfigurationError,
    DecodeError,
    HandlerError,
    PermanentError,
    StateError,
    StoreError,
    TransientError,
)
from choreo.events import AnyEvent, DataclassEvent, Event, EventLike, EventSpec, Tombstone
from choreo.handler import Context, Emit, Emits, Failure, Handler, Origin, Replay
from choreo.kafka.settings import KafkaSettings
from choreo.runtime.publishing import Published
from choreo.service import Service
from choreo.settings import ServiceSettings
from choreo.storage.memory import MemoryStore
from choreo.storage.postgres import PostgresStore
from choreo.storage.sqlite import SqliteStore

__version__ = "0.1.0"

__all__ = [
    "Event",
    "DataclassEvent",
    "AnyEvent",
    "Tombstone",
    "EventLike",
    "EventSpec",
    "Envelope",
    "Handler",
    "Context",
    "Origin",
    "Replay",
    "Emit",
    "Emits",
    "Failure",
    "Batcher",
    "RetryPolicy",
    "http_client_error",
    "PermanentError",
    "TransientError",
    "Service",
    "ServiceSettings",
    "KafkaSettings",
    "MemoryStore",
    "SqliteStore",
    "PostgresStore",
    "Published",
    "derived_id",
    "ChoreoError",
    "ConfigurationError",
    "DecodeError",
    "HandlerError",
    "BrokerError",
    "StoreError",
    "StateError",
]
