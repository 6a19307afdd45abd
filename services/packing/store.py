"""What the packing service stores."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar
from uuid import UUID

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.storage import Database, UtcDateTime


class Base(DeclarativeBase):
    """The tables of the packing service."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime}


class PackedOrder(Base):
    """An order that lies packed."""

    __tablename__ = "packed_orders"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    packed_at: Mapped[datetime]


async def is_packed(database: Database, order_id: UUID) -> bool:
    """Whether this order's work is done already."""
    async with database.read() as session:
        return await session.get(PackedOrder, order_id) is not None


async def record(database: Database, order_id: UUID) -> None:
    """Note that the work is done. Once is enough: the order id is the key, and the first time stays."""
    async with database.write.begin() as session:
        if await session.get(PackedOrder, order_id) is None:
            session.add(PackedOrder(order_id=order_id, packed_at=datetime.now(UTC)))
