"""What the CRM stores: customers, their orders, how far each has come, and the follow-up e-mails."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Enum
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts import CustomerDetailsChanged
from services.contracts.storage import UtcDateTime


class Status(StrEnum):
    """How far an order has come, in the order of the business."""

    PLACED = "placed"
    PACKED = "packed"
    DISPATCHED = "dispatched"


class Base(DeclarativeBase):
    """The tables of the CRM."""

    type_annotation_map: ClassVar = {
        datetime: UtcDateTime,
        Status: Enum(Status, native_enum=False, length=20, values_callable=lambda statuses: [*statuses]),
        dict[str, Any]: JSON,
    }


class Customer(Base):
    """A customer, as of the latest revision that has arrived."""

    __tablename__ = "customers"

    customer_id: Mapped[UUID] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str]
    email: Mapped[str]


class Order(Base):
    """An order of a customer."""

    __tablename__ = "orders"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    customer_id: Mapped[UUID] = mapped_column(index=True)
    placed: Mapped[dict[str, Any]]
    """The payload of its New Order Placed."""


class Fact(Base):
    """That an order has reached a status, and when. Kept for orders not known yet, too."""

    __tablename__ = "facts"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[Status] = mapped_column(primary_key=True)
    at: Mapped[datetime]


class FollowUp(Base):
    """An order's follow-up e-mail, and how far it has come: see `services.crm.sender`."""

    __tablename__ = "follow_ups"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    message: Mapped[bytes]
    """The e-mail itself."""
    due_at: Mapped[datetime]
    """Not to be sent before."""
    tries: Mapped[int] = mapped_column(default=0)
    """How often it could not be sent."""
    reason: Mapped[str | None]
    """Why not, the last time."""
    claimed_at: Mapped[datetime | None]
    """Since then somebody is sending it."""
    sent_at: Mapped[datetime | None] = mapped_column(index=True)


async def keep_customer(session: AsyncSession, event: CustomerDetailsChanged) -> None:
    """Keep a customer's details, unless those we have are as new or newer."""
    known = await session.get(Customer, event.customer_id, with_for_update=True)
    if known is None:
        session.add(Customer(**event.model_dump()))  # and if somebody else just has: the same again, as a whole
    elif known.revision < event.revision:
        await session.merge(Customer(**event.model_dump()))
