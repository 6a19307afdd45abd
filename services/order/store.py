"""What the order service stores: its orders, how far each has come, and its copies of what others own."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Enum
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.storage import Hundredths, UtcDateTime


class Status(StrEnum):
    """How far an order has come, in the order of the business."""

    PLACED = "placed"
    PACKED = "packed"
    DISPATCHED = "dispatched"


class Base(DeclarativeBase):
    """The tables of the order service."""

    type_annotation_map: ClassVar = {
        datetime: UtcDateTime,
        Decimal: Hundredths,
        Status: Enum(Status, native_enum=False, length=20, values_callable=lambda statuses: [*statuses]),
        dict[str, Any]: JSON,
    }


class Order(Base):
    """An order that was placed here. It never changes; how far it has come is told by its facts."""

    __tablename__ = "orders"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    event_id: Mapped[UUID]
    """The id of its New Order Placed, and so of the story that began with it."""
    placed: Mapped[dict[str, Any]]
    """The payload of its New Order Placed."""


class Fact(Base):
    """That an order has reached a status, and when. Kept for orders not known here, too."""

    __tablename__ = "facts"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[Status] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class Copy(Base):
    """A copy of what another service owns, as of the latest revision that has arrived."""

    __abstract__ = True

    revision: Mapped[int] = mapped_column(BigInteger)


class Customer(Copy):
    """A copy of a customer."""

    __tablename__ = "customers"

    customer_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]


class Item(Copy):
    """A copy of an item."""

    __tablename__ = "items"

    item_id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    amount: Mapped[Decimal]
    currency: Mapped[str]


class Address(Copy):
    """A copy of an address."""

    __tablename__ = "addresses"

    address_id: Mapped[UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID]
    street: Mapped[str]
    city: Mapped[str]
    postcode: Mapped[str]
    country: Mapped[str]


async def keep(session: AsyncSession, key: UUID, copy: Copy) -> None:
    """Keep a copy, unless the one we have is as new or newer."""
    known = await session.get(type(copy), key, with_for_update=True)
    if known is None:
        session.add(copy)  # and if somebody else just has: the same again, as a whole
    elif known.revision < copy.revision:
        await session.merge(copy)
