"""Customers: adding, changing and listing them.

Each function returns the stored state as the event that tells of it, and has put that event into the outbox in the same
transaction. So what is stored and what is published cannot differ.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from broker.sql import Outgoing
from services.contracts import CustomerDetailsChanged, Email, Text
from services.contracts.storage import Database
from services.customer.store import Customer


class Refused(Exception):
    """The customer exists already, or does not exist. Nothing was stored."""


class NewCustomer(BaseModel):
    """A customer to add. The id may be chosen by the caller."""

    model_config = ConfigDict(extra="forbid")

    name: Text
    email: Email
    customer_id: UUID = Field(default_factory=uuid4)


async def add(database: Database, customers: Iterable[NewCustomer]) -> list[CustomerDetailsChanged]:
    """Store new customers, all or none.

    Raises:
        Refused: there is a customer with one of the ids.
    """
    events = [CustomerDetailsChanged(revision=1, **customer.model_dump()) for customer in customers]
    async with database.write() as session:
        for event in events:
            if await session.get(Customer, event.customer_id) is not None:
                raise Refused(f"There is a customer {event.customer_id} already.")
            session.add_all([Customer(**event.model_dump()), Outgoing(event, source="customer")])
            await session.flush()  # so that the next one with the same id finds it
    return events


async def change(
    database: Database, customer_id: UUID, *, name: str | None = None, email: str | None = None
) -> CustomerDetailsChanged:
    """Store other details of a customer, as the next revision. None leaves a detail as it is.

    Raises:
        Refused: there is no such customer.
        pydantic.ValidationError: the name or e-mail address cannot be.
    """
    async with database.write() as session:
        customer = await session.get(Customer, customer_id, with_for_update=True)
        if customer is None:
            raise Refused(f"There is no customer {customer_id}.")
        event = CustomerDetailsChanged(
            customer_id=customer_id,
            revision=customer.revision + 1,
            name=customer.name if name is None else name,
            email=customer.email if email is None else email,
        )
        await session.merge(Customer(**event.model_dump()))
        session.add(Outgoing(event, source="customer"))
    return event


async def everything(database: Database) -> list[CustomerDetailsChanged]:
    """The current state of every customer, by id."""
    async with database.read() as session:
        return [_event(customer) for customer in await session.scalars(select(Customer).order_by(Customer.customer_id))]


async def announce(database: Database) -> int:
    """Tell of the current state of every customer again, in new events; returns how many there are."""
    events = await everything(database)
    async with database.write() as session:
        session.add_all(Outgoing(event, source="customer") for event in events)
    return len(events)


def _event(customer: Customer) -> CustomerDetailsChanged:
    return CustomerDetailsChanged(
        customer_id=customer.customer_id, revision=customer.revision, name=customer.name, email=customer.email
    )
