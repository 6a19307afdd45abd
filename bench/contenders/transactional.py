"""This package with a database: inbox, outbox, relay; and the same handler with a commit of its own, without them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from structlog.typing import FilteringBoundLogger

from bench.contenders.ours import NewOrderPlaced, open_broker, settings
from bench.job import Job, Seen
from broker import Context, Service
from broker.logs import logger
from broker.service import serve
from broker.sql import Outgoing
from broker.sql.database import Store, open_store
from broker.sql.inbox import Entry, SqlTransactions, prune
from broker.sql.relay import Relay
from broker.sql.tables import inbox, outbox, waiting


class Base(DeclarativeBase):
    """The service's own table."""


class Seat(Base):
    """What the handler stores."""

    __tablename__ = "seats"

    order_id: Mapped[UUID] = mapped_column(primary_key=True)


def database(job: Job) -> Any:
    return open_store(job.options["database"], timeout=30, create=True, handlers=settings(job).concurrency)


def log(job: Job) -> FilteringBoundLogger:
    return logger(settings(job))


async def fill_outbox(job: Job) -> None:
    async with database(job) as store, AsyncSession(store.engine) as session, session.begin():
        session.add_all(Outgoing(NewOrderPlaced(**order), source="bench") for order in job.orders)


async def relay(job: Job) -> None:
    """Publishes what is in the outbox."""
    async with database(job) as store, open_broker(job) as broker:
        it = Relay(store, broker, log(job))
        with job.measured():
            async with it.running():
                while await any_left(store):  # noqa: ASYNC110  (a database tells nobody)
                    await asyncio.sleep(0.02)


async def any_left(store: Store) -> bool:
    async with store.engine.connect() as connection:
        return (await connection.execute(select(outbox.c.id).where(waiting).limit(1))).first() is not None


async def commit_paced(job: Job) -> None:
    """Commits so many a second; a relay of the same process publishes."""
    async with database(job) as store, open_broker(job) as broker, Relay(store, broker, log(job)).running():
        sessions = async_sessionmaker(store.engine)

        async def commit(order: dict[str, Any]) -> None:
            async with store.in_turn(), sessions.begin() as session:
                await session.connection()  # a program has one by then
                session.add(Outgoing(NewOrderPlaced(**order | {"sent": time.monotonic_ns()}), source="bench"))

        await job.paced(commit)


async def consume(job: Job) -> None:
    """Handlers that store, in one transaction with their inbox entry."""
    seen, it = Seen(job), Service(job.queues[0], database=job.options["database"])

    @it.on(NewOrderPlaced)
    async def handle(order: NewOrderPlaced, context: Context) -> None:
        context.transaction.add(Seat(order_id=order.order_id))
        seen.take(order)

    await _consume(job, it, seen)


async def consume_own(job: Job) -> None:
    """The same handlers with a commit of their own, and no inbox."""
    seen, it = Seen(job), Service(job.queues[0])
    async with database(job) as store:
        sessions = async_sessionmaker(store.engine)

        @it.on(NewOrderPlaced)
        async def handle(order: NewOrderPlaced) -> None:
            async with store.in_turn(), sessions.begin() as session:
                session.add(Seat(order_id=order.order_id))
            seen.take(order)

        await _consume(job, it, seen)


async def _consume(job: Job, service: Service, seen: Seen) -> None:
    async with database(job) as store, store.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(serve(service, settings(job), log(job)))
        await seen.all.wait()


def entry(number: int) -> Entry:
    return Entry("bench", "bench", UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128), b"8 bytes.")


async def fill_inbox(store: Store, filled: int, count: int) -> None:
    """From so many entries on, to so many."""
    long_ago = datetime.now(UTC) - timedelta(days=365)
    for at in range(filled, count, 10_000):
        rows = [entry(n)._asdict() | {"handled_at": long_ago} for n in range(at, min(at + 10_000, count))]
        async with store.committing() as connection:
            await connection.execute(insert(inbox), rows)


async def look_up(job: Job) -> None:
    """Asks an inbox of so many entries whether it knows an event."""
    async with database(job) as store, open_broker(job) as broker:
        await fill_inbox(store, job.options["filled"], job.count)
        transactions = SqlTransactions(store, broker, Relay(store, broker, log(job)), log(job))
        took = []
        for n in range(2000):
            async with store.engine.connect() as connection:
                began = time.perf_counter()
                await transactions._is_known(connection, entry(n * 7919 % (2 * job.count)))
                took.append(time.perf_counter() - began)
        job.latencies(took[200:])


async def settle(store: Store) -> None:
    """What was just filled is on the disk and known to the planner, as in a database that grew for weeks.

    A server that has run for a while also has log files to use again: PostgreSQL fills each new one with zeros first,
    and every commit waits for that, pruning or not.
    """
    if not store.sqlite:
        async with store.committing() as connection:
            for statement in ("ANALYZE", "CHECKPOINT"):
                await connection.exec_driver_sql(statement)
    os.sync()


async def commit_while(job: Job, store: Store, going_on: Callable[[], bool]) -> None:
    """Commit as handlers do, one entry after the other; how long each waited, and the slowest of them."""
    took, number = [], job.count
    while going_on():
        began = time.perf_counter()
        number += 1
        async with store.committing() as connection:
            await connection.execute(insert(inbox), entry(number)._asdict() | {"handled_at": datetime.now(UTC)})
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.002)
    job.result |= {"ms": max(took) * 1e3}
    job.latencies(took)


async def not_pruning(job: Job) -> None:
    """What handlers wait when nothing is pruned, for some seconds."""
    async with database(job) as store:
        await settle(store)
        end = time.monotonic() + job.options["seconds"]
        await commit_while(job, store, lambda: time.monotonic() < end)


async def pruning(job: Job) -> None:
    """Removes the entries that `look_up` asked for while handlers commit."""
    async with database(job) as store:
        await settle(store)
        began = time.perf_counter()
        removing = asyncio.create_task(prune(store, "bench", datetime.now(UTC)))
        await commit_while(job, store, lambda: not removing.done())
        removed = await removing
        job.result |= {"events": removed, "rate": removed / (time.perf_counter() - began)}
