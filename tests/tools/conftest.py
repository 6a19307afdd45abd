"""A virtual host of a test's own, as processes and as operators see it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from broker.tools.management import Management
from broker.tools.server import Server
from tests.conformance.worlds import World


@pytest.fixture
async def world(vhost_url: str) -> AsyncIterator[World]:
    async with World(vhost_url) as world:
        yield world


@pytest.fixture
async def management(server: Server, vhost_url: str) -> AsyncIterator[Management]:
    async with Management(vhost_url, server.management_url) as client:
        yield client
