"""Commits come sooner here than in a service: most of these tests wait for one."""

from __future__ import annotations

import pytest

from choreo.runtime import commits


@pytest.fixture(autouse=True)
def commits_come_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "EVERY_S", 0.02)
