"""Catalog: owns the items and their prices, and tells of every change to one.

The process that this service runs listens to nothing; items are added and changed by its commands, see
``python -m services.catalog --help``. Each stores first and publishes then. If RabbitMQ does not confirm, the change
is stored all the same, the command says so, and ``announce`` publishes the current state of everything again:
subscribers compare revisions, so telling them twice does no harm.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Service
from services.catalog.store import Base
from services.contracts import CatalogItemChanged
from services.contracts.storage import Database, open_database


class Settings(BaseSettings):
    """Read from ``CATALOG_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="CATALOG_")

    database: str = "sqlite+aiosqlite:///data/catalog.db"


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[Database]:
    """The database is open while the service runs."""
    async with open_database(Settings().database, Base.metadata) as database:
        yield database


service = Service("catalog", publishes=[CatalogItemChanged], lifespan=lifespan)
