"""``broker relay`` as real processes, on a real RabbitMQ: killed, and told to stop, while a batch is leaving."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import NullPool, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from broker import Event
from broker.sql import Outgoing
from broker.sql.tables import outbox
from broker.topology import service_topology
from broker.transport import Delivery
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, PATIENCE, Process, broker
from tests.exactly_once.twice import read, transport
from tests.faults.proxy import Proxy
from tests.waiting import until

WALLS, EACH = 40, 50
EVENTS = WALLS * EACH
MORE_THAN_A_BATCH = 1500
"""More than a relay has in hand at a time: 1,000 on SQLite, those of eight lanes, 1,400, on PostgreSQL."""
SLOWLY = 500_000
"""Bytes a second to RabbitMQ: the events take some seconds to leave, however fast the machine is."""


class PosterHung(Event, name="Poster Hung", key="poster.hung", subject="wall"):
    """One of many on a wall, one above the other."""

    wall: int
    number: int


class Posters:
    """A database with an outbox, relays that publish what is in it, and a queue in which that arrives."""

    def __init__(self, database_url: str, url: str, start: Start) -> None:
        self._database_url, self._url, self._start = database_url, url, start
        self._database: AsyncEngine = create_async_engine(database_url, poolclass=NullPool)
        self._received: list[tuple[UUID, PosterHung]] = []

    async def relay(self, url: str | None = None) -> Process:
        """A process of ``broker relay``, started."""
        environ = {"BROKER_DATABASE": self._database_url, "BROKER_LOGGING_LEVEL": "info"}
        process = self._start(BROKER, "relay", url=url or self._url, environ=environ)
        await process.logged("started")
        return process

    async def hang(self) -> None:
        """What a web application does, in some transactions."""
        for numbers in (range(EACH // 2), range(EACH // 2, EACH)):
            posters = [PosterHung(wall=wall, number=number) for number in numbers for wall in range(WALLS)]
            async with AsyncSession(self._database) as session, session.begin():
                session.add_all(Outgoing(poster, source="web") for poster in posters)

    async def waiting(self) -> set[UUID]:
        """The events in the outbox."""
        async with self._database.connect() as connection:
            return set((await connection.execute(select(outbox.c.event_id))).scalars())

    async def empty(self) -> bool:
        return not await self.waiting()

    @property
    def arrived(self) -> Counter[UUID]:
        """How often each event arrived."""
        return Counter(event_id for event_id, _ in self._received)

    @property
    def walls(self) -> dict[int, list[int]]:
        """The numbers of each wall's posters, in the order of their first arrivals."""
        found: dict[int, list[int]] = {}
        for poster in dict(self._received).values():  # a duplicate keeps the place of the first
            found.setdefault(poster.wall, []).append(poster.number)
        return found

    @asynccontextmanager
    async def receiving(self) -> AsyncIterator[None]:
        """A queue bound for them, and somebody who takes them from it."""
        arriving = asyncio.Queue[Delivery]()

        async def receive() -> None:
            while True:
                delivery = await arriving.get()
                envelope = read(delivery.message)
                self._received.append((envelope.id, PosterHung.model_validate(envelope.data)))
                await delivery.ack()

        async with transport(self._url) as opened:
            await opened.declare(service_topology("walls", ["poster.*"], "events"))
            await opened.consume("walls", arriving.put_nowait, prefetch=200)
            receiving = asyncio.create_task(receive())
            yield
            receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)


@pytest.fixture(params=["sqlite", "postgresql"])
async def posters(
    request: pytest.FixtureRequest, tmp_path: Path, vhost_url: str, start: Start
) -> AsyncIterator[Posters]:
    database_url = f"sqlite+aiosqlite:///{tmp_path}/web.db"
    if request.param == "postgresql":
        create: Callable[[], str] = request.getfixturevalue("postgres_url")
        database_url = create()
    made = await broker("database", "init", url=vhost_url, environ={"BROKER_DATABASE": database_url})
    assert made.code == 0, made.err
    found = Posters(database_url, vhost_url, start)
    async with found.receiving():
        yield found


IN_ORDER = {wall: list(range(EACH)) for wall in range(WALLS)}


@asynccontextmanager
async def at_work(posters: Posters, url: str, *, arrived: int) -> AsyncIterator[tuple[Proxy, Process]]:
    """A relay in the middle of its work, and what slows its way to RabbitMQ; so many events have arrived."""
    async with Proxy(url) as proxy:
        relay = await posters.relay(proxy.url)
        proxy.slow(rate=SLOWLY, latency=0)
        await posters.hang()
        await until(lambda: len(posters.arrived) >= arrived, PATIENCE)
        yield proxy, relay


async def test_when_a_relay_is_killed_another_publishes_the_rest_and_again_only_what_was_in_its_hands(
    posters: Posters, vhost_url: str
) -> None:
    async with at_work(posters, vhost_url, arrived=MORE_THAN_A_BATCH) as (_, killed):
        killed.kill()
    left = await posters.waiting()
    assert 0 < len(left) < EVENTS, "it died in the middle"

    await posters.relay()
    await until(posters.empty, PATIENCE)
    await until(lambda: len(posters.arrived) == EVENTS, PATIENCE)
    assert posters.walls == IN_ORDER
    assert {event_id for event_id, times in posters.arrived.items() if times > 1} <= left
    assert max(posters.arrived.values()) <= 2


async def test_a_relay_that_is_told_to_stop_leaves_nothing_half_done(posters: Posters, vhost_url: str) -> None:
    async with at_work(posters, vhost_url, arrived=EVENTS // 2) as (proxy, stopped):
        stopped.signal(signal.SIGTERM)
        await stopped.logged("stopping")
        assert len(posters.arrived) < EVENTS, "it was told so in the middle"
        proxy.resume()
        assert await stopped.ended() == 0
    assert stopped.lines()[-1]["event"] == "stopped"
    assert await posters.empty(), "RabbitMQ took everything, so it did not leave before"

    following = await posters.relay()
    following.signal(signal.SIGTERM)
    assert await following.ended() == 0, "it had nothing to do"
    await until(lambda: len(posters.arrived) == EVENTS, PATIENCE)
    assert posters.walls == IN_ORDER
    assert set(posters.arrived.values()) == {1}


async def test_a_relay_that_is_told_to_stop_does_not_wait_for_a_rabbitmq_that_is_silent(
    posters: Posters, vhost_url: str
) -> None:
    async with at_work(posters, vhost_url, arrived=1) as (proxy, stopped):
        proxy.stall()
        stopped.signal(signal.SIGTERM)
        assert await stopped.ended() == 0
    assert "Traceback" not in stopped.err
    left = await posters.waiting()
    assert 0 < len(left) <= EVENTS

    await posters.relay()
    await until(posters.empty, PATIENCE)
    await until(lambda: len(posters.arrived) == EVENTS, PATIENCE)
    assert posters.walls == IN_ORDER
    assert {event_id for event_id, times in posters.arrived.items() if times > 1} <= left
