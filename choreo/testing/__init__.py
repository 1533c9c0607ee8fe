"""What does a service's test need? An event with its context, and Kafka in memory.

The suites that every broker and store must pass are in choreo.testing.conformance (it needs pytest).
"""

from choreo.testing.deliveries import delivery
from choreo.testing.memory import MemoryBroker

__all__ = ["MemoryBroker", "delivery"]
