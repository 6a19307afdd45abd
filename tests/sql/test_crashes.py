"""A process dies at every step of a delivery, and another one goes on: each effect happens exactly once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from broker import Context, Service
from broker.memory import Memory, MemoryDelivery
from broker.sql.database import Statement
from broker.sql.inbox import SqlTransactions
from broker.sql.outbox import Taken
from broker.sql.relay import Relay
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import Market, Process, count, effects, note, stored
from tests.waiting import until


class Crash:
    """Kills the process it is given when a certain point is reached, once."""

    def __init__(self, at: str) -> None:
        self._at = at
        self.process: Process | None = None
        self.passed: list[str] = []
        self.happened = asyncio.Event()

    async def point(self, name: str) -> None:
        """A point in the way of a delivery."""
        if self.pass_by(name):
            await asyncio.sleep(0)
            raise AssertionError("it should have died")

    def pass_by(self, name: str) -> bool:
        """The same where nothing can be awaited."""
        self.passed.append(name)
        if name != self._at or self.process is None or self.happened.is_set():
            return False
        self.process.die()
        self.happened.set()
        return True


BEFORE_COMMIT = (
    "received",
    "inbox read",
    "handler called",
    "handler ended",
    "flushed",
    "inbox written",
    "before commit",
)
AFTER_COMMIT = ("committed", "relay woken", "before ack", "acked")
POINTS = (*BEFORE_COMMIT, *AFTER_COMMIT)
"""The way of one delivery, in order."""


def inject(crash: Crash, patch: pytest.MonkeyPatch) -> None:
    """Put the points into the way of a delivery."""
    run, known, finish = SqlTransactions.run, SqlTransactions._is_known, SqlTransactions._finish
    make, commit = Statement.changed, AsyncConnection.commit
    wake, ack = Relay.wake, MemoryDelivery.ack

    async def running(self: SqlTransactions, envelope: Any, handle: Any, *, again: bool = False) -> bool:
        await crash.point("received")
        return await run(self, envelope, handle, again=again)

    async def knowing(self: SqlTransactions, *arguments: Any) -> bool:
        found = await known(self, *arguments)
        await crash.point("inbox read")
        return found

    async def finishing(self: SqlTransactions, connection: AsyncConnection, *arguments: Any, again: bool) -> bool:
        await crash.point("flushed")
        connection.info["finishing"] = True
        try:
            return await finish(self, connection, *arguments, again=again)
        finally:
            if not connection.closed and not connection.invalidated:
                connection.info.pop("finishing", None)

    async def making(self: Statement, connection: AsyncConnection, *arguments: Any) -> Any:
        found = await make(self, connection, *arguments)
        if connection.info.get("finishing"):
            await crash.point("inbox written")
        return found

    async def committing(self: AsyncConnection) -> None:
        if not self.info.get("finishing"):
            await commit(self)
            return
        await crash.point("before commit")
        await commit(self)
        await crash.point("committed")

    def waking(self: Relay) -> None:
        crash.pass_by("relay woken")
        wake(self)

    async def acking(self: MemoryDelivery) -> None:
        if self.queue.declaration.name != "packing":
            await ack(self)
            return
        await crash.point("before ack")
        await ack(self)
        await crash.point("acked")

    patch.setattr(SqlTransactions, "run", running)
    patch.setattr(SqlTransactions, "_is_known", knowing)
    patch.setattr(SqlTransactions, "_finish", finishing)
    patch.setattr(Statement, "changed", making)
    patch.setattr(AsyncConnection, "commit", committing)
    patch.setattr(Relay, "wake", waking)
    patch.setattr(MemoryDelivery, "ack", acking)


def services(url: str, crash: Crash) -> tuple[Service, Service]:
    """One that packs, and one downstream that notes what was sent."""
    packing, crm = Service("packing", database=url), Service("crm", database=url)

    @packing.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        await crash.point("handler called")
        await note(event, context)
        await crash.point("handler ended")
        return ParcelSent(parcel_id=event.parcel_id)

    @crm.on(ParcelSent)
    async def remember(event: ParcelSent, context: Context) -> None:
        await context.transaction.execute(effects.insert().values(parcel_id=event.parcel_id, grams=-1))

    return packing, crm


async def quiet(market: Market, *queues: str) -> None:
    await until(lambda: all(market.waiting(queue) == 0 for queue in queues))


@pytest.mark.parametrize("at", POINTS)
async def test_a_crash_at_any_point_leaves_effects_exactly_once(
    database_url: str, database: AsyncEngine, market: Market, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    crash = Crash(at)
    inject(crash, monkeypatch)
    packing, crm = services(database_url, crash)
    async with market.process(crm, relay=False):
        async with market.process(packing) as crash.process:
            crash.passed.clear()
            await market.outside.publish(weighed())
            await until(crash.happened.is_set)
            await asyncio.sleep(0)
        crash.process = None
        found = await stored(database)
        assert found == ((0, 0, 0) if at in BEFORE_COMMIT else (1, 1, 1)), "all of it, or nothing"
        async with market.process(packing):
            await until(lambda: _downstream(database))
            await quiet(market, "packing", "crm")
    assert market.on_the_ladder("packing") == market.on_the_ladder("crm") == 0
    assert await stored(database) == (2, 2, 0)


async def _downstream(database: AsyncEngine) -> bool:
    return (await stored(database))[1:] == (2, 0)


async def test_a_delivery_passes_all_these_points(
    database_url: str, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the test above would be worth nothing."""
    crash = Crash("nowhere")
    inject(crash, monkeypatch)
    packing, _ = services(database_url, crash)
    async with market.process(packing, relay=False):
        crash.passed.clear()
        await market.outside.publish(weighed())
        await until(lambda: "acked" in crash.passed)
    assert tuple(dict.fromkeys(crash.passed)) == POINTS


async def test_a_relay_that_dies_between_publish_and_delete_publishes_again_under_the_same_id(
    database_url: str, database: AsyncEngine, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash, ids = Crash("published"), list[str]()
    packing, crm = services(database_url, Crash("nowhere"))
    conclude, publish = Taken.conclude, Memory.publish

    async def concluding(self: Taken, *arguments: Any) -> None:
        await crash.point("published")
        await conclude(self, *arguments)

    async def publishing(self: Memory, message: Any, **more: Any) -> None:
        await publish(self, message, **more)
        if message.key == "parcel.sent":
            ids.append(message.body.split(b'"id":"')[1][:36].decode())

    monkeypatch.setattr(Taken, "conclude", concluding)
    monkeypatch.setattr(Memory, "publish", publishing)
    async with market.process(crm, relay=False):
        async with market.process(packing) as crash.process:
            await market.outside.publish(weighed())
            await until(crash.happened.is_set)
        async with market.process(packing):
            await until(lambda: _downstream(database))
            await quiet(market, "packing", "crm")
    assert len(ids) == 2
    assert len(set(ids)) == 1
    assert await count(database, effects) == 2


async def test_a_relay_that_is_stopped_publishes_nothing_twice(
    database_url: str, database: AsyncEngine, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopping is no crash: what is under way is published and removed."""
    published, publish = list[bytes](), Memory.publish
    go = asyncio.Event()

    async def publishing(self: Memory, message: Any, **more: Any) -> None:
        await publish(self, message, **more)
        if message.key == "parcel.sent":
            published.append(message.body)
            await go.wait()

    monkeypatch.setattr(Memory, "publish", publishing)
    packing, _ = services(database_url, Crash("nowhere"))

    async def release(condition: Callable[[], Any]) -> None:
        await until(condition)
        go.set()

    async with market.process(packing) as process:
        await market.outside.publish(weighed())
        await until(lambda: published)
        releasing = asyncio.create_task(release(lambda: process.standing.phase == "stopping"))
    await releasing
    async with market.process(packing):
        await until(lambda: _empty(database))
    assert len(published) == 1


async def _empty(database: AsyncEngine) -> bool:
    return (await stored(database))[2] == 0
