"""Reporting: management sees ordering levels in real time, see ``python -m services.reporting --help``.

Each event adds what it tells and changes nothing that is there. So it does not matter in which order events arrive.
"""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict

from broker import Context, Service
from services.contracts import NewOrderPlaced, OrderDispatched, OrderPacked
from services.contracts.storage import prepared
from services.reporting.store import Base, Fact, Status, Total


class Settings(BaseSettings):
    """Read from ``REPORTING_DATABASE``."""

    model_config = SettingsConfigDict(env_prefix="REPORTING_")

    database: str = "sqlite+aiosqlite:///data/reporting.db"


service = Service("reporting", database=lambda: prepared(Settings().database, Base.metadata))


@service.on(NewOrderPlaced)
async def placed(order: NewOrderPlaced, context: Context) -> None:
    """One more order, and what it costs."""
    total = Total(order_id=order.order_id, amount=order.total.amount, currency=order.total.currency)
    context.transaction.add_all([total, Fact(order_id=order.order_id, status=Status.PLACED, at=context.time)])


@service.on(OrderPacked, OrderDispatched)
async def progressed(order: OrderPacked | OrderDispatched, context: Context) -> None:
    """The order is packed, or dispatched."""
    status = Status.PACKED if isinstance(order, OrderPacked) else Status.DISPATCHED
    context.transaction.add(Fact(order_id=order.order_id, status=status, at=context.time))
