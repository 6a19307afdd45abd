"""Events of the shop, made for tests: each is valid, and says only what its test is about."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from services.contracts import AddressChanged, CatalogItemChanged, CustomerDetailsChanged, Line, Money, NewOrderPlaced


def customer(customer_id: UUID | None = None, revision: int = 1, **details: Any) -> CustomerDetailsChanged:
    details = {"name": "Ada Lovelace", "email": "ada@example.com"} | details
    return CustomerDetailsChanged(customer_id=customer_id or uuid4(), revision=revision, **details)


def item(item_id: UUID | None = None, revision: int = 1, price: str = "19.90", **details: Any) -> CatalogItemChanged:
    details = {"name": "Lamp", "currency": "EUR"} | details
    money = Money(amount=Decimal(price), currency=details.pop("currency"))
    return CatalogItemChanged(item_id=item_id or uuid4(), revision=revision, price=money, **details)


def address(customer_id: UUID, address_id: UUID | None = None, revision: int = 1, **details: Any) -> AddressChanged:
    details = {"street": "Hauptstraße 1", "city": "Berlin", "postcode": "10115", "country": "DE"} | details
    return AddressChanged(address_id=address_id or uuid4(), customer_id=customer_id, revision=revision, **details)


def placed(
    customer_id: UUID | None = None, total: str = "39.80", currency: str = "EUR", **fields: Any
) -> NewOrderPlaced:
    price = Money(amount=Decimal("19.90"), currency=currency)
    line = Line(item_id=uuid4(), name=fields.pop("item_name", "Lamp"), quantity=2, price=price)
    return NewOrderPlaced(
        order_id=fields.pop("order_id", None) or uuid4(),
        customer_id=customer_id or uuid4(),
        address_id=uuid4(),
        lines=(line,),
        total=Money(amount=Decimal(total), currency=currency),
    )
