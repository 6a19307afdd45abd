"""Effects that happen exactly once: inbox and outbox in a service's own database, SQLite or PostgreSQL.

``Service("packing", database=...)`` is all that a service needs. A program that is no service, a web application say,
writes its events into the outbox, in the transaction of whatever else it does::

    session.add(Outgoing(OrderPlaced(...), source="web"))

and a relay publishes them: that of a service with the same database, or ``broker relay``.

- `tables`: the tables, their versions, `Outgoing`.
- `database`: opening a database, and what its failures mean.
- `inbox`: one delivery, one transaction.
- `outbox`, `relay`: from the outbox to RabbitMQ.
- `report`: what people look at.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

from structlog.typing import FilteringBoundLogger

from broker.publisher import Broker
from broker.settings import Settings, seconds_of
from broker.sql.database import check_inbox_age, open_store
from broker.sql.inbox import SqlTransactions, keep_pruning
from broker.sql.relay import Relay
from broker.sql.tables import Outgoing, metadata
from broker.transactions import Database

__all__ = ["Outgoing", "inbox_age", "metadata", "open_transactions"]

DAY = 86400.0
FOR_DEAD_LETTERS = 30 * DAY
"""Seconds for which a dead letter may be looked at before it is redriven."""


@asynccontextmanager
async def open_transactions(
    database: Database, service: str, broker: Broker, log: FilteringBoundLogger, *, longest: timedelta
) -> AsyncIterator[SqlTransactions]:
    """A service's database at work for as long as the context lasts: its relay runs, its inbox is pruned.

    Args:
        database: a URL, an engine, or a function that returns either.
        service: its name.
        broker: publishes for it.
        log: carries its name.
        longest: the longest of its retry ladders.

    Raises:
        DatabaseUnusable: from opening it.
        ContractError: its inbox would forget too soon.
    """
    settings = broker.settings
    age = inbox_age(settings, longest)
    opened = open_store(database, timeout=settings.connect_timeout, handlers=settings.concurrency)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened)
        relay = Relay(store, broker, log)
        if settings.relay:
            await stack.enter_async_context(relay.running())
        pruning = asyncio.create_task(keep_pruning(store, service, age, log))
        stack.push_async_callback(_end, pruning)
        yield SqlTransactions(store, broker, relay, log)


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel a task, and return when it holds no connection any more."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def inbox_age(settings: Settings, longest: timedelta) -> float:
    """Seconds for which an inbox remembers what was handled: longer than an event can take to come back.

    It can come back by the retry ladder, from the dead letters, and from the event log.

    Raises:
        ContractError: ``BROKER_INBOX_MAX_AGE`` is less than what ladder and log take.
    """
    ladder, log = longest.total_seconds(), seconds_of(settings.log_max_age) if settings.log else 0.0
    if settings.inbox_max_age is None:
        return ladder + log + FOR_DEAD_LETTERS + DAY
    age = seconds_of(settings.inbox_max_age)
    check_inbox_age(age, ladder + log, "the retry ladder and BROKER_LOG_MAX_AGE together")
    return age
