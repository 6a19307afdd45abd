"""Catalog: owns the items and their prices, and tells of every change to one.

Items are added and changed by commands, see ``python -m services.catalog --help``. A command stores the change and
the event that tells of it in one transaction, and needs no RabbitMQ. The process that this service runs listens to
nothing: it publishes those events.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Service
from services.catalog.store import Base
from services.contracts import CatalogItemChanged
from services.contracts.storage import prepared


class Settings(BaseSettings):
    """Read from ``CATALOG_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="CATALOG_")

    database: str = "sqlite+aiosqlite:///data/catalog.db"


service = Service(
    "catalog", publishes=[CatalogItemChanged], database=lambda: prepared(Settings().database, Base.metadata)
)
