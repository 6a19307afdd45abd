"""What the packing service stores."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.storage import UtcDateTime


class Base(DeclarativeBase):
    """The tables of the packing service."""


class PackedOrder(Base):
    """An order that lies packed."""

    __tablename__ = "packed_orders"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    packed_at: Mapped[datetime] = mapped_column(UtcDateTime, default=lambda: datetime.now(UTC))
