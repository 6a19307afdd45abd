"""The tables in a schema of PostgreSQL's: the setting is read when a process starts."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Callable

from tests.acceptance.running import ROOT

SHOP = """
import asyncio, json, sys

from broker import Context, Retry, Service
from broker.sql import Outgoing, report
from broker.testing import Harness
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from tests.parcels import ParcelSent, ParcelWeighed, weighed
from tests.sql.effects import settings

url = sys.argv[1]
service = Service("packing", database=url)


@service.on(ParcelWeighed)
async def pack(event: ParcelWeighed, context: Context) -> ParcelSent:
    return ParcelSent(parcel_id=event.parcel_id)


async def main() -> None:
    await report.initialise(url, timeout=30)
    async with Harness(service, settings=settings()) as shop:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session, session.begin():
            session.add(Outgoing(weighed(), source="scales"))
        await engine.dispose()
        await shop.settled()
    found = await report.look(url, timeout=30)
    print(json.dumps([found.inbox[0].entries, found.waiting]))


asyncio.run(main())
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("BROKER_")}
    environ |= {"BROKER_DATABASE_SCHEMA": "events", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *words]
    return subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


async def test_a_service_and_its_relay_work_with_tables_in_a_schema_of_their_own(
    postgres_url: Callable[[], str],
) -> None:
    ended = await asyncio.to_thread(run, "-c", SHOP, postgres_url())
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [1, 0]


async def test_the_script_makes_the_schema_and_sqlite_is_refused() -> None:
    made = await asyncio.to_thread(run, "-m", "broker", "database", "sql")
    assert made.stdout.startswith("CREATE SCHEMA IF NOT EXISTS events;")
    assert "events.broker_inbox" in made.stdout
    refused = await asyncio.to_thread(run, "-m", "broker", "database", "sql", "--dialect", "sqlite")
    assert refused.returncode != 0
    assert "SQLite has no schemas" in refused.stderr
