"""Invariants 1, 2, 3, 7 and 11 of the design: the engine under every interleaving that hypothesis finds."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.properties.engine_machine import EngineMachine

TestEngine = EngineMachine.TestCase
TestEngine.settings = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
