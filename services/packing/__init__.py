"""Packing: packs every new order.

A duplicate of New Order Placed finds the order packed, does no work, and returns Order Packed again: the broker gives
an event that a handler returns an id derived from its cause, so it is the same event and not a second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import NonNegativeFloat
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Service
from services.contracts import NewOrderPlaced, OrderPacked
from services.contracts.storage import Database, open_database
from services.packing.store import Base, PackedOrder


class Settings(BaseSettings):
    """Read from ``PACKING_DATABASE`` and ``PACKING_WORKING_TIME`` (seconds that packing one order takes)."""

    model_config = SettingsConfigDict(env_prefix="PACKING_")

    database: str = "sqlite+aiosqlite:///data/packing.db"
    working_time: NonNegativeFloat = 0.05


@dataclass(frozen=True, slots=True)
class Resources:
    """What the handler works with."""

    database: Database
    working_time: float


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[Resources]:
    """The database is open while the service runs."""
    settings = Settings()
    async with open_database(settings.database, Base.metadata) as database:
        yield Resources(database, settings.working_time)


service = Service("packing", publishes=[OrderPacked], lifespan=lifespan)


@service.on(NewOrderPlaced)
async def pack(order: NewOrderPlaced, context: Context) -> OrderPacked:
    """Pack the order, once."""
    resources: Resources = context.resources
    async with resources.database.read() as session:
        known = await session.get(PackedOrder, order.order_id)
    if known is None:
        await asyncio.sleep(resources.working_time)
        async with resources.database.write.begin() as session:
            await session.merge(PackedOrder(order_id=order.order_id))  # a duplicate may have been as quick
    return OrderPacked(order_id=order.order_id)
