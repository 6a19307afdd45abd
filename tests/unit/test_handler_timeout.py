"""A handling has a time limit: beyond it, it counts as a failure like any other."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from broker import Context, Service, Settings
from broker.testing import Harness
from tests.parcels import ParcelSent


async def test_a_handler_beyond_its_time_limit_is_retried() -> None:
    service = Service("mail")

    @service.on(ParcelSent)
    async def write(event: ParcelSent, context: Context) -> None:
        if context.attempt == 1:
            await asyncio.Event().wait()

    async with Harness(service, settings=Settings(handler_timeout=0.05)) as shop:
        await shop.publish(ParcelSent(parcel_id=uuid4()))
        await shop.settled()
        assert "TimeoutError: not handled within BROKER_HANDLER_TIMEOUT=0.05 s" in shop.story
        await shop.advance(seconds=1)
        assert "handled    Parcel Sent                attempt 2" in shop.story


async def test_a_handlers_own_timeout_is_told_as_its_own() -> None:
    service = Service("mail")

    @service.on(ParcelSent)
    async def write(event: ParcelSent) -> None:
        raise TimeoutError("the post office does not answer")

    async with Harness(service) as shop:
        await shop.publish(ParcelSent(parcel_id=uuid4()))
        await shop.settled()
        assert "TimeoutError: the post office does not answer" in shop.story
