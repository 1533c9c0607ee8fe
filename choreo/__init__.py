"""choreo: event-driven choreography over Kafka that can be debugged at 3 AM."""

__version__ = "0.1.0"
