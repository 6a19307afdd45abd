"""Items: adding, changing and listing them.

Each function returns the stored state as the event that tells of it, and has put that event into the outbox in the same
transaction. So what is stored and what is published cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from broker.sql import Outgoing
from services.catalog.store import Item
from services.contracts import CatalogItemChanged, Money, Text
from services.contracts.storage import Database


class Refused(Exception):
    """The item exists already, or does not exist. Nothing was stored."""


class NewItem(BaseModel):
    """An item to add. The id may be chosen by the caller."""

    model_config = ConfigDict(extra="forbid")

    name: Text
    price: Money
    item_id: UUID = Field(default_factory=uuid4)


async def add(database: Database, items: Iterable[NewItem]) -> list[CatalogItemChanged]:
    """Store new items, all or none.

    Raises:
        Refused: there is an item with one of the ids.
    """
    events = [CatalogItemChanged(revision=1, item_id=item.item_id, name=item.name, price=item.price) for item in items]
    async with database.write() as session:
        for event in events:
            if await session.get(Item, event.item_id) is not None:
                raise Refused(f"There is an item {event.item_id} already.")
            session.add_all([_row(event), Outgoing(event, source="catalog")])
            await session.flush()  # so that the next one with the same id finds it
    return events


async def change(
    database: Database,
    item_id: UUID,
    *,
    name: str | None = None,
    amount: Decimal | str | None = None,
    currency: str | None = None,
) -> CatalogItemChanged:
    """Store another name or price of an item, as the next revision. None leaves it as it is.

    Raises:
        Refused: there is no such item.
        pydantic.ValidationError: the name or price cannot be.
    """
    async with database.write() as session:
        item = await session.get(Item, item_id, with_for_update=True)
        if item is None:
            raise Refused(f"There is no item {item_id}.")
        known = _event(item)
        price = {"amount": amount, "currency": currency}
        given = {field: value for field, value in price.items() if value is not None}
        event = CatalogItemChanged(
            item_id=item_id,
            revision=known.revision + 1,
            name=known.name if name is None else name,
            price=Money.model_validate(known.price.model_dump() | given),
        )
        await session.merge(_row(event))
        session.add(Outgoing(event, source="catalog"))
    return event


async def everything(database: Database) -> list[CatalogItemChanged]:
    """The current state of every item, by id."""
    async with database.read() as session:
        return [_event(item) for item in await session.scalars(select(Item).order_by(Item.item_id))]


async def announce(database: Database) -> int:
    """Tell of the current state of every item again, in new events; returns how many there are."""
    events = await everything(database)
    async with database.write() as session:
        session.add_all(Outgoing(event, source="catalog") for event in events)
    return len(events)


def _row(event: CatalogItemChanged) -> Item:
    return Item(
        item_id=event.item_id,
        revision=event.revision,
        name=event.name,
        amount=event.price.amount,
        currency=event.price.currency,
    )


def _event(item: Item) -> CatalogItemChanged:
    return CatalogItemChanged(
        item_id=item.item_id,
        revision=item.revision,
        name=item.name,
        price=Money(amount=item.amount, currency=item.currency),
    )
