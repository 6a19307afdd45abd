"""One delivery, one transaction: what is promised to whoever writes a handler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from broker import Context, Event, Reject, Retry, Service
from broker.events import id_of
from broker.testing import Harness
from tests.parcels import ParcelLost, ParcelSent, ParcelWeighed, VanBroke, message, weighed
from tests.sql.effects import Market, count, effects, note, packing, settings, stored
from tests.waiting import until


class ManifestPrinted(Event, name="Manifest Printed", key="manifest.printed"):
    """An event that may be of any size."""

    text: str


async def test_effects_inbox_and_events_are_stored_together(
    database_url: str, database: AsyncEngine, market: Market
) -> None:
    async with market.process(packing(database_url), relay=False):
        await market.outside.publish(weighed())
        await until(lambda: market.waiting("packing") == 0)
    assert await stored(database) == (1, 1, 1)


async def test_returned_events_are_published_by_the_relay(database_url: str, database: AsyncEngine) -> None:
    event = weighed()
    async with Harness(packing(database_url), settings=settings()) as shop:
        await shop.publish(event)
        await shop.settled()
        assert shop.published(ParcelSent) == [ParcelSent(parcel_id=event.parcel_id)]
    assert await stored(database) == (1, 1, 0)


async def test_a_duplicate_is_acknowledged_without_calling_the_handler(
    database_url: str, database: AsyncEngine, lines: list[dict[str, Any]]
) -> None:
    calls: list[Any] = []
    event = weighed()
    async with Harness(packing(database_url, calls), settings=settings()) as shop:
        await shop.publish(event)
        await shop.settled()
        await shop.publish(event)
        await shop.settled()
        assert len(shop.published(ParcelSent)) == 1
    assert len(calls) == 1
    assert await stored(database) == (1, 1, 0)
    assert [line["event_id"] for line in lines if line["event"] == "duplicate"] == [str(id_of(event))]


async def test_duplicates_in_hand_together_have_one_effect(database_url: str, database: AsyncEngine) -> None:
    calls: list[Any] = []
    event = weighed()
    async with Harness(packing(database_url, calls), settings=settings()) as shop:
        await asyncio.gather(*(shop.publish(event) for _ in range(10)))
        await shop.settled()
    assert len(calls) == 1
    assert await stored(database) == (1, 1, 0)


async def test_two_services_share_a_database_and_each_handles_the_event(
    database_url: str, database: AsyncEngine
) -> None:
    crm = Service("crm", database=database_url)

    @crm.on(ParcelWeighed)
    async def remember(event: ParcelWeighed, context: Context) -> None:
        await note(event, context)

    async with Harness(packing(database_url), crm, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.settled()
    assert await stored(database) == (2, 2, 0)


def a_value_error(event: ParcelWeighed) -> ParcelSent:
    raise ValueError("no tape")


def a_reject(event: ParcelWeighed) -> ParcelSent:
    raise Reject("stolen")


def too_large(event: ParcelWeighed) -> Event:
    return ManifestPrinted(text="x" * 3000)


def not_declared(event: ParcelWeighed) -> Event:
    return VanBroke(van="7")


def no_event(event: ParcelWeighed) -> Any:
    return 7


FAILURES: dict[Callable[[ParcelWeighed], Any], str] = {
    a_value_error: "ValueError: no tape",
    a_reject: "Reject: stolen",
    too_large: "TooLarge: ",
    not_declared: "ContractError: 'packing' publishes 'Van Broke'",
    no_event: "ContractError: pack returned int",
}


@pytest.mark.parametrize("fail", FAILURES, ids=lambda fail: fail.__name__)
async def test_what_fails_leaves_nothing_behind(
    database_url: str, database: AsyncEngine, fail: Callable[[ParcelWeighed], Any]
) -> None:
    service = Service("packing", database=database_url, publishes=[ParcelSent, ManifestPrinted], retry=Retry("1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> Any:
        await note(event, context)
        context.publish(ParcelSent(parcel_id=event.parcel_id))
        return fail(event)

    async with Harness(service, settings=settings(max_message_bytes=1024)) as shop:
        await shop.publish(weighed())
        await shop.advance(hours=1)
        (letter,) = shop.dead("packing")
        assert letter.reason.startswith(FAILURES[fail])
        assert shop.published(ParcelSent) == []
    assert await stored(database) == (0, 0, 0)


async def test_what_failed_is_handled_once_it_can_be(database_url: str, database: AsyncEngine) -> None:
    failures = iter((ValueError("no tape"), ValueError("no glue")))
    service = Service("packing", database=database_url, retry=Retry("1s", "1s"))

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        await note(event, context)
        for failure in failures:
            raise failure
        return ParcelSent(parcel_id=event.parcel_id)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(hours=1)
        assert len(shop.published(ParcelSent)) == 1
        assert shop.dead("packing") == []
    assert await stored(database) == (1, 1, 0)


async def test_nothing_is_acknowledged_before_it_is_stored(
    database_url: str, database: AsyncEngine, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    from broker.memory import MemoryDelivery

    ack, seen = MemoryDelivery.ack, []

    async def acked(delivery: MemoryDelivery) -> None:
        seen.append(await stored(database))
        await ack(delivery)

    monkeypatch.setattr(MemoryDelivery, "ack", acked)
    async with market.process(packing(database_url), relay=False):
        await market.outside.publish(weighed())
        await until(lambda: seen)
    assert seen == [(1, 1, 1)]


async def test_the_same_id_from_another_source_is_another_event(database_url: str, database: AsyncEngine) -> None:
    event_id, wired = uuid4(), b'"specversion":"1.0","type":"Parcel Weighed","datacontenttype":"application/json"'
    async with Market() as market, market.process(packing(database_url)):
        for source in (b"north", b"south"):
            data = b'"data":{"parcel_id":"%s"}' % str(uuid4()).encode()
            body = b'{%s,"id":"%s","source":"%s",%s}' % (wired, str(event_id).encode(), source, data)
            market.server.publish(message(body))
        await until(lambda: market.waiting("packing") == 0)
        assert market.on_the_ladder("packing") == 0
    assert await count(database, effects) == 2


async def test_the_same_id_with_other_data_is_told_and_acknowledged(
    database_url: str, database: AsyncEngine, lines: list[dict[str, Any]]
) -> None:
    event_id = uuid4()
    async with Harness(packing(database_url), settings=settings()) as shop:
        await shop.publish(weighed(1), id=event_id)
        await shop.settled()
        await shop.publish(weighed(2), id=event_id)
        await shop.settled()
        assert shop.dead("packing") == []
    assert await stored(database) == (1, 1, 0)
    (line,) = [line for line in lines if line["event"] == "duplicate differs"]
    assert (line["log_level"], line["event_id"], line["source"]) == ("warning", str(event_id), "test")


@pytest.mark.parametrize("source", ["x" * 10_000, "nul\\u0000", "é" * 200, "😀", "'; DROP TABLE effects; --"])
async def test_hostile_sources_and_ids_are_remembered_like_others(
    database_url: str, database: AsyncEngine, market: Market, source: str
) -> None:
    body = (
        f'{{"specversion":"1.0","type":"Parcel Weighed","id":"{"i" * 5000}\\u0000","source":"{source}",'
        f'"data":{{"parcel_id":"{uuid4()}"}}}}'
    )
    calls: list[Any] = []
    async with market.process(packing(database_url, calls)):
        for _ in range(2):
            market.server.publish(message(body.encode()))
            await until(lambda: market.waiting("packing") == 0)
        assert market.on_the_ladder("packing") == 0
    assert len(calls) == 1
    assert await count(database, effects) == 1


# -- handlers of every kind ----------------------------------------------------------------------------------------


async def awaited(event: ParcelWeighed, context: Context) -> ParcelSent:
    await note(event, context)
    return ParcelSent(parcel_id=event.parcel_id)


async def several(event: ParcelWeighed, context: Context) -> list[Event]:
    await note(event, context)
    return [ParcelSent(parcel_id=event.parcel_id), ParcelLost(parcel_id=event.parcel_id)]


async def yielding(event: ParcelWeighed, context: Context) -> AsyncIterator[Event]:
    yield ParcelSent(parcel_id=event.parcel_id)
    await note(event, context)
    yield ParcelLost(parcel_id=event.parcel_id)


def in_a_thread(event: ParcelWeighed, context: Context) -> ParcelSent:
    context.publish(ParcelLost(parcel_id=event.parcel_id))
    return ParcelSent(parcel_id=event.parcel_id)


def yielding_in_a_thread(event: ParcelWeighed) -> Iterator[Event]:
    yield ParcelSent(parcel_id=event.parcel_id)
    yield ParcelLost(parcel_id=event.parcel_id)


KINDS = {awaited: (1, 1), several: (1, 2), yielding: (1, 2), in_a_thread: (0, 2), yielding_in_a_thread: (0, 2)}
"""Handlers, with how many effects they store and how many events they publish."""


@pytest.mark.parametrize("handler", KINDS, ids=lambda handler: handler.__name__)
async def test_every_kind_of_handler_has_a_transaction(
    database_url: str, database: AsyncEngine, handler: Callable[..., Any]
) -> None:
    service = Service("packing", database=database_url, publishes=[ParcelSent, ParcelLost])
    service.on(ParcelWeighed)(handler)
    event = weighed()
    async with Harness(service, settings=settings()) as shop:
        for _ in range(2):
            await shop.publish(event)
            await shop.settled()
        assert len(shop.published(ParcelSent)) + len(shop.published(ParcelLost)) == KINDS[handler][1]
    assert await stored(database) == (KINDS[handler][0], 1, 0)


async def test_a_function_around_is_within_the_transaction(database_url: str, database: AsyncEngine) -> None:
    service = packing(database_url)

    @service.around
    async def audit(context: Context, handle: Callable[[], Awaitable[None]]) -> None:
        await context.transaction.execute(insert(effects).values(parcel_id=uuid4(), grams=-1))
        await handle()
        if (await context.transaction.execute(select(effects).where(effects.c.grams == 13))).first():
            raise Reject("thirteen")

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed(1))
        await shop.publish(weighed(13))
        await shop.settled()
        assert [letter.reason for letter in shop.dead("packing")] == ["Reject: thirteen"]
    assert await stored(database) == (2, 1, 0)


async def test_the_ids_of_what_a_handler_publishes_are_the_same_in_every_try(database_url: str) -> None:
    service = Service("packing", database=database_url, retry=Retry("1s"))
    ids = []

    @service.on(ParcelWeighed)
    async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
        ids.append(await context.publish(ParcelSent(parcel_id=event.parcel_id)))
        if context.attempt == 1:
            raise ValueError("no tape")
        return ParcelSent(parcel_id=event.parcel_id)

    async with Harness(service, settings=settings()) as shop:
        await shop.publish(weighed())
        await shop.advance(minutes=1)
        assert len(shop.published(ParcelSent)) == 2
    assert ids[0] == ids[1]
