"""Dispatch: dispatches every packed order.

A duplicate of Order Packed finds the order dispatched, does no work, and returns Order Dispatched again: the broker
gives an event that a handler returns an id derived from its cause, so it is the same event and not a second one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import NonNegativeFloat
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Service
from services.contracts import OrderDispatched, OrderPacked
from services.contracts.storage import Database, open_database
from services.dispatch.store import Base, DispatchedOrder


class Settings(BaseSettings):
    """Read from ``DISPATCH_DATABASE`` and ``DISPATCH_WORKING_TIME`` (seconds that dispatching one order takes)."""

    model_config = SettingsConfigDict(env_prefix="DISPATCH_")

    database: str = "sqlite+aiosqlite:///data/dispatch.db"
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


service = Service("dispatch", publishes=[OrderDispatched], lifespan=lifespan)


@service.on(OrderPacked)
async def dispatch(order: OrderPacked, context: Context) -> OrderDispatched:
    """Dispatch the order, once."""
    resources: Resources = context.resources
    async with resources.database.read() as session:
        known = await session.get(DispatchedOrder, order.order_id)
    if known is None:
        await asyncio.sleep(resources.working_time)
        async with resources.database.write.begin() as session:
            await session.merge(DispatchedOrder(order_id=order.order_id))  # a duplicate may have been as quick
    return OrderDispatched(order_id=order.order_id)
