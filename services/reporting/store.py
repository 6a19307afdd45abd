"""What reporting stores: what each order costs, and when it was placed, packed and dispatched."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import ClassVar
from uuid import UUID

from sqlalchemy import Enum, Index
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.storage import Hundredths, UtcDateTime


class Status(StrEnum):
    """How far an order has come, in the order of the business."""

    PLACED = "placed"
    PACKED = "packed"
    DISPATCHED = "dispatched"


class Base(DeclarativeBase):
    """The tables of the reporting service."""

    type_annotation_map: ClassVar = {
        datetime: UtcDateTime,
        Decimal: Hundredths,
        Status: Enum(Status, native_enum=False, length=20, values_callable=lambda statuses: [*statuses]),
    }


class Fact(Base):
    """That an order has reached a status, and when."""

    __tablename__ = "facts"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    status: Mapped[Status] = mapped_column(primary_key=True)
    at: Mapped[datetime]

    __table_args__ = (Index("facts_at", "status", "at"),)


class Total(Base):
    """What an order costs."""

    __tablename__ = "totals"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)
    amount: Mapped[Decimal]
    currency: Mapped[str]
