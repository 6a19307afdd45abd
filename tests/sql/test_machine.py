"""Inbox, outbox and relay against a simple model: whatever happens, each event has its effects once."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from broker import Context, Event, Retry, Service
from broker.events import id_of
from broker.sql.database import open_store
from broker.sql.tables import inbox, outbox
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import Market, Process, count, effects, metadata, note
from tests.waiting import until


class Shop:
    """One service, which packs, and who hears of it."""

    def __init__(self, folder: str) -> None:
        self.url = f"sqlite+aiosqlite:///{Path(folder) / 'service.db'}"
        self.market = Market()
        self.failing = 0
        self.received: list[UUID] = []
        self.process: Process | None = None
        self.stack = AsyncExitStack()
        self.look: AsyncEngine = create_async_engine(self.url)

    async def open(self) -> None:
        async with open_store(self.url, timeout=5) as store, store.committing() as connection:
            await connection.run_sync(metadata.create_all)
        await self.market.__aenter__()
        crm = Service("crm")

        @crm.on(ParcelSent)
        async def receive(event: ParcelSent, context: Context) -> None:
            self.received.append(context.event_id)

        await self.stack.enter_async_context(self.market.process(crm))
        self.packing = AsyncExitStack()

    def service(self) -> Service:
        service = Service("packing", database=self.url, retry=Retry("1s", "1s", "1s", "1s", "1s", "1s"))

        @service.on(ParcelWeighed)
        async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
            await note(event, context)
            await asyncio.sleep(0)
            if self.failing:
                self.failing -= 1
                raise ValueError("no tape")
            return ParcelSent(parcel_id=event.parcel_id)

        return service

    async def start(self, *, relay: bool) -> None:
        await self.stop()
        self.process = await self.packing.enter_async_context(self.market.process(self.service(), relay=relay))

    async def stop(self) -> None:
        await self.packing.aclose()
        self.process = None

    async def crash(self, after: int) -> None:
        """RabbitMQ loses the process in the middle of whatever it does."""
        for _ in range(after):
            await asyncio.sleep(0)
        if self.process is not None:
            await self.process.transport.close()
        await self.stop()

    async def quiet(self) -> bool:
        queues = self.market.server.queues
        busy = any(queue.ready or queue.unacked for name, queue in queues.items() if ".dead" not in name)
        return not busy and await count(self.look, outbox) == 0

    async def close(self) -> None:
        await self.stop()
        await self.stack.aclose()
        await self.market.__aexit__()
        await self.look.dispose()


class ExactlyOnce(RuleBasedStateMachine):
    """Publish, publish again, fail, crash, stop, start, let time pass; at the end all is counted."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.shop = Shop(self.folder.name)
        self.events: list[ParcelWeighed] = []
        self.failures = 0
        self.run(self.shop.open())
        self.run(self.shop.start(relay=True))

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    @rule(turns=st.integers(0, 30))
    def publish(self, turns: int) -> None:
        self.events.append(weighed(len(self.events)))
        self.run(self._publish(self.events[-1], turns))

    @precondition(lambda self: self.events)
    @rule(data=st.data(), turns=st.integers(0, 30))
    def publish_again(self, data: st.DataObject, turns: int) -> None:
        self.run(self._publish(data.draw(st.sampled_from(self.events)), turns))

    async def _publish(self, event: Event, turns: int) -> None:
        await self.shop.market.outside.publish(event)
        for _ in range(turns):
            await asyncio.sleep(0)

    @precondition(lambda self: self.failures < 4)
    @rule()
    def fail_next(self) -> None:
        self.failures += 1
        self.shop.failing += 1

    @rule(after=st.integers(0, 60))
    def crash(self, after: int) -> None:
        self.run(self.shop.crash(after))

    @rule(relay=st.booleans())
    def start(self, relay: bool) -> None:
        self.run(self.shop.start(relay=relay))

    @rule()
    def stop(self) -> None:
        self.run(self.shop.stop())

    @rule()
    def let_time_pass(self) -> None:
        self.run(self._let_time_pass())

    async def _let_time_pass(self) -> None:
        self.shop.market.server.move_to(self.shop.market.server.now + 1)
        await asyncio.sleep(0.005)

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.run(self._end())
        finally:
            self.run(self.shop.close())
            self.runner.close()
            self.folder.cleanup()

    async def _end(self) -> None:
        """All comes to rest, and is counted."""
        shop = self.shop
        await shop.start(relay=True)

        async def at_rest() -> bool:
            shop.market.server.move_to(shop.market.server.now + 1)
            return await shop.quiet()

        await until(at_rest)
        async with shop.look.connect() as connection:
            found = Counter((await connection.scalars(select(effects.c.parcel_id))).all())
            known = (await connection.scalars(select(inbox.c.event_id))).all()
        assert found == Counter(event.parcel_id for event in self.events)
        assert sorted(known) == sorted(id_of(event) for event in self.events)
        assert len(set(shop.received)) == len(self.events), "downstream, each effect is told under one id"
        assert shop.market.waiting("packing.dead") == 0


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(
    max_examples=30, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
