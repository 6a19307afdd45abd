"""What the catalog service stores."""

from __future__ import annotations

from decimal import Decimal
from typing import ClassVar
from uuid import UUID

from sqlalchemy import BigInteger
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from services.contracts.storage import Hundredths


class Base(DeclarativeBase):
    """The tables of the catalog service."""

    type_annotation_map: ClassVar = {Decimal: Hundredths}


class Item(Base):
    """An item, as of its latest revision. Its price is an amount and a currency."""

    __tablename__ = "items"

    item_id: Mapped[UUID] = mapped_column(primary_key=True)
    revision: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str]
    amount: Mapped[Decimal]
    currency: Mapped[str]
