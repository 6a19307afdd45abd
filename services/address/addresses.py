"""Addresses: adding, changing and listing them.

Each function returns the stored state as the event that tells of it, and has put that event into the outbox in the same
transaction. So what is stored and what is published cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from broker.sql import Outgoing
from services.address.store import Address
from services.contracts import AddressChanged, Country, Text
from services.contracts.storage import Database


class Refused(Exception):
    """The address exists already, or does not exist. Nothing was stored."""


class NewAddress(BaseModel):
    """An address to add. The id may be chosen by the caller."""

    model_config = ConfigDict(extra="forbid")

    customer_id: UUID
    street: Text
    city: Text
    postcode: Text
    country: Country
    address_id: UUID = Field(default_factory=uuid4)


async def add(database: Database, addresses: Iterable[NewAddress]) -> list[AddressChanged]:
    """Store new addresses, all or none.

    Raises:
        Refused: there is an address with one of the ids.
    """
    events = [AddressChanged(revision=1, **address.model_dump()) for address in addresses]
    async with database.write() as session:
        for event in events:
            if await session.get(Address, event.address_id) is not None:
                raise Refused(f"There is an address {event.address_id} already.")
            session.add_all([Address(**event.model_dump()), Outgoing(event, source="address")])
            await session.flush()  # so that the next one with the same id finds it
    return events


async def change(database: Database, address_id: UUID, **new: str) -> AddressChanged:
    """Store a new street, city, postcode or country of an address, as the next revision.

    Raises:
        Refused: there is no such address.
        pydantic.ValidationError: what is new about it cannot be.
    """
    async with database.write() as session:
        address = await session.get(Address, address_id, with_for_update=True)
        if address is None:
            raise Refused(f"There is no address {address_id}.")
        known = _event(address).model_dump()
        event = AddressChanged(**known | new | {"revision": address.revision + 1})
        await session.merge(Address(**event.model_dump()))
        session.add(Outgoing(event, source="address"))
    return event


async def everything(database: Database) -> list[AddressChanged]:
    """The current state of every address, by id."""
    async with database.read() as session:
        return [_event(address) for address in await session.scalars(select(Address).order_by(Address.address_id))]


async def announce(database: Database) -> int:
    """Tell of the current state of every address again, in new events; returns how many there are."""
    events = await everything(database)
    async with database.write() as session:
        session.add_all(Outgoing(event, source="address") for event in events)
    return len(events)


def _event(address: Address) -> AddressChanged:
    return AddressChanged(
        address_id=address.address_id,
        revision=address.revision,
        customer_id=address.customer_id,
        street=address.street,
        city=address.city,
        postcode=address.postcode,
        country=address.country,
    )
