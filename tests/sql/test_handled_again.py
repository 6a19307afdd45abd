"""Events that are handled though the inbox knows them: a replay with ``--force``."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.ext.asyncio import AsyncEngine

from broker import Context, Retry, Service
from broker.copies import replayed
from broker.envelope import CONTENT_TYPE, Story, encode
from broker.events import id_of
from broker.transport import Message
from tests.parcels import ParcelSent, ParcelWeighed, message, weighed
from tests.sql.effects import Market, count, effects, note, packing, stored
from tests.waiting import until


def written(event: ParcelWeighed) -> Message:
    """An event as it lies in the log."""
    its_id = id_of(event)
    body, _ = encode(event, event_id=its_id, source="scales", time=datetime.now(UTC), story=Story(its_id))
    return message(body, content_type=CONTENT_TYPE)


async def settled(market: Market, handled: int, calls: list[ParcelWeighed]) -> None:
    await until(lambda: len(calls) >= handled and not market.waiting("packing"))


async def test_it_is_handled_again_and_its_entry_replaced(
    database_url: str, database: AsyncEngine, market: Market
) -> None:
    calls: list[ParcelWeighed] = []
    lying = written(weighed())
    async with market.process(packing(database_url, calls), relay=False) as process:
        for copied in (lying, lying, replayed(lying, "packing", again=False)):
            await process.transport.publish(copied, mandatory=True, timeout=5)
        await settled(market, 1, calls)
        assert await stored(database) == (1, 1, 1), "effects, inbox, outbox"
        await process.transport.publish(replayed(lying, "packing", again=True), mandatory=True, timeout=5)
        await settled(market, 2, calls)
        assert await stored(database) == (2, 1, 2)
        await process.transport.publish(lying, mandatory=True, timeout=5)
        await settled(market, 2, calls)
    assert await stored(database) == (2, 1, 2), "its entry is there again"
    assert len(calls) == 2


async def test_one_that_was_never_handled_is_handled_once(
    database_url: str, database: AsyncEngine, market: Market
) -> None:
    calls: list[ParcelWeighed] = []
    forced = replayed(written(weighed()), "packing", again=True)
    async with market.process(packing(database_url, calls), relay=False) as process:
        await process.transport.publish(forced, mandatory=True, timeout=5)
        await settled(market, 1, calls)
    assert await stored(database) == (1, 1, 1)


async def test_what_it_publishes_keeps_its_ids(database_url: str, market: Market) -> None:
    """So that the inboxes of others ignore it."""
    ids: list[str] = []
    crm = Service("crm", database=database_url)

    @crm.on(ParcelSent)
    async def remember(event: ParcelSent, context: Context) -> None:
        ids.append(str(context.event_id))

    calls: list[ParcelWeighed] = []
    lying = written(weighed())
    async with market.process(crm), market.process(packing(database_url, calls)) as process:
        await process.transport.publish(lying, mandatory=True, timeout=5)
        await until(lambda: len(ids) == 1)
        await process.transport.publish(replayed(lying, "packing", again=True), mandatory=True, timeout=5)
        await settled(market, 2, calls)
        await until(lambda: process.standing.problems() == [] and not market.waiting("crm"))
    assert len(ids) == 1


async def test_one_that_fails_is_tried_again_with_its_entry_kept_until_it_succeeds(
    database_url: str, database: AsyncEngine, market: Market
) -> None:
    tries: list[int] = []
    service = Service("packing", database=database_url, retry=Retry("50ms"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> None:
        tries.append(context.attempt)
        await note(event, context)
        if len(tries) == 2:
            raise ConnectionError("the scales do not answer")

    lying = written(weighed())
    async with market.process(service) as process:
        await process.transport.publish(lying, mandatory=True, timeout=5)
        await until(lambda: len(tries) == 1)
        await process.transport.publish(replayed(lying, "packing", again=True), mandatory=True, timeout=5)
        await until(lambda: len(tries) == 2 and market.on_the_ladder("packing") == 1)
        assert await stored(database) == (1, 1, 0), "what failed left no trace"
        market.server.move_to(market.server.now + 1)
        await until(lambda: len(tries) == 3 and not market.waiting("packing"))
    assert tries == [1, 1, 2]
    assert await count(database, effects) == 2
