"""The examples run as on a machine where nobody has set anything."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of choreo comes from the environment."""
    for name in [name for name in os.environ if name.startswith("CHOREO_")]:
        monkeypatch.delenv(name)
