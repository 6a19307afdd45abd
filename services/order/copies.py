"""The copies of customers, items and addresses, as the events that told of them."""

from __future__ import annotations

from pydantic import BaseModel
from sqlalchemy import select

from services.contracts import AddressChanged, CatalogItemChanged, CustomerDetailsChanged, Money
from services.contracts.storage import Database
from services.order.store import Address, Customer, Item


class Copies(BaseModel):
    """Everything this service knows of what others own, by id."""

    customers: list[CustomerDetailsChanged]
    items: list[CatalogItemChanged]
    addresses: list[AddressChanged]


def customer(event: CustomerDetailsChanged) -> Customer:
    """The copy to keep of a customer."""
    return Customer(**event.model_dump())


def item(event: CatalogItemChanged) -> Item:
    """The copy to keep of an item."""
    return Item(
        item_id=event.item_id,
        revision=event.revision,
        name=event.name,
        amount=event.price.amount,
        currency=event.price.currency,
    )


def address(event: AddressChanged) -> Address:
    """The copy to keep of an address."""
    return Address(**event.model_dump())


async def everything(database: Database) -> Copies:
    """All copies."""
    async with database.read() as session:
        return Copies(
            customers=[
                CustomerDetailsChanged(customer_id=c.customer_id, revision=c.revision, name=c.name, email=c.email)
                for c in await session.scalars(select(Customer).order_by(Customer.customer_id))
            ],
            items=[
                CatalogItemChanged(
                    item_id=i.item_id,
                    revision=i.revision,
                    name=i.name,
                    price=Money(amount=i.amount, currency=i.currency),
                )
                for i in await session.scalars(select(Item).order_by(Item.item_id))
            ],
            addresses=[
                AddressChanged(
                    address_id=a.address_id,
                    revision=a.revision,
                    customer_id=a.customer_id,
                    street=a.street,
                    city=a.city,
                    postcode=a.postcode,
                    country=a.country,
                )
                for a in await session.scalars(select(Address).order_by(Address.address_id))
            ],
        )
