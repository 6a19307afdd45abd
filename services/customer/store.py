"""What the customer service stores."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables of the customer service."""


class Customer(Base):
    """A customer, as of their latest revision."""

    __tablename__ = "customers"

    customer_id: Mapped[UUID] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str]
    email: Mapped[str]
