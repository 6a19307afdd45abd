"""What reporting stores: one row for each order, holding when it was placed, packed and dispatched."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts import Money
from services.contracts.storage import Hundredths, UtcDateTime


class Base(DeclarativeBase):
    """The tables of the reporting service."""

    type_annotation_map: ClassVar = {datetime: UtcDateTime, Decimal: Hundredths}


class Order(Base):
    """What is known about an order. What has not arrived yet is None, whatever has arrived already."""

    __tablename__ = "orders"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    placed_at: Mapped[datetime | None] = mapped_column(index=True)
    packed_at: Mapped[datetime | None] = mapped_column(index=True)
    dispatched_at: Mapped[datetime | None] = mapped_column(index=True)
    amount: Mapped[Decimal | None]
    currency: Mapped[str | None]


async def record_placed(session: AsyncSession, order_id: UUID, at: datetime, total: Money) -> None:
    """Record that an order was placed, and what it costs."""
    order = await _order(session, order_id)
    order.placed_at = earlier(order.placed_at, at)
    order.amount, order.currency = total.amount, total.currency


async def record_packed(session: AsyncSession, order_id: UUID, at: datetime) -> None:
    """Record that an order was packed."""
    order = await _order(session, order_id)
    order.packed_at = earlier(order.packed_at, at)


async def record_dispatched(session: AsyncSession, order_id: UUID, at: datetime) -> None:
    """Record that an order was dispatched."""
    order = await _order(session, order_id)
    order.dispatched_at = earlier(order.dispatched_at, at)


def earlier(known: datetime | None, at: datetime) -> datetime:
    """Of two times told for one fact the earlier stands, so that the order of arrival does not matter."""
    return at if known is None else min(known, at)


async def _order(session: AsyncSession, order_id: UUID) -> Order:
    order = await session.get(Order, order_id, with_for_update=True)
    if order is None:
        order = Order(order_id=order_id)
        session.add(order)
    return order
