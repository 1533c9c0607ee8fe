"""Commits come sooner here than in a service: most of these tests wait for one."""

from __future__ import annotations

import pytest

from choreo.runtime import worker


@pytest.fixture(autouse=True)
def commits_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "COMMIT_EVERY_S", 0.02)
