"""Customer records: a customer with their orders, how far each has come, and what became of its follow-up e-mail."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import ColumnElement, select, true
from sqlalchemy.orm import defer

from services.contracts import Line, Money
from services.contracts.storage import Database
from services.crm.sender import State, state_of
from services.crm.store import Customer, Fact, FollowUp, Order, Status


class Reached(BaseModel):
    """That an order has reached a status, and when."""

    status: Status
    at: datetime


class FollowUpRecord(BaseModel):
    """How far an order's follow-up e-mail has come, and why no further."""

    state: State
    reason: str | None


class OrderRecord(BaseModel):
    """An order, its current status, and how it came there, in the order of the business."""

    order_id: UUID
    customer_id: UUID
    address_id: UUID
    lines: tuple[Line, ...]
    total: Money
    status: Status
    history: list[Reached]
    follow_up: FollowUpRecord


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
        placed = (
            select(Order, FollowUp).join(FollowUp, FollowUp.order_id == Order.order_id).where(Order.order_id.in_(known))
        )
        for order, follow_up in await session.execute(placed.options(defer(FollowUp.message))):
            orders[order.customer_id].append(_order_record(order, history[order.order_id], follow_up))
        return [
            CustomerRecord(
                customer_id=customer.customer_id,
                revision=customer.revision,
                name=customer.name,
                email=customer.email,
                orders=sorted(orders[customer.customer_id], key=lambda order: order.history[0].at),
            )
            for customer in await session.scalars(select(Customer).where(which).order_by(Customer.customer_id))
        ]


def _order_record(order: Order, history: list[Reached], follow_up: FollowUp) -> OrderRecord:
    progress = list(Status)
    history = sorted(history, key=lambda reached: progress.index(reached.status))
    come = FollowUpRecord(state=state_of(follow_up), reason=follow_up.reason)
    return OrderRecord(**order.placed, status=history[-1].status, history=history, follow_up=come)
