"""Address: owns the addresses of the customers, and tells of every change to one.

Addresses are added and changed by commands, see ``python -m services.address --help``. A command stores the change and
the event that tells of it in one transaction, and needs no RabbitMQ. The process that this service runs listens to
nothing: it publishes those events.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Service
from services.address.store import Base
from services.contracts import AddressChanged
from services.contracts.storage import prepared


class Settings(BaseSettings):
    """Read from ``ADDRESS_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="ADDRESS_")

    database: str = "sqlite+aiosqlite:///data/address.db"


service = Service("address", publishes=[AddressChanged], database=lambda: prepared(Settings().database, Base.metadata))
