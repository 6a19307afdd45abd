"""Dispatch: dispatches every packed order.

That an order is dispatched and that Dispatch has said so are stored together, once for each event, however often it is
delivered: see `broker.sql`. So nothing here asks whether it has been done already.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import NonNegativeFloat
from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Service
from services.contracts import OrderDispatched, OrderPacked
from services.contracts.storage import prepared
from services.dispatch.store import Base, DispatchedOrder


class Settings(BaseSettings):
    """Read from ``DISPATCH_DATABASE`` and ``DISPATCH_WORKING_TIME`` (seconds that dispatching one order takes)."""

    model_config = SettingsConfigDict(env_prefix="DISPATCH_")

    database: str = "sqlite+aiosqlite:///data/dispatch.db"
    working_time: NonNegativeFloat = 0.05


@asynccontextmanager
async def lifespan() -> AsyncIterator[Settings]:
    """The handler works with the settings of the start."""
    yield Settings()


service = Service(
    "dispatch",
    publishes=[OrderDispatched],
    database=lambda: prepared(Settings().database, Base.metadata),
    lifespan=lifespan,
)


@service.on(OrderPacked)
async def dispatch(order: OrderPacked, context: Context) -> OrderDispatched:
    """Dispatch the order."""
    settings: Settings = context.resources
    await asyncio.sleep(settings.working_time)
    context.transaction.add(DispatchedOrder(order_id=order.order_id))
    return OrderDispatched(order_id=order.order_id)
