"""Address: owns the addresses of the customers, and tells of every change to one.

The process that this service runs listens to nothing; addresses are added and changed by its commands, see
``python -m services.address --help``. Each stores first and publishes then. If RabbitMQ does not confirm, the change
is stored all the same, the command says so, and ``announce`` publishes the current state of everything again:
subscribers compare revisions, so telling them twice does no harm.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Service
from services.address.store import Base
from services.contracts import AddressChanged
from services.contracts.storage import Database, open_database


class Settings(BaseSettings):
    """Read from ``ADDRESS_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="ADDRESS_")

    database: str = "sqlite+aiosqlite:///data/address.db"


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[Database]:
    """The database is open while the service runs."""
    async with open_database(Settings().database, Base.metadata) as database:
        yield database


service = Service("address", publishes=[AddressChanged], lifespan=lifespan)
