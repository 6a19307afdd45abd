"""A handler that outlives its time limit: never two of one delivery at once, with a database and without."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from broker import Context, Retry, Service
from broker.handlers import Threads
from broker.sql.database import Store
from broker.sql.inbox import Turn
from broker.subscriber import Subscriber
from broker.testing import Harness
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import counters, note, settings, stored
from tests.waiting import counted, until


@pytest.fixture(params=["sqlite", "postgresql", "none"])
def any_database_url(request: pytest.FixtureRequest) -> str | None:
    """A database, or none."""
    if request.param == "none":
        return None
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


async def test_two_threads_never_handle_one_delivery_at_once(
    any_database_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("packing", database=any_database_url, retry=Retry("1s"))
    running: list[int] = []
    most, calls, lock, go = [0], [0], threading.Lock(), threading.Event()
    called = counted(monkeypatch, Threads, "call")

    @service.on(ParcelWeighed)
    def pack(event: ParcelWeighed) -> None:
        with lock:
            calls[0] += 1
            first = calls[0] == 1
            running.append(1)
            most[0] = max(most[0], len(running))
        if first:
            go.wait(60)
        with lock:
            running.pop()

    async with Harness(service, settings=settings(handler_timeout=1.0)) as shop:
        await shop.publish(weighed())
        await shop.settled()
        assert "TimeoutError: not handled within BROKER_HANDLER_TIMEOUT" in shop.story
        again = asyncio.create_task(shop.advance(seconds=1))
        await until(lambda: len(called) == 2)
        assert running == [1]
        go.set()
        await again
        assert shop.dead("packing") == []
    assert (calls[0], most[0]) == (2, 1)


async def test_what_a_late_handler_did_is_undone(database_url: str, database: AsyncEngine) -> None:
    service, calls = Service("packing", database=database_url, retry=Retry("1s")), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        calls.append(event)
        await note(event, context)
        if len(calls) == 1:
            await asyncio.Event().wait()

    async with Harness(service, settings=settings(handler_timeout=1.0)) as shop:
        await shop.publish(weighed())
        await shop.settled()
        assert await stored(database) == (0, 0, 0)
        await shop.advance(seconds=1)
    assert len(calls) == 2
    assert await stored(database) == (1, 1, 0)


async def test_a_handler_that_waits_for_a_row_is_late_like_any_other(
    postgresql_url: str, database: AsyncEngine
) -> None:
    """It is cancelled in the middle of a statement."""
    service = Service("packing", database=postgresql_url, retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await context.transaction.execute(update(counters).values(value=2))
        await note(event, context)

    async with database.begin() as connection:
        await connection.execute(counters.insert().values(name="locked", value=1))
    async with Harness(service, settings=settings(handler_timeout=1.0)) as shop:
        async with database.begin() as connection:
            await connection.execute(update(counters).values(value=3))
            await shop.publish(weighed())
            await shop.settled()
            assert "TimeoutError" in shop.story
        await shop.advance(seconds=1)
        assert shop.dead("packing") == []
    assert await stored(database) == (1, 1, 0)


async def test_waiting_for_a_turn_is_not_the_handlers_time(
    sqlite_url: str, database: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To store what they leave to be stored at their end; a handler that writes itself waits in its own time."""
    engine = create_async_engine(sqlite_url)
    service = Service("packing", database=engine)
    waiting, looked = counted(monkeypatch, Turn, "take"), counted(monkeypatch, Subscriber, "_watch")

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        return ParcelSent(parcel_id=event.parcel_id)

    async with Harness(service, settings=settings(handler_timeout=0.2)) as shop:
        async with Store(engine).in_turn():
            for _ in range(10):
                await shop.publish(weighed())
            await until(lambda: len(waiting) == 10)
            looked.clear()
            await until(lambda: len(looked) > 1)  # it looks once within a time limit
        await shop.settled()
        assert "TimeoutError" not in shop.story
        assert len(shop.published(ParcelSent)) == 10
    assert await stored(database) == (0, 10, 0)
    await engine.dispose()
