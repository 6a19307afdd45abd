"""Ordering levels: how many orders were placed, packed and dispatched, what they bring in, how long they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from statistics import median
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute

from services.contracts import Money
from services.contracts.storage import Database
from services.reporting.store import Order

BARS = 30
"""Into how many equal parts the time looked at is divided."""
LATEST = 1000
"""How many orders the times are taken from: the latest."""

Time = InstrumentedAttribute[datetime | None]


class Bar(BaseModel):
    """What happened in one part of the time looked at, beginning at ``start``."""

    start: datetime
    placed: int
    packed: int
    dispatched: int


class Took(BaseModel):
    """How long something takes, in seconds: half of the orders at most ``median``, 95 of 100 at most ``p95``."""

    median: float
    p95: float


class Times(BaseModel):
    """How long an order takes from one event to the next. None: no order has come that far."""

    placed_to_packed: Took | None
    packed_to_dispatched: Took | None


class Levels(BaseModel):
    """Everything management looks at.

    Attributes:
        revenue: the totals of the orders placed, by currency.
        levels: what happened lately, oldest first.
    """

    placed: int
    packed: int
    dispatched: int
    revenue: dict[str, Decimal]
    times: Times
    levels: list[Bar]
    as_of: datetime


class OrderLine(BaseModel):
    """One order, as far as its events have arrived."""

    order_id: UUID
    status: str
    total: Money | None
    placed_at: datetime | None
    packed_at: datetime | None
    dispatched_at: datetime | None


async def measure(database: Database, over: timedelta) -> Levels:
    """The ordering levels now.

    Args:
        over: how far back `Levels.levels` goes. Everything else counts all orders.
    """
    now = datetime.now(UTC)
    async with database.read() as session:
        counts = await session.execute(
            select(func.count(Order.placed_at), func.count(Order.packed_at), func.count(Order.dispatched_at))
        )
        placed, packed, dispatched = counts.one()
        return Levels(
            placed=placed,
            packed=packed,
            dispatched=dispatched,
            revenue=await _revenue(session),
            times=Times(
                placed_to_packed=await _took(session, Order.placed_at, Order.packed_at),
                packed_to_dispatched=await _took(session, Order.packed_at, Order.dispatched_at),
            ),
            levels=await _bars(session, now, over / BARS),
            as_of=now,
        )


async def orders(database: Database) -> list[OrderLine]:
    """Every order there is news of, by id."""
    async with database.read() as session:
        return [_order_line(order) for order in await session.scalars(select(Order).order_by(Order.order_id))]


async def _revenue(session: AsyncSession) -> dict[str, Decimal]:
    sums = await session.execute(
        select(Order.currency, func.sum(Order.amount))
        .where(Order.currency.is_not(None))
        .group_by(Order.currency)
        .order_by(Order.currency)
    )
    return {currency: amount for currency, amount in sums if currency is not None and amount is not None}


async def _took(session: AsyncSession, begin: Time, end: Time) -> Took | None:
    latest = await session.execute(
        select(begin, end).where(begin.is_not(None), end.is_not(None)).order_by(end.desc()).limit(LATEST)
    )
    took = sorted((after - before).total_seconds() for before, after in latest if before and after)
    return Took(median=median(took), p95=took[math.ceil(0.95 * len(took)) - 1]) if took else None


async def _bars(session: AsyncSession, now: datetime, width: timedelta) -> list[Bar]:
    """The bars stand at whole multiples of their width, so that they do not tremble; the last one is still growing."""
    first = now.timestamp() // width.total_seconds() - (BARS - 1)
    start = datetime.fromtimestamp(first * width.total_seconds(), UTC)
    placed, packed, dispatched = [
        await _counts(session, time, start, width) for time in (Order.placed_at, Order.packed_at, Order.dispatched_at)
    ]
    return [
        Bar(start=start + bar * width, placed=placed[bar], packed=packed[bar], dispatched=dispatched[bar])
        for bar in range(BARS)
    ]


async def _counts(session: AsyncSession, time: Time, start: datetime, width: timedelta) -> Sequence[int]:
    counts = [0] * BARS
    for at in await session.scalars(select(time).where(time >= start)):
        if at is not None:
            counts[min((at - start) // width, BARS - 1)] += 1  # another machine's clock may be ahead of ours
    return counts


def _order_line(order: Order) -> OrderLine:
    known = order.amount is not None and order.currency is not None
    return OrderLine(
        order_id=order.order_id,
        status="dispatched" if order.dispatched_at else "packed" if order.packed_at else "placed",
        total=Money(amount=order.amount, currency=order.currency) if known else None,
        placed_at=order.placed_at,
        packed_at=order.packed_at,
        dispatched_at=order.dispatched_at,
    )
