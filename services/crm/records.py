"""Customer records: a customer with their orders, and how far each has come."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import ColumnElement, select, true

from services.contracts import Line, Money
from services.contracts.storage import Database
from services.crm.store import Customer, Fact, Order, Status


class Reached(BaseModel):
    """That an order has reached a status, and when."""

    status: Status
    at: datetime


class OrderRecord(BaseModel):
    """An order, its current status, and how it came there, in the order of the business."""

    order_id: UUID
    customer_id: UUID
    address_id: UUID
    lines: tuple[Line, ...]
    total: Money
    status: Status
    history: list[Reached]


class CustomerRecord(BaseModel):
    """A customer and their orders."""

    customer_id: UUID
    revision: int
    name: str
    email: str
    orders: list[OrderRecord]


async def everybody(database: Database) -> list[CustomerRecord]:
    """The records of all customers, by id."""
    return await _find(database, true())


async def find(database: Database, customer_id: UUID) -> CustomerRecord | None:
    """The record of one customer, or None when they are not known here."""
    found = await _find(database, Customer.customer_id == customer_id)
    return found[0] if found else None


async def _find(database: Database, which: ColumnElement[bool]) -> list[CustomerRecord]:
    history: dict[UUID, list[Reached]] = defaultdict(list)
    orders: dict[UUID, list[OrderRecord]] = defaultdict(list)
    async with database.read() as session:
        known = select(Order.order_id).join(Customer, Customer.customer_id == Order.customer_id).where(which)
        for fact in await session.scalars(select(Fact).where(Fact.order_id.in_(known))):
            history[fact.order_id].append(Reached(status=fact.status, at=fact.at))
        for order in await session.scalars(select(Order).where(Order.order_id.in_(known)).order_by(Order.order_id)):
            orders[order.customer_id].append(_order_record(order, history[order.order_id]))
        return [
            CustomerRecord(
                customer_id=customer.customer_id,
                revision=customer.revision,
                name=customer.name,
                email=customer.email,
                orders=orders[customer.customer_id],
            )
            for customer in await session.scalars(select(Customer).where(which).order_by(Customer.customer_id))
        ]


def _order_record(order: Order, history: list[Reached]) -> OrderRecord:
    progress = list(Status)
    history = sorted(history, key=lambda reached: progress.index(reached.status))
    return OrderRecord(**order.placed, status=history[-1].status, history=history)
