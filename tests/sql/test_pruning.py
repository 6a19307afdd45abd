"""The inbox forgets, late enough and a few at a time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event as events
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncEngine

from broker import ContractError, Retry
from broker.settings import Settings
from broker.sql import inbox_age
from broker.sql.database import open_store
from broker.sql.inbox import PRUNE_AT_ONCE, prune
from broker.sql.tables import inbox
from broker.testing import Harness
from tests.parcels import weighed
from tests.sql.effects import count, packing, settings
from tests.waiting import until

NOW = datetime(2026, 1, 31, tzinfo=UTC)
DAY = 86400.0


async def remember(database: AsyncEngine, number: int, at: datetime, service: str = "packing") -> None:
    entry = {"service": service, "source": "web", "digest": b"12345678", "handled_at": at}
    async with database.begin() as connection:
        await connection.execute(insert(inbox), [entry | {"event_id": uuid4()} for _ in range(number)])


async def test_only_a_services_own_old_entries_go_a_few_in_each_transaction(
    database_url: str, database: AsyncEngine
) -> None:
    old = NOW - timedelta(days=1)
    await remember(database, 2 * PRUNE_AT_ONCE + 1, old)
    await remember(database, 3, NOW + timedelta(seconds=1))
    await remember(database, 4, old, "crm")
    async with open_store(database_url, timeout=5) as store:
        commits: list[None] = []
        events.listen(store.engine.sync_engine, "commit", lambda _: commits.append(None))
        assert await prune(store, "packing", NOW) == 2 * PRUNE_AT_ONCE + 1
        assert await prune(store, "packing", NOW) == 0
    assert len(commits) == 4
    assert await count(database, inbox) == 7


async def test_a_service_prunes_when_it_starts_and_tells(
    database_url: str, database: AsyncEngine, lines: list[dict[str, Any]]
) -> None:
    await remember(database, 3, datetime.now(UTC) - timedelta(days=400))
    await remember(database, 2, datetime.now(UTC))
    async with Harness(packing(database_url), settings=settings()):
        await until(lambda: any(line["event"] == "pruned" for line in lines))
    (line,) = [line for line in lines if line["event"] == "pruned"]
    assert line["entries"] == 3
    assert await count(database, inbox) == 2


async def test_entries_from_the_future_stay_when_a_clock_goes_backwards(
    database_url: str, database: AsyncEngine
) -> None:
    await remember(database, 3, datetime.now(UTC) + timedelta(days=400))
    event = weighed()
    async with Harness(packing(database_url), settings=settings()) as shop:
        for _ in range(2):
            await shop.publish(event)
            await shop.settled()
    assert await count(database, inbox) == 4


async def test_times_are_utc_whatever_the_database_keeps(database_url: str, database: AsyncEngine) -> None:
    await remember(database, 1, NOW)
    async with database.connect() as connection:
        (found,) = await connection.scalars(select(inbox.c.handled_at))
    assert found == NOW
    assert found.utcoffset() == timedelta(0)


def test_the_age_is_longer_than_an_event_can_take_to_come_back() -> None:
    ladder = Retry("1h", "3h").longest
    assert inbox_age(Settings(log_max_age="7D"), ladder) == 4 * 3600 + 7 * DAY + 30 * DAY + DAY
    assert inbox_age(Settings(log=False), ladder) == 4 * 3600 + 31 * DAY
    assert inbox_age(Settings(inbox_max_age="60D"), ladder) == 60 * DAY


def test_an_age_that_is_too_short_is_refused_with_the_least_there_must_be() -> None:
    with pytest.raises(ContractError, match=r"AGE is 7 days, but .* after 7\.2 days: the retry ladder"):
        inbox_age(Settings(inbox_max_age="7D", log_max_age="7D"), timedelta(hours=4))
    assert inbox_age(Settings(inbox_max_age="8D", log_max_age="7D"), timedelta(hours=4)) == 8 * DAY
