"""Fuzz tests run on RabbitMQ alone, with no setting of the machine but where it is. Nobody kills it meanwhile."""

from __future__ import annotations

import pytest

from tests.conformance.conftest import _impatient, _no_settings

__all__ = ["_impatient", "_no_settings"]


@pytest.fixture(autouse=True)
def _at_once(_impatient: None) -> None:
    """Young queues need no waiting."""
