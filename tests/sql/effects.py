"""What handlers of these tests do to a database, and processes that do it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, Uuid, func, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from broker import Broker, Context, Service, Settings
from broker.logs import logger
from broker.memory import Memory, Server
from broker.service import Standing, serve
from broker.sql.tables import inbox, outbox
from tests.parcels import ParcelSent, ParcelWeighed

metadata = MetaData()
effects = Table(
    "effects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("parcel_id", Uuid, nullable=False),
    Column("grams", Integer, nullable=False),
)
"""A row for each time that a handler's effect was stored."""
counters = Table("counters", metadata, Column("name", String(20), primary_key=True), Column("value", Integer))
"""What handlers read and write back."""


def packing(database: Any, calls: list[Any] | None = None, **arguments: Any) -> Service:
    """A service that stores each parcel it packs, and tells that it was sent."""
    service = Service("packing", database=database, **arguments)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        if calls is not None:
            calls.append(event)
        await note(event, context)
        return ParcelSent(parcel_id=event.parcel_id)

    return service


async def note(event: ParcelWeighed, context: Context) -> None:
    """The usual effect."""
    await context.transaction.execute(insert(effects).values(parcel_id=event.parcel_id, grams=event.grams))


async def count(engine: AsyncEngine, table: Table) -> int:
    """How many rows are stored."""
    async with engine.connect() as connection:
        found: int = (await connection.execute(select(func.count()).select_from(table))).scalar_one()
    return found


async def stored(engine: AsyncEngine) -> tuple[int, int, int]:
    """Rows of effects, inbox and outbox."""
    async with engine.connect() as connection:
        found = [
            (await connection.execute(select(func.count()).select_from(it))).scalar_one()
            for it in (effects, inbox, outbox)
        ]
    return found[0], found[1], found[2]


async def value(engine: AsyncEngine, name: str) -> int:
    """What a counter says."""
    async with engine.connect() as connection:
        found: int = (await connection.execute(select(counters.c.value).where(counters.c.name == name))).scalar_one()
    return found


def settings(**changes: Any) -> Settings:
    """Settings for in memory: no event log, quick to connect, never paused."""
    return Settings(**({"log": False, "pause_failures": 2.0, "connect_timeout": 5.0} | changes))


class Process:
    """A process of a service, which may die."""

    def __init__(self, service: Service, server: Server, made: Settings) -> None:
        self._service = service
        self._settings = made
        self.transport = Memory(server, made)
        self.standing: Standing

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Process]:
        log = logger(self._settings, service=self._service.name)
        async with serve(self._service, self._settings, log, self.transport) as self.standing:
            yield self

    def die(self) -> None:
        """End what is being done here and now: RabbitMQ takes back what the process held, and hears no more of it."""
        at_once(self.transport.close())
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    def problems(self) -> list[str]:
        return self.standing.problems()


def at_once(it: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that waits for nothing."""
    try:
        it.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


class Market:
    """A RabbitMQ in memory, with processes that come and go, and an outside publisher."""

    def __init__(self) -> None:
        self.server = Server()
        self._stack = AsyncExitStack()
        self.outside: Broker

    async def __aenter__(self) -> Market:
        made = settings()
        self.outside = await self._stack.enter_async_context(
            Broker(source="scales", settings=made, transport=Memory(self.server, made))
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def process(self, service: Service, **changes: Any) -> AsyncIterator[Process]:
        """A process of a service at work."""
        async with Process(service, self.server, settings(**changes)).running() as running:
            yield running

    def waiting(self, queue: str) -> int:
        """How many messages are in a queue, handed out or not."""
        found = self.server.queues.get(queue)
        return len(found.ready) + len(found.unacked) if found else 0

    def on_the_ladder(self, service: str) -> int:
        """How many events of a service have failed: they wait for a retry, or are dead."""
        return sum(self.waiting(name) for name in self.server.queues if name.startswith(f"{service}."))
