"""A cluster loses nothing when a node dies, falls silent, or all are restarted in turn, and nobody waits for long.

Publisher and subscriber know all three hosts, and are connected to the one that is broken; it leads their queues.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from time import monotonic
from urllib.parse import urlsplit

import pytest

from tests.cluster.cluster import Cluster, Member
from tests.cluster.report import Measured
from tests.faults.counting import NAME
from tests.faults.told import Handling, Publishing
from tests.faults.world import World

pytestmark = pytest.mark.full

DEAD, SILENT = 5.0, 30.0
"""Seconds that nothing may be confirmed or handled, when a node dies and when it falls silent."""
LOAD = Publishing(backlog=200, rate=100)
WORK = Handling(takes=0.01)


async def begin(cluster: Cluster, world: World) -> Member:
    """Have both work; returns the node that they are connected to."""
    vhost = urlsplit(world.url).path[1:]
    url = f"{cluster.url}{vhost}"
    first = cluster.members[0]
    local = World(first, f"{first.url}{vhost}", world.management, world.folder)
    await local.declare()  # who declares a queue has its leader
    assert await asyncio.to_thread(cluster.leader, vhost, NAME) is first
    await world.begin(LOAD, WORK, publisher_url=url, subscriber_url=url)
    await world.recovered(300)
    return first


def gap(times: list[float], since: float) -> float:
    """The longest time between two."""
    times = [since, *sorted(time for time in times if time >= since)]
    return max((after - before for before, after in itertools.pairwise(times)), default=0.0)


async def conclude(world: World, fault: str, since: float, limit: float, measured: list[Measured]) -> None:
    """Balance the books, and hold the gaps against what is allowed."""
    now = monotonic()
    confirm_gap, handling_gap = (gap([*world.times(record), now], since) for record in ("confirmed", "handled"))
    books = await world.finish()
    failed = sum(world.result["failed"].values())
    measured.append(
        Measured(
            fault,
            await world.management.version(),
            len(books.confirmed),
            books.lost,
            len(books.falsely_confirmed),
            books.twice,
            failed,
            confirm_gap,
            handling_gap,
            limit,
        )
    )
    assert max(confirm_gap, handling_gap) < limit


async def test_the_leader_is_killed(cluster: Cluster, world: World, measured: list[Measured]) -> None:
    leader = await begin(cluster, world)
    began = monotonic()
    await asyncio.to_thread(leader.kill)
    await world.recovered(500)
    await asyncio.to_thread(leader.start)
    await asyncio.to_thread(cluster.until_whole)
    await world.recovered(300)
    await conclude(world, "the leader killed (-9), later started again", began, DEAD, measured)


async def test_a_node_falls_silent(cluster: Cluster, world: World, measured: list[Measured]) -> None:
    leader = await begin(cluster, world)
    began = monotonic()
    leader.pause()
    try:
        await world.recovered(500)
    finally:
        leader.resume()
    await asyncio.to_thread(leader.restart)  # it sees a partition now, and RabbitMQ asks for this
    await asyncio.to_thread(cluster.until_whole)
    await world.recovered(300)
    await conclude(world, "the leader frozen (SIGSTOP), later let go on and restarted", began, SILENT, measured)


async def test_a_rolling_restart(cluster: Cluster, world: World, measured: list[Measured]) -> None:
    await begin(cluster, world)
    began = monotonic()
    for member in cluster.members:
        steps: list[Callable[[], object]] = [member.stop, member.start, cluster.until_whole]
        for step in steps:
            await asyncio.to_thread(step)
        await world.recovered(100)
    await conclude(world, "all three stopped and started, one after the other", began, DEAD, measured)
