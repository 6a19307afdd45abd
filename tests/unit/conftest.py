"""Unit tests read no setting of the machine they run on, and collect what is logged."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)
