"""One world, three times: every test of this folder that takes ``world`` runs in memory, on a real RabbitMQ, and on one
with aio-pika's own frames."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest

from tests.conformance.worlds import World


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the machine but where its RabbitMQ is."""
    for name in os.environ:
        if name.startswith("BROKER_") and name not in ("BROKER_URL", "BROKER_MANAGEMENT_URL"):
            monkeypatch.delenv(name)


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ is not killed here, so young queues need no waiting; one test of its own waits as in life."""
    monkeypatch.setattr("broker.rabbitmq.transport.YOUNG", 0.05)
    monkeypatch.setattr("broker.rabbitmq.direct.SETTLING", 0.3)
    monkeypatch.setattr("broker.rabbitmq.plain.SETTLING", 0.3)


@pytest.fixture(params=["memory", "rabbitmq", "aio-pika"])
def address(request: pytest.FixtureRequest) -> str | None:
    """Where RabbitMQ is; None: in memory."""
    if request.param == "memory":
        return None
    url: str = request.getfixturevalue("vhost_url")
    return url


@pytest.fixture
async def world(address: str | None, _impatient: None, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """A RabbitMQ of this test's own, real or played."""
    made = World(address, direct="aio-pika" not in request.node.name)
    async with made:
        yield made


@pytest.fixture
async def rabbit(vhost_url: str, _impatient: None) -> AsyncIterator[World]:
    """The same for tests of RabbitMQ alone."""
    made = World(vhost_url)
    async with made:
        yield made
