"""Unit tests read no setting of the machine they run on, and collect what is logged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import structlog


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def lines() -> Iterator[list[dict[str, Any]]]:
    """Every line logged during the test."""
    capture = structlog.testing.LogCapture()
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, capture],
        wrapper_class=structlog.make_filtering_bound_logger("debug"),
        cache_logger_on_first_use=False,
    )
    yield capture.entries  # type: ignore[misc]  # structlog's own mapping type
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
