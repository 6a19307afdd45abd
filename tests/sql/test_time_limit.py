"""A handler that outlives its time limit: never two of one delivery at once, with a database and without."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncEngine

from broker import Context, Retry, Service
from broker.testing import Harness
from tests.parcels import ParcelWeighed, weighed
from tests.sql.effects import counters, note, settings, stored


@pytest.fixture(params=["sqlite", "postgresql", "none"])
def any_database_url(request: pytest.FixtureRequest) -> str | None:
    """A database, or none."""
    if request.param == "none":
        return None
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


async def test_two_threads_never_handle_one_delivery_at_once(any_database_url: str | None) -> None:
    service = Service("packing", database=any_database_url, retry=Retry("1s"))
    running: list[int] = []
    most, calls, lock = [0], [0], threading.Lock()

    @service.on(ParcelWeighed)
    def pack(event: ParcelWeighed) -> None:
        with lock:
            calls[0] += 1
            first = calls[0] == 1
            running.append(1)
            most[0] = max(most[0], len(running))
        time.sleep(0.4 if first else 0)
        with lock:
            running.pop()

    async with Harness(service, settings=settings(handler_timeout=0.25)) as shop:
        await shop.publish(weighed())
        await shop.settled()
        assert "TimeoutError: not handled within BROKER_HANDLER_TIMEOUT" in shop.story
        await shop.advance(seconds=1)
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

    async with Harness(service, settings=settings(handler_timeout=0.2)) as shop:
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
    async with Harness(service, settings=settings(handler_timeout=0.2)) as shop:
        async with database.begin() as connection:
            await connection.execute(update(counters).values(value=3))
            await shop.publish(weighed())
            await shop.settled()
            assert "TimeoutError" in shop.story
        await shop.advance(seconds=1)
        assert shop.dead("packing") == []
    assert await stored(database) == (1, 1, 0)


async def test_waiting_for_a_turn_is_not_the_handlers_time(sqlite_url: str, database: AsyncEngine) -> None:
    """Ten slow ones, one after the other, each within its limit."""
    service, calls = Service("packing", database=sqlite_url), list[Any]()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        calls.append(event)
        await asyncio.sleep(0.05)
        await note(event, context)

    async with Harness(service, settings=settings(handler_timeout=1.0)) as shop:
        for _ in range(10):
            await shop.publish(weighed())
        await shop.settled()
        assert "TimeoutError" not in shop.story
    assert await stored(database) == (10, 10, 0)
