"""Reporting: management sees ordering levels in real time, see ``python -m services.reporting --help``.

Each order is one row, filled in as its events arrive: in any order, and a duplicate finds its place filled. So nothing
counts twice, and nothing is missing because something else came late.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Service
from services.contracts import NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import Database, open_database
from services.reporting.store import Base, record_dispatched, record_packed, record_placed


class Settings(BaseSettings):
    """Read from ``REPORTING_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="REPORTING_")

    database: str = "sqlite+aiosqlite:///data/reporting.db"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the handlers work with."""

    database: Database


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[Resources]:
    """The database is open while the service runs."""
    async with open_database(Settings().database, Base.metadata) as database:
        yield Resources(database)


service = Service("reporting", lifespan=lifespan)


@service.on(NewOrderPlaced)
async def placed(order: NewOrderPlaced, context: Context) -> None:
    """One more order, and what it costs."""
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await record_placed(session, order.order_id, context.time, order.total)


@service.on(OrderPacked)
async def packed(order: OrderPacked, context: Context) -> None:
    """The order is packed."""
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await record_packed(session, order.order_id, context.time)


@service.on(OrderDispatched)
async def dispatched(order: OrderDispatched, context: Context) -> None:
    """The order is dispatched."""
    resources: Resources = context.resources
    async with resources.database.write.begin() as session:
        await record_dispatched(session, order.order_id, context.time)
