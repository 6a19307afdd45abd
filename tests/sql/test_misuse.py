"""What a handler must not do with its transaction, and what it is told then."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from broker import Context, ContractError, Retry, Service
from broker.testing import Harness
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import counters, effects, note, packing, settings, stored


async def commit(session: AsyncSession) -> None:
    await session.commit()


async def rollback(session: AsyncSession) -> None:
    await session.rollback()


async def close(session: AsyncSession) -> None:
    await session.close()


async def leave(session: AsyncSession) -> None:
    async with session:
        pass


async def invalidate(session: AsyncSession) -> None:
    await session.invalidate()


async def begin(session: AsyncSession) -> None:
    async with session.begin():
        pass


async def reset(session: AsyncSession) -> None:
    await session.reset()


async def commit_by_the_connection(session: AsyncSession) -> None:
    await (await session.connection()).commit()


ENDINGS = (commit, rollback, close, leave, invalidate, begin, reset, commit_by_the_connection)


@pytest.mark.parametrize("end", ENDINGS, ids=lambda end: end.__name__)
async def test_a_handler_that_ends_its_transaction_is_told_what_to_do_instead(
    database_url: str, database: AsyncEngine, end: Callable[[AsyncSession], Awaitable[None]]
) -> None:
    service = Service("packing", database=database_url, retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await note(event, context)
        await end(context.transaction)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        (letter,) = shop.dead("packing")
        assert letter.reason.startswith("ContractError: A handler does not end its transaction")
    assert await stored(database) == (0, 0, 0)


async def test_a_commit_by_sql_is_noticed(database_url: str, database: AsyncEngine) -> None:
    """It cannot be undone; but it does not count as handled, and what would be published is not."""
    service = Service("packing", database=database_url, retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        await context.transaction.execute(text("COMMIT"))
        return ParcelSent(parcel_id=event.parcel_id)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        (letter,) = shop.dead("packing")
        assert letter.reason.startswith("ContractError: A handler does not end its transaction")
    assert await stored(database) == (0, 0, 0)


async def test_what_sqlite_rolled_back_by_itself_is_noticed_though_the_error_was_swallowed(
    sqlite_url: str, database: AsyncEngine
) -> None:
    """As it does on a full disk: what came before is gone, and what comes after would be committed alone."""
    service = Service("packing", database=sqlite_url, retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        await note(event, context)
        for _ in range(2):
            with suppress(IntegrityError):
                await context.transaction.execute(
                    text("INSERT OR ROLLBACK INTO counters (name, value) VALUES ('a', 1)")
                )
        return ParcelSent(parcel_id=event.parcel_id)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        assert len(shop.dead("packing")) == 1
    assert await stored(database) == (0, 0, 0)


@pytest.mark.parametrize("by", ["connection", "transaction"])
async def test_ending_it_by_a_way_round_is_noticed(database_url: str, database: AsyncEngine, by: str) -> None:
    service = Service("packing", database=database_url, retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await note(event, context)
        if by == "connection":
            await (await context.transaction.connection()).rollback()
        else:
            transaction = context.transaction.get_transaction()
            assert transaction is not None
            await transaction.rollback()

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        assert len(shop.dead("packing")) == 1, "an effect that was rolled back must not count as handled"
    assert await stored(database) == (0, 0, 0)


async def test_savepoints_undo_a_part(database_url: str, database: AsyncEngine) -> None:
    service = Service("packing", database=database_url)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        with suppress(ValueError):
            async with context.transaction.begin_nested():
                await note(event, context)
                raise ValueError("undo")
        async with context.transaction.begin_nested():
            await note(event, context)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
        assert shop.dead("packing") == []
    assert await stored(database) == (1, 1, 0)


async def test_an_error_of_the_database_may_be_caught_within_a_savepoint(
    database_url: str, database: AsyncEngine
) -> None:
    service = Service("packing", database=database_url)

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        for _ in range(2):
            with suppress(IntegrityError):
                async with context.transaction.begin_nested():
                    await context.transaction.execute(counters.insert().values(name="one", value=1))
        await note(event, context)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
        assert shop.dead("packing") == []
    assert await stored(database) == (1, 1, 0)


async def test_a_swallowed_error_never_loses_effects(database_url: str, database: AsyncEngine) -> None:
    """Without a savepoint, PostgreSQL has rolled everything back: the handling fails. SQLite undid one statement."""
    service = Service("packing", database=database_url, retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await note(event, context)
        for _ in range(2):
            with suppress(IntegrityError):
                await context.transaction.execute(counters.insert().values(name="one", value=1))

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        dead = len(shop.dead("packing"))
    assert await stored(database) == ((0, 0, 0) if dead else (1, 1, 0))


async def test_after_the_handler_has_ended_its_transaction_says_so(database_url: str) -> None:
    service, left = Service("packing", database=database_url), list[Any]()

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        left.extend((context, context.transaction))

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
        context, session = left
        with pytest.raises(ContractError, match="The handler has ended"):
            context.transaction.add(object())
        with pytest.raises(InvalidRequestError, match="permanently closed"):
            await session.execute(select(effects))


async def test_a_task_that_outlives_its_handler_changes_nothing(database_url: str, database: AsyncEngine) -> None:
    service, go, told = Service("packing", database=database_url), asyncio.Event(), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        async def later() -> None:
            session = context.transaction
            await go.wait()
            await session.execute(effects.insert().values(parcel_id=event.parcel_id, grams=1))

        told.append(asyncio.create_task(later()))
        await asyncio.sleep(0)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
        go.set()
        await asyncio.wait(told)
        assert isinstance(told[0].exception(), InvalidRequestError)
    assert await stored(database) == (0, 1, 0)


async def test_without_a_database_a_transaction_says_what_is_missing() -> None:
    service, told = Service("packing"), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        try:
            context.transaction.add(object())
        except ContractError as error:
            told.append(str(error))

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
    assert told == ["This service has no database. Write Service(..., database=...), or Context(transaction=...)."]


async def test_publishing_after_the_handler_has_ended_is_refused(database_url: str) -> None:
    service, contexts = Service("packing", database=database_url, publishes=[ParcelSent]), []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        contexts.append(context)

    event = weighed()
    async with Harness(service, settings=settings()) as shop:
        await shop.publish(event)
        await shop.settled()
        with pytest.raises(ContractError, match="The handler has ended"):
            contexts[0].publish(ParcelSent(parcel_id=event.parcel_id))


async def test_a_statement_that_is_wrong_is_the_handlers_failure(
    database_url: str, database: AsyncEngine, lines: list[dict[str, Any]]
) -> None:
    service = Service("packing", database=database_url, retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        await note(event, context)
        await context.transaction.execute(text("SELECT nothing FROM nowhere"))

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        (letter,) = shop.dead("packing")
    assert letter.attempt == 2
    assert not [line for line in lines if line["event"] == "database away"]
    assert await stored(database) == (0, 0, 0)


async def test_an_outage_that_a_handler_met_elsewhere_is_its_own_failure(
    database_url: str, database: AsyncEngine, lines: list[dict[str, Any]]
) -> None:
    service = packing(database_url, retry=Retry("1s"))

    @service.around
    async def elsewhere(context: Context, handle: Callable[[], Awaitable[None]]) -> None:
        raise ConnectionRefusedError("the mail server is down")

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        assert [letter.attempt for letter in shop.dead("packing")] == [2]
    assert not [line for line in lines if line["event"] == "database away"]
