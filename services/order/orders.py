"""Orders: placing them against the local copies, and how far they have come."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import ColumnElement, select, true
from sqlalchemy.ext.asyncio import AsyncSession

from broker.sql import Outgoing
from services.contracts import Line, Money, NewOrderPlaced
from services.contracts.storage import Database
from services.order.store import Address, Customer, Fact, Item, Order, Status


class Refused(Exception):
    """The order cannot be placed. Nothing was stored."""


class NotKnownYet(Refused):
    """The customer, an item or the address is not known here. The event that tells of it may be on its way."""


class WantedLine(BaseModel):
    """So many of one item."""

    model_config = ConfigDict(extra="forbid")

    item_id: UUID
    quantity: int


class WantedOrder(BaseModel):
    """An order that somebody would like to place."""

    model_config = ConfigDict(extra="forbid")

    customer_id: UUID
    address_id: UUID
    lines: tuple[WantedLine, ...]


class Reached(BaseModel):
    """That an order has reached a status, and when."""

    status: Status
    at: datetime


class PlacedOrder(BaseModel):
    """An order and what is known about it.

    Attributes:
        status: the furthest it has come.
        history: what it has reached, in the order of the business.
        event_id: the id of its New Order Placed, and so of the story that began with it.
    """

    order_id: UUID
    customer_id: UUID
    address_id: UUID
    lines: tuple[Line, ...]
    total: Money
    status: Status
    history: list[Reached]
    event_id: UUID


async def place(database: Database, wanted: WantedOrder) -> PlacedOrder:
    """Check an order against the local copies, and store it together with its New Order Placed.

    Raises:
        Refused: it cannot be placed; the message says why.
        NotKnownYet: it refers to what is not known here, or not yet.
    """
    if not wanted.lines:
        raise Refused("An order has at least one line.")
    if any(line.quantity < 1 for line in wanted.lines):
        raise Refused("A quantity is at least 1.")
    now = datetime.now(UTC)
    async with database.write() as session:
        await _check_customer_and_address(session, wanted)
        lines = [await _line(session, line) for line in wanted.lines]
        event = NewOrderPlaced(
            order_id=uuid4(),
            customer_id=wanted.customer_id,
            address_id=wanted.address_id,
            lines=tuple(lines),
            total=_total(lines),
        )
        told = Outgoing(event, source="order")
        order = Order(order_id=event.order_id, event_id=told.event_id, placed=event.model_dump(mode="json"))
        session.add_all([order, told, Fact(order_id=event.order_id, status=Status.PLACED, at=now)])
    return _placed_order(order, [Reached(status=Status.PLACED, at=now)])


async def everything(database: Database) -> list[PlacedOrder]:
    """All orders, as they were placed one after the other."""
    return await _find(database, true())


async def find(database: Database, order_id: UUID) -> PlacedOrder | None:
    """One order, or None when it was not placed here."""
    found = await _find(database, Order.order_id == order_id)
    return found[0] if found else None


async def _find(database: Database, which: ColumnElement[bool]) -> list[PlacedOrder]:
    history: dict[UUID, list[Reached]] = defaultdict(list)
    async with database.read() as session:
        facts = await session.scalars(select(Fact).join(Order, Order.order_id == Fact.order_id).where(which))
        for fact in facts:
            history[fact.order_id].append(Reached(status=fact.status, at=fact.at))
        orders = await session.scalars(select(Order).where(which).order_by(Order.event_id))  # time-ordered
        return [_placed_order(order, history[order.order_id]) for order in orders]


def _placed_order(order: Order, history: list[Reached]) -> PlacedOrder:
    progress = list(Status)
    history = sorted(history, key=lambda reached: progress.index(reached.status))
    return PlacedOrder(**order.placed, status=history[-1].status, history=history, event_id=order.event_id)


async def _check_customer_and_address(session: AsyncSession, wanted: WantedOrder) -> None:
    if await session.get(Customer, wanted.customer_id) is None:
        raise NotKnownYet(f"There is no customer {wanted.customer_id}.")
    address = await session.get(Address, wanted.address_id)
    if address is None:
        raise NotKnownYet(f"There is no address {wanted.address_id}.")
    if address.customer_id != wanted.customer_id:
        raise Refused(f"The address {wanted.address_id} is not one of the customer {wanted.customer_id}.")


async def _line(session: AsyncSession, wanted: WantedLine) -> Line:
    item = await session.get(Item, wanted.item_id)
    if item is None:
        raise NotKnownYet(f"There is no item {wanted.item_id}.")
    price = Money(amount=item.amount, currency=item.currency)
    try:
        return Line(item_id=item.item_id, name=item.name, quantity=wanted.quantity, price=price)
    except ValidationError:
        raise Refused(f"Nobody can order {wanted.quantity} of one item.") from None


def _total(lines: list[Line]) -> Money:
    currencies = sorted({line.price.currency for line in lines})
    if len(currencies) > 1:
        raise Refused(f"The items are priced in {' and '.join(currencies)}; an order has one currency.")
    try:
        return Money(
            amount=sum((line.price.amount * line.quantity for line in lines), Decimal(0)), currency=currencies[0]
        )
    except ValidationError:
        raise Refused("The total is more than an order can cost.") from None
