"""``broker replay --force``, as a person types it, to a service with a database."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from broker import Broker, Event
from broker.tools.server import Server
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Ended, broker
from tests.waiting import until

CELLAR = """
from sqlalchemy import text

from broker import Context, Event, Service


class BarrelFilled(Event, name="Barrel Filled", key="barrel.filled", subject="number"):
    number: int


class BarrelSealed(Event, name="Barrel Sealed", key="barrel.sealed", subject="number"):
    number: int


service = Service("cellar", database="sqlite+aiosqlite:///cellar.db")


@service.on(BarrelFilled)
async def seal(barrel: BarrelFilled, context: Context) -> BarrelSealed:
    await context.transaction.execute(text("INSERT INTO seals (number) VALUES (:number)"), {"number": barrel.number})
    return BarrelSealed(number=barrel.number)
"""
"""Stores a row for each barrel, and tells."""


class BarrelFilled(Event, name="Barrel Filled", key="barrel.filled", subject="number"):
    """As the service declares it, too."""

    number: int


@dataclass(frozen=True)
class Cellar:
    """The service's folder and database, and a RabbitMQ."""

    folder: Path
    url: str
    environ: dict[str, str]

    async def run(self, *words: str) -> Ended:
        ended = await broker(*words, url=self.url, folder=self.folder, environ=self.environ)
        assert ended.code == 0, ended.err
        return ended

    async def fill(self, *numbers: int) -> None:
        async with Broker(self.url, source="press") as press:
            await press.publish_many([BarrelFilled(number=number) for number in numbers])

    def rows(self, statement: str) -> list[int]:
        with closing(sqlite3.connect(self.folder / "cellar.db")) as database:
            return [row for (row,) in database.execute(statement)]

    def seals(self) -> list[int]:
        """Each effect that is stored."""
        return sorted(self.rows("SELECT number FROM seals"))

    def known(self) -> int:
        """How many events the inbox knows."""
        return self.rows("SELECT count(*) FROM broker_inbox")[0]

    async def told(self) -> list[str]:
        """The ids of what it published, of each time."""
        shown = await self.run("log", "--json", "--event", "Barrel Sealed")
        return [json.loads(line)["id"] for line in shown.out.splitlines() if line.startswith("{")]


@pytest.fixture
def cellar(tmp_path: Path, vhost_url: str, server: Server) -> Cellar:
    (tmp_path / "cellar.py").write_text(CELLAR)
    with closing(sqlite3.connect(tmp_path / "cellar.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE seals (number INTEGER NOT NULL)")
    environ = {"BROKER_MODULES": "cellar", "BROKER_MANAGEMENT_URL": server.management_url}
    return Cellar(tmp_path, vhost_url, environ)


async def test_the_inbox_drops_a_replay_and_forced_it_is_handled_again(cellar: Cellar, start: Start) -> None:
    process = start(BROKER, "run", "cellar", url=cellar.url, folder=cellar.folder, environ=cellar.environ)
    await process.logged("started")
    await cellar.fill(1, 2, 3)
    await process.logged("handled", 3)

    async def all_told(count: int) -> bool:
        return len(await cellar.told()) == count

    await until(lambda: all_told(3), 60)

    replayed = await cellar.run("replay", "cellar", "--since", "1h")
    assert "3 replayed to cellar." in replayed.out
    assert "no inbox" not in replayed.err
    await process.logged("duplicate", 3)
    assert len(process.lines("handled")) == 3
    assert (cellar.seals(), cellar.known()) == ([1, 2, 3], 3), "without --force it changes nothing"

    forced = await cellar.run("replay", "cellar", "--since", "1h", "--subject", "2", "--force", "--json")
    assert forced.json["replayed"] == 1
    await process.logged("handled", 4)
    assert (cellar.seals(), cellar.known()) == ([1, 2, 2, 3], 3), "its effect happens again, its entry is replaced"
    await until(lambda: all_told(4), 60)
    assert len(set(await cellar.told())) == 3, "what it publishes keeps its id"

    await cellar.run("replay", "cellar", "--since", "1h", "--subject", "2")
    await process.logged("duplicate", 4)
    assert cellar.seals() == [1, 2, 2, 3], "the inbox knows it as before"
