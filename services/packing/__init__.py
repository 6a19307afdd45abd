"""Packing: packs every new order.

That an order is packed and that Packing has said so are stored together, once for each event, however often it is
delivered: see `broker.sql`. So nothing here asks whether it has been done already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import NonNegativeFloat
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Service
from services.contracts import NewOrderPlaced, OrderPacked
from services.contracts.storage import prepared
from services.packing.store import Base, PackedOrder


class Settings(BaseSettings):
    """Read from ``PACKING_DATABASE`` and ``PACKING_WORKING_TIME`` (seconds that packing one order takes)."""

    model_config = SettingsConfigDict(env_prefix="PACKING_")

    database: str = "sqlite+aiosqlite:///data/packing.db"
    working_time: NonNegativeFloat = 0.05


@asynccontextmanager
async def lifespan() -> AsyncIterator[Settings]:
    """The handler works with the settings of the start."""
    yield Settings()


service = Service(
    "packing",
    publishes=[OrderPacked],
    database=lambda: prepared(Settings().database, Base.metadata),
    lifespan=lifespan,
)


@service.on(NewOrderPlaced)
async def pack(order: NewOrderPlaced, context: Context) -> OrderPacked:
    """Pack the order."""
    settings: Settings = context.resources
    await asyncio.sleep(settings.working_time)
    context.transaction.add(PackedOrder(order_id=order.order_id))
    return OrderPacked(order_id=order.order_id)
