"""Customer: owns the customers, and tells of every change to one.

Customers are added and changed by commands, see ``python -m services.customer --help``. A command stores the change and
the event that tells of it in one transaction, and needs no RabbitMQ. The process that this service runs listens to
nothing: it publishes those events.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Service
from services.contracts import CustomerDetailsChanged
from services.contracts.storage import prepared
from services.customer.store import Base


class Settings(BaseSettings):
    """Read from ``CUSTOMER_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="CUSTOMER_")

    database: str = "sqlite+aiosqlite:///data/customer.db"


service = Service(
    "customer", publishes=[CustomerDetailsChanged], database=lambda: prepared(Settings().database, Base.metadata)
)
