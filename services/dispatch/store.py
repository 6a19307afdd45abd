"""What the dispatch service stores."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.storage import UtcDateTime


class Base(DeclarativeBase):
    """The tables of the dispatch service."""


class DispatchedOrder(Base):
    """An order that has left the house."""

    __tablename__ = "dispatched_orders"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    dispatched_at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC))
