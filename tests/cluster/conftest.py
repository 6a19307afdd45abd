"""One cluster for all its tests, and a table of what was measured, at the end and in docs/reliability.md."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from broker.tools.management import Management
from tests.cluster.cluster import Cluster
from tests.cluster.report import Measured, table
from tests.faults.world import World
from tests.pages import write

TESTS = 3
"""A part of them leaves docs/reliability.md as it is."""
MEASURED = pytest.StashKey[list[Measured]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURED] = []


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[MEASURED]
    if rows:
        terminalreporter.section("cluster")
        terminalreporter.write_line(table(rows))
        if len(rows) == TESTS:
            write("cluster", table(rows))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> list[Measured]:
    """What the table will show."""
    rows: list[Measured] = request.config.stash[MEASURED]
    return rows


@pytest.fixture
async def world(cluster: Cluster, tmp_path: Path) -> AsyncIterator[World]:
    """A virtual host on the cluster, and no process yet."""
    vhost, member = f"cluster-{uuid4().hex[:8]}", cluster.members[-1]  # the one that stays well longest
    async with Management(member.url, member.management_url, timeout=60) as administrator:
        await administrator.create_vhost(vhost)
    url = f"{member.url}{vhost}"
    async with Management(url, member.management_url, timeout=60) as management:
        world = World(member, url, management, tmp_path)
        try:
            yield world
        finally:
            await world.close()
            await asyncio.to_thread(cluster.restore)
    async with Management(member.url, member.management_url, timeout=60) as administrator:
        await administrator.delete_vhost(vhost)
        await asyncio.to_thread(cluster.until_whole)
