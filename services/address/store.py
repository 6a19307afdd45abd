"""What the address service stores."""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The tables of the address service."""


class Address(Base):
    """An address of a customer, as of its latest revision."""

    __tablename__ = "addresses"

    address_id: Mapped[UUID] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    customer_id: Mapped[UUID]
    street: Mapped[str]
    city: Mapped[str]
    postcode: Mapped[str]
    country: Mapped[str]
