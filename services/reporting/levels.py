"""Ordering levels: how many orders were placed, packed and dispatched, what they bring in, how long they take."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from statistics import median
from uuid import UUID

from pydantic import BaseModel
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from services.contracts import Money
from services.contracts.storage import Database
from services.reporting.store import Fact, Status, Total

BARS = 30
"""Into how many equal parts the time looked at is divided."""
LATEST = 1000
"""How many orders the times are taken from: the latest."""


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
        counts = await session.execute(select(Fact.status, func.count()).group_by(Fact.status))
        reached = dict(counts.all())
        return Levels(
            placed=reached.get(Status.PLACED, 0),
            packed=reached.get(Status.PACKED, 0),
            dispatched=reached.get(Status.DISPATCHED, 0),
            revenue=await _revenue(session),
            times=Times(
                placed_to_packed=await _took(session, Status.PLACED, Status.PACKED),
                packed_to_dispatched=await _took(session, Status.PACKED, Status.DISPATCHED),
            ),
            levels=await _bars(session, now, over / BARS),
            as_of=now,
        )


async def orders(database: Database) -> list[OrderLine]:
    """Every order there is news of, by id."""
    reached: dict[UUID, dict[Status, datetime]] = defaultdict(dict)
    async with database.read() as session:
        for fact in await session.scalars(select(Fact).order_by(Fact.order_id)):
            reached[fact.order_id][fact.status] = fact.at
        totals = {total.order_id: total for total in await session.scalars(select(Total))}
    return [_order_line(order_id, times, totals.get(order_id)) for order_id, times in reached.items()]


async def _revenue(session: AsyncSession) -> dict[str, Decimal]:
    sums = select(Total.currency, func.sum(Total.amount)).group_by(Total.currency).order_by(Total.currency)
    return dict((await session.execute(sums)).all())


async def _took(session: AsyncSession, begin: Status, end: Status) -> Took | None:
    before, after = aliased(Fact), aliased(Fact)
    latest = await session.execute(
        select(before.at, after.at)
        .join(after, after.order_id == before.order_id)
        .where(before.status == begin, after.status == end)
        .order_by(after.at.desc())
        .limit(LATEST)
    )
    took = sorted((ended - began).total_seconds() for began, ended in latest)
    return Took(median=median(took), p95=took[math.ceil(0.95 * len(took)) - 1]) if took else None


async def _bars(session: AsyncSession, now: datetime, width: timedelta) -> list[Bar]:
    """The bars stand at whole multiples of their width, so that they do not tremble; the last one is still growing."""
    first = now.timestamp() // width.total_seconds() - (BARS - 1)
    start = datetime.fromtimestamp(first * width.total_seconds(), UTC)
    counts: Counter[tuple[Status, int]] = Counter()
    for status, at in await session.execute(select(Fact.status, Fact.at).where(Fact.at >= start)):
        counts[status, min((at - start) // width, BARS - 1)] += 1  # another machine's clock may be ahead of ours
    return [
        Bar(
            start=start + bar * width,
            placed=counts[Status.PLACED, bar],
            packed=counts[Status.PACKED, bar],
            dispatched=counts[Status.DISPATCHED, bar],
        )
        for bar in range(BARS)
    ]


def _order_line(order_id: UUID, reached: dict[Status, datetime], total: Total | None) -> OrderLine:
    return OrderLine(
        order_id=order_id,
        status=max(reached, key=list(Status).index),
        total=None if total is None else Money(amount=total.amount, currency=total.currency),
        placed_at=reached.get(Status.PLACED),
        packed_at=reached.get(Status.PACKED),
        dispatched_at=reached.get(Status.DISPATCHED),
    )
