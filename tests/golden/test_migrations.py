"""Are the released migrations what they were? They have run on databases we'll never see: a change is another number."""

from __future__ import annotations

import hashlib

import pytest

from choreo.storage.schema import migrations

GOLDEN = {
    "postgres": {
        "0001_claims": "472b79a0828a9572232d1451f5522db67770566bb6d8c06aa779c6a651700b60",
        "0002_outbox": "a15a65fbb492cb5bb1faa6a2c66d28e9f663c9e9d5119d4adcb32715cacf9879",
    },
    "sqlite": {
        "0001_claims": "8abde6605089cfeffe3b9806c1392da0cf4b69d40408660d5bdb238e470ab175",
        "0002_claims_by_age": "7e227f6d748400312c2f93c8c950de2f483a6acfbbc6f59207b60974cc77b04e",
        "0003_outbox": "0b693dc363b9258f6d3cf7fee41e78ecfd8b74a7d75b73a29bb8c8faa24bed12",
    },
}
"""SHA-256 of each file. Never replaced; a new migration adds a line."""


@pytest.mark.parametrize("database", ["postgres", "sqlite"])
def test_a_released_migration_never_changes(database: str) -> None:
    steps = migrations("postgres") if database == "postgres" else migrations("sqlite")

    assert {step.name: hashlib.sha256(step.sql.encode()).hexdigest() for step in steps} == GOLDEN[database]
