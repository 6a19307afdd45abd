"""Handlers that write the same rows: all make progress, all effects count once, nothing goes down the ladder."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from broker import Context, Service
from broker.testing import Harness
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import Market, count, counters, effects, note, packing, settings, stored, value
from tests.waiting import until


async def create(database: AsyncEngine, *names: str) -> None:
    async with database.begin() as connection:
        await connection.execute(insert(counters), [{"name": name, "value": 0} for name in names])


async def increment(session: AsyncSession, name: str, *, between: asyncio.Event | None = None) -> None:
    """Read a counter, and write it back one higher: what two must not do on top of each other."""
    found = (await session.execute(select(counters.c.value).where(counters.c.name == name))).scalar_one()
    if between is not None:
        await between.wait()
    await session.execute(update(counters).where(counters.c.name == name).values(value=found + 1))


def counting(url: Any, calls: list[int], name: str = "packing") -> Service:
    service = Service(name, database=url)

    @service.on(ParcelWeighed)
    async def count(event: ParcelWeighed, context: Context) -> ParcelSent:
        calls.append(event.grams)
        await increment(context.transaction, "weighed")
        return ParcelSent(parcel_id=event.parcel_id)

    return service


# -- SQLite --------------------------------------------------------------------------------------------------------


async def test_while_a_handler_waits_others_commit_and_it_runs_again_once_overtaken(
    sqlite_url: str, database: AsyncEngine
) -> None:
    service, slow, go, read = Service("packing", database=sqlite_url), [], asyncio.Event(), asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        if event.grams == 1:  # the slow one
            slow.append(event)
            await context.transaction.execute(select(counters))
            read.set()
            await go.wait()
        await note(event, context)

    await create(database, "weighed")
    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed(1))
        await read.wait()
        await shop.publish(weighed(2))
        await until(lambda: _effects(database, 1))
        go.set()
        await shop.settled()
        assert shop.dead("packing") == []
        assert "retrying" not in shop.story
    assert len(slow) == 2, "it had read what another changed, so it ran again as a whole"
    assert await stored(database) == (2, 2, 0)


async def test_a_handler_that_has_not_touched_the_database_yet_is_not_overtaken(
    sqlite_url: str, database: AsyncEngine
) -> None:
    service, calls, go = Service("packing", database=sqlite_url), [], asyncio.Event()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        calls.append(event)
        if event.grams == 1:
            await go.wait()
        await note(event, context)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed(1))
        await shop.publish(weighed(2))
        await until(lambda: _effects(database, 1))
        go.set()
        await shop.settled()
    assert len(calls) == 2
    assert await stored(database) == (2, 2, 0)


async def test_an_overtaken_handler_makes_progress_under_constant_contention(
    sqlite_url: str, database: AsyncEngine
) -> None:
    service, slow, writing = Service("packing", database=sqlite_url), [], set[UUID]()

    async def others_commit_or_all_wait(before: int) -> bool:
        return len(writing) == 3 or await _effects(database, before + 1)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        if event.grams == 1:
            slow.append(event)
            await context.transaction.execute(select(counters))
            before = await count(database, effects)
            await until(lambda: others_commit_or_all_wait(before))
            await note(event, context)
            return
        writing.add(context.event_id)
        try:
            await note(event, context)
        finally:
            writing.remove(context.event_id)

    async with Harness(service, settings=settings(concurrency=4)) as shop:
        await shop.publish(weighed(1))

        async def contend() -> None:
            while True:
                await shop.publish(weighed(2))
                await asyncio.sleep(0.005)

        contending = asyncio.create_task(contend())
        await until(lambda: _of(database, 1))
        contending.cancel()
        await asyncio.gather(contending, return_exceptions=True)
        await shop.settled(60)
        assert "retrying" not in shop.story
    assert len(slow) == 4, "after it was overtaken three times it runs alone"


async def _effects(database: AsyncEngine, least: int) -> bool:
    return (await stored(database))[0] >= least


async def _of(database: AsyncEngine, grams: int) -> bool:
    async with database.connect() as connection:
        return (await connection.execute(select(effects).where(effects.c.grams == grams))).first() is not None


@pytest.mark.parametrize("isolation", [None, "REPEATABLE READ", "SERIALIZABLE"])
async def test_counters_that_handlers_read_and_write_back_end_exact(
    request: pytest.FixtureRequest, isolation: str | None
) -> None:
    """On SQLite always; on PostgreSQL at the levels that promise it."""
    kind = "sqlite" if isolation is None else "postgresql"
    url = request.getfixturevalue(f"{kind}_url")
    engine = create_async_engine(url, isolation_level=isolation, pool_size=20) if isolation else None
    look = create_async_engine(url)
    await create(look, "weighed")
    calls: list[int] = []
    async with Harness(counting(engine or url, calls), settings=settings(concurrency=10)) as shop:
        for number in range(40):
            await shop.publish(weighed(number))
        await shop.settled()
        assert "retrying" not in shop.story
        assert len(shop.published(ParcelSent)) == 40
    assert await value(look, "weighed") == 40
    assert len(calls) >= 40
    await look.dispose()
    if engine is not None:
        await engine.dispose()


async def test_two_engines_on_one_file_end_exact(sqlite_url: str, database: AsyncEngine) -> None:
    await create(database, "weighed")
    one, other = counting(sqlite_url, [], "one"), counting(sqlite_url, [], "other")
    async with Harness(one, other, settings=settings(concurrency=4)) as shop:
        for number in range(40):
            await shop.publish(weighed(number))
        await shop.settled(30)
        assert "retrying" not in shop.story
    assert await value(database, "weighed") == 80


WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
print("began", flush=True)
while True:
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("UPDATE counters SET value = value + 1 WHERE name = 'other'")
    time.sleep(0.005)
    connection.execute("COMMIT")
    time.sleep(0.001)
"""


async def test_another_process_that_writes_the_file_all_the_time_stops_nobody(
    sqlite_url: str, database: AsyncEngine, tmp_path: Path, lines: list[dict[str, Any]]
) -> None:
    await create(database, "weighed", "other")
    path = str(tmp_path / "service.db")
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, path, stdout=asyncio.subprocess.PIPE)
    assert writer.stdout is not None
    await writer.stdout.readline()
    made = settings(concurrency=4, connect_timeout=60)  # to switch to WAL, it has to meet one of the writer's pauses
    async with Harness(counting(sqlite_url, []), settings=made) as shop:
        for number in range(10):
            await shop.publish(weighed(number))
        await shop.settled(30)
        assert "retrying" not in shop.story
    writer.kill()
    await writer.communicate()
    assert await value(database, "weighed") == 10
    assert not [line for line in lines if line["event"] in ("database away", "unexpected")]


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


async def test_a_deadlock_is_handled_again_as_a_whole(postgresql_url: str, database: AsyncEngine) -> None:
    await create(database, "left", "right")
    service, calls, both = Service("packing", database=postgresql_url), [], asyncio.Barrier(2)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        calls.append(event)
        order = ("left", "right") if event.grams == 1 else ("right", "left")
        for name in order:
            row = counters.c.name == name
            await context.transaction.execute(update(counters).where(row).values(value=counters.c.value + 1))
            if len(calls) <= 2 and name == order[0]:
                await both.wait()

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed(1))
        await shop.publish(weighed(2))
        await shop.settled()
        assert "retrying" not in shop.story
    assert len(calls) == 3, "one of the two was chosen as the victim, and ran again"
    assert (await value(database, "left"), await value(database, "right")) == (2, 2)


async def test_a_serialization_failure_is_handled_again_as_a_whole(postgresql_url: str, database: AsyncEngine) -> None:
    await create(database, "weighed")
    engine = create_async_engine(postgresql_url, isolation_level="REPEATABLE READ")
    service, calls, both = Service("packing", database=engine), [], asyncio.Barrier(2)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        calls.append(event)
        found = (await context.transaction.execute(select(counters.c.value))).scalar_one()
        if len(calls) <= 2:
            await both.wait()
        await context.transaction.execute(update(counters).values(value=found + 1))
        return ParcelSent(parcel_id=event.parcel_id)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed(1))
        await shop.publish(weighed(2))
        await shop.settled()
        assert "retrying" not in shop.story
        assert len(shop.published(ParcelSent)) == 2
    assert len(calls) == 3
    assert await value(database, "weighed") == 2
    await engine.dispose()


async def test_duplicates_handled_by_two_processes_at_once_have_one_effect(
    database_url: str, database: AsyncEngine, market: Market
) -> None:
    """Each has an engine of its own; both have looked into the inbox before either has written."""
    calls: list[Any] = []
    both = asyncio.Barrier(2)

    def service() -> Service:
        made = packing(database_url, calls)

        @made.around
        async def together(context: Context, handle: Any) -> None:
            if len(calls) < 2 and both.n_waiting < 2:
                await both.wait()
            await handle()

        return made

    event = weighed()
    one, other = market.process(service(), concurrency=1, prefetch=1), market.process(service(), concurrency=1)
    async with one, other:
        await market.outside.publish(event)
        await market.outside.publish(event)
        await until(lambda: market.waiting("packing") == 0)
        assert market.on_the_ladder("packing") == 0
        await until(lambda: _empty_outbox(database))
    assert len(calls) >= 2
    assert await stored(database) == (1, 1, 0)


async def test_a_duplicate_that_meets_what_the_first_stored_is_a_duplicate(
    postgresql_url: str, database: AsyncEngine, market: Market
) -> None:
    """A unique key of the handler's own is violated by its twin in another process: no failure, but a duplicate."""
    both = asyncio.Barrier(2)

    def service() -> Service:
        made = Service("packing", database=postgresql_url)

        @made.on(ParcelWeighed)
        async def pack(event: ParcelWeighed, context: Context) -> None:
            await both.wait()
            await context.transaction.execute(counters.insert().values(name="unique", value=1))

        return made

    event = weighed()
    one, other = market.process(service(), concurrency=1, prefetch=1), market.process(service(), concurrency=1)
    async with one, other:
        await market.outside.publish(event)
        await market.outside.publish(event)
        await until(lambda: market.waiting("packing") == 0)
        assert market.on_the_ladder("packing") == 0
    assert await value(database, "unique") == 1


async def _empty_outbox(database: AsyncEngine) -> bool:
    return (await stored(database))[2] == 0


async def test_two_that_insert_one_key_at_a_time_are_no_failure(database_url: str, database: AsyncEngine) -> None:
    """Both looked, and found nothing: on PostgreSQL the second meets the first's row only when it writes its own."""
    service, looked, calls = Service("packing", database=database_url), asyncio.Event(), list[int]()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        calls.append(event.grams)
        found = await context.transaction.execute(select(counters).where(counters.c.name == "first"))
        if len(calls) == 2:
            looked.set()
        await looked.wait()
        if found.first() is None:
            await context.transaction.execute(insert(counters).values(name="first", value=event.grams))
        await note(event, context)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed(1))
        await shop.publish(weighed(2))
        await shop.settled()
        assert shop.dead("packing") == []
        assert "retrying" not in shop.story
    assert len(calls) == 3, "one of them ran again, at once"
    assert await stored(database) == (2, 2, 0)


async def test_a_key_that_stays_taken_is_the_handlers_failure(database_url: str, database: AsyncEngine) -> None:
    service, calls = Service("packing", database=database_url), list[int]()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        calls.append(event.grams)
        await context.transaction.execute(insert(counters).values(name="taken", value=1))

    await create(database, "taken")
    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed(1))
        await shop.settled()
        assert "retrying" in shop.story
    assert len(calls) == 2, "once more, should another have been quicker; then it is a failure"
