"""The shipped suites explain their failures like tests of our own."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(
    "choreo.testing.conformance",
    "choreo.testing.members",
    "choreo.testing.transaction_conformance",
    "choreo.testing.transactor_conformance",
    "choreo.testing.outbox_conformance",
)
