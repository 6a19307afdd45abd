"""What the CRM stores: customers, their orders, how far each has come, and which follow-up was sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, ClassVar
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Enum, delete
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts import CustomerDetailsChanged, NewOrderPlaced
from services.contracts.storage import Database, UtcDateTime

CLAIM = timedelta(seconds=30)
"""How long sending one e-mail may take. After that, whoever claimed it has died."""


class FollowUpInHand(Exception):
    """The e-mail is being sent by another delivery of the same order. It comes back by the retry ladder."""


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
    """An order's follow-up e-mail, being sent by SMTP or sent."""

    __tablename__ = "follow_ups"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    claimed_until: Mapped[datetime | None]
    """Whoever is sending it has until then. None: it is sent."""


async def keep_customer(session: AsyncSession, event: CustomerDetailsChanged) -> None:
    """Keep a customer's details, unless those we have are as new or newer."""
    known = await session.get(Customer, event.customer_id, with_for_update=True)
    if known is None or known.revision < event.revision:
        await session.merge(Customer(**event.model_dump()))


async def keep_order(session: AsyncSession, event: NewOrderPlaced) -> None:
    """Keep an order."""
    if await session.get(Order, event.order_id) is None:
        placed = event.model_dump(mode="json")
        session.add(Order(order_id=event.order_id, customer_id=event.customer_id, placed=placed))


async def record(session: AsyncSession, order_id: UUID, status: Status, at: datetime) -> None:
    """Record that an order has reached a status. Told twice, the earlier time stands."""
    known = await session.get(Fact, (order_id, status), with_for_update=True)
    if known is None:
        session.add(Fact(order_id=order_id, status=status, at=at))
    else:
        known.at = min(known.at, at)


async def claim(database: Database, order_id: UUID) -> bool:
    """Claim the sending of an order's follow-up; False when it is sent already.

    Raises:
        FollowUpInHand: it is claimed.
    """
    now = datetime.now(UTC)
    async with database.write.begin() as session:
        known = await session.get(FollowUp, order_id, with_for_update=True)
        if known is None:
            session.add(FollowUp(order_id=order_id, claimed_until=now + CLAIM))
            return True
        if known.claimed_until is None:
            return False
        if known.claimed_until > now:
            raise FollowUpInHand(f"The follow-up of order {order_id} is being sent.")
        known.claimed_until = now + CLAIM
        return True


async def release(database: Database, order_id: UUID) -> None:
    """Give a claim back: the e-mail was not sent."""
    async with database.write.begin() as session:
        await session.execute(delete(FollowUp).where(FollowUp.order_id == order_id))


async def sent(database: Database, order_id: UUID) -> None:
    """Note that the e-mail is sent, for good."""
    async with database.write.begin() as session:
        await session.merge(FollowUp(order_id=order_id, claimed_until=None))
