"""A service's first start reads what it missed, as a process: killed, doubled, told to stop, cut off, under load."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles
from time import time
from typing import Any

import httpx
import pytest

from broker import Broker, Event
from broker.logs import logger
from broker.publisher import rabbitmq
from broker.settings import Settings
from broker.tools.node import Node
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Process, broker
from tests.waiting import until

RATE = 500
"""Events a second that arrive."""


class CoinTossed(Event, name="Coin Tossed", key="coin.tossed"):
    """As the services of this test declare it, too."""

    number: int


PLAIN = """
import asyncio
import os
from pathlib import Path

from broker import Event, Service


class CoinTossed(Event, name="Coin Tossed", key="coin.tossed"):
    number: int


service = Service("plain", backfill="7d")
notes = os.open("plain.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@service.on(CoinTossed)
async def note(coin: CoinTossed) -> None:
    while Path("closed").exists():
        await asyncio.sleep(0.01)
    os.write(notes, b"%d\\n" % coin.number)
"""
"""Notes what it handles. While there is a file ``closed``, it does not get on."""

STORED = """
from sqlalchemy import text

from broker import Context, Event, Service


class CoinTossed(Event, name="Coin Tossed", key="coin.tossed"):
    number: int


service = Service("stored", backfill="7d", database="sqlite+aiosqlite:///stored.db")


@service.on(CoinTossed)
async def store(coin: CoinTossed, context: Context) -> None:
    await context.transaction.execute(text("INSERT INTO coins (number) VALUES (:number)"), {"number": coin.number})
"""
"""Stores what it handles, exactly once."""

WATCHING = """
import os
import time

from broker import Context, Event, Service


class CoinTossed(Event, name="Coin Tossed", key="coin.tossed"):
    number: int


service = Service("watching")
notes = os.open("watching.notes", os.O_WRONLY | os.O_CREAT | os.O_APPEND)


@service.on(CoinTossed)
async def watch(coin: CoinTossed, context: Context) -> None:
    os.write(notes, b"%f %f\\n" % (time.time(), time.time() - context.time.timestamp()))
"""
"""Notes when it handled something, and how long after that was published."""


@dataclass(frozen=True)
class Coins:
    """The services' folder, and ways to run them."""

    folder: Path
    url: str
    start_process: Start

    def start(self, module: str = "plain", *options: str, **environ: str) -> Process:
        environ = {"BROKER_LOGGING_LEVEL": "info"} | environ
        return self.start_process(BROKER, "run", module, *options, url=self.url, folder=self.folder, environ=environ)

    @asynccontextmanager
    async def publisher(self) -> AsyncIterator[Broker]:
        settings = Settings.model_validate({"url": self.url, "logging_level": "error"})
        async with Broker(source="mint", settings=settings) as opened:
            yield opened

    async def toss(self, *numbers: int) -> None:
        async with self.publisher() as opened:
            await opened.publish_many(CoinTossed(number=number) for number in numbers)

    def close(self) -> None:
        (self.folder / "closed").touch()

    def open(self) -> None:
        (self.folder / "closed").unlink()

    def plain(self) -> Counter[int]:
        """How often the plain service handled each number."""
        file = self.folder / "plain.notes"
        return Counter(map(int, file.read_text().split())) if file.exists() else Counter()

    def latencies(self, begin: float, end: float) -> list[float]:
        """Milliseconds from publishing to the watching service, for what it handled between two times."""
        noted = [line.split() for line in (self.folder / "watching.notes").read_text().splitlines()]
        return [1000 * float(took) for at, took in noted if begin <= float(at) < end]

    def stored(self) -> Counter[int]:
        """How often the effect of each number is stored."""
        with closing(sqlite3.connect(self.folder / "stored.db")) as database:
            return Counter(number for (number,) in database.execute("SELECT number FROM coins"))

    async def left(self, *names: str) -> list[str]:
        """Which of these queues there are."""
        settings = Settings.model_validate({"url": self.url, "logging_level": "error"})
        transport = rabbitmq(settings, logger(settings), "looks")
        try:
            await transport.connect()
            return [name for name in names if await transport.count(name) is not None]
        finally:
            await transport.close()


def made(folder: Path, url: str, start: Start) -> Coins:
    for name, source in {"plain": PLAIN, "stored": STORED, "watching": WATCHING}.items():
        (folder / f"{name}.py").write_text(source)
    with closing(sqlite3.connect(folder / "stored.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE coins (number INTEGER NOT NULL)")
    return Coins(folder, url, start)


@pytest.fixture
def coins(tmp_path: Path, vhost_url: str, start: Start) -> Coins:
    return made(tmp_path, vhost_url, start)


# -- called wrongly --------------------------------------------------------------------------------------------------


async def test_what_does_not_say_since_when_is_refused(coins: Coins) -> None:
    wrong, off = await asyncio.gather(
        broker("run", "plain", "--backfill", "last week", url=coins.url, folder=coins.folder),
        broker("run", "plain", url=coins.url, folder=coins.folder, environ={"BROKER_LOG": "off"}),
    )
    assert wrong.code == 2
    assert wrong.err.startswith("broker: 'last week' does not say since when to backfill. Write how long ago, '90m'")
    assert off.code == 2
    assert "the event log, which is switched off (BROKER_LOG)" in off.err
    assert await coins.left("plain", "plain.backfill") == []


# -- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "kills"), [(600, 3), pytest.param(5000, 40, marks=pytest.mark.full)], ids=["some", "many"]
)
async def test_whenever_it_is_killed_it_goes_on_where_it_was(coins: Coins, events: int, kills: int) -> None:
    """One service with a database, one without, killed (-9) at the same moments, while events arrive."""
    chance, published = random.Random(7), events
    await coins.toss(*range(events))
    phases = ["connected", "handling", "started", "backfilling"]

    async def live() -> None:
        nonlocal published
        async with coins.publisher() as opened:
            while True:
                await opened.publish(CoinTossed(number=published))
                published += 1
                await asyncio.sleep(0.05)

    async def kill_once(phase: str) -> None:
        processes = [coins.start("plain"), coins.start("stored")]
        if phase == "handling":
            goal = coins.plain().total() + chance.randrange(events // kills)
            await until(lambda: coins.plain().total() >= goal or processes[0].lines("started"), 60)
        else:
            await processes[chance.randrange(2)].logged(phase)
            await asyncio.sleep(chance.random() / 2)
        for process in processes:
            process.kill()

    living = asyncio.create_task(live())
    for kill in range(kills):
        await kill_once(phases[kill % len(phases)])
    coins.start("plain")
    coins.start("stored")
    await until(lambda: set(coins.plain()) >= set(range(events)), 120)
    living.cancel()
    await asyncio.wait([living])
    everything = set(range(published))
    await until(lambda: set(coins.plain()) >= everything and set(coins.stored()) >= everything, 120, every=0.1)

    async def ended() -> bool:
        return not await coins.left("plain.backfill", "stored.backfill")

    await until(ended, 30, every=0.2)
    assert set(coins.plain()) <= {*everything, published}, "nothing but what was published"
    assert max(coins.stored().values()) == 1, "exactly once"
    assert await coins.left("plain", "plain.dead") == ["plain", "plain.dead"]


async def test_who_waits_goes_on_when_the_first_is_killed_and_stops_when_told(coins: Coins) -> None:
    async def asked(process: Process, path: str) -> tuple[int, list[str]]:
        port = (await process.logged("health"))["port"]
        async with httpx.AsyncClient() as client:
            answer = await client.get(f"http://127.0.0.1:{port}/{path}")
        return answer.status_code, answer.json()["reasons"]

    everything = range(2000)
    await coins.toss(*everything)
    coins.close()
    first = coins.start("plain", BROKER_HEALTH_PORT="0")
    await first.logged("backfilling")
    second = coins.start("plain", BROKER_HEALTH_PORT="0")
    await second.logged("waiting")
    assert await asked(first, "ready") == (503, ["backfilling: 0 of 2,000"])
    assert await asked(second, "ready") == (503, ["waiting for the backfill of another process"])
    assert (await asked(first, "live"))[0] == (await asked(second, "live"))[0] == 200
    assert not coins.plain()

    first.kill()
    coins.open()
    await until(lambda: coins.plain().total() >= 20, 30, every=0.001)
    second.signal(signal.SIGTERM)
    assert await second.ended() == 0
    assert second.lines()[-1]["event"] == "stopped"
    (unfinished,) = second.lines("backfill unfinished")
    assert 0 < unfinished["done"] < unfinished["of"] == len(everything)

    third = coins.start("plain", BROKER_HEALTH_PORT="0")
    await third.logged("started")
    assert third.lines("backfilling")[0]["done"] == unfinished["done"]
    assert coins.plain() == Counter(everything), "told to stop, it finished what was in hand"
    assert await asked(third, "ready") == (200, [])
    await third.logged("backfill ended")


@pytest.mark.full
async def test_rabbitmq_is_killed_and_restarted_meanwhile(
    tmp_path: Path, start: Start, node: Callable[[], Node]
) -> None:
    """With a second process that waits for the lock, and may get it."""
    rabbit = await asyncio.to_thread(node)
    coins, everything = made(tmp_path, rabbit.url, start), range(30_000)
    await coins.toss(*everything)
    processes = [coins.start(name) for name in ("plain", "plain", "stored")]
    for handled in (1000, 12_000):
        await until(lambda: coins.plain().total() >= handled, 60)  # noqa: B023  (called at once)
        await asyncio.to_thread(rabbit.kill)
        await asyncio.to_thread(rabbit.start)
    for process in processes:
        await process.logged("started")
    await coins.toss(30_000)
    await until(lambda: len(coins.plain()) == len(coins.stored()) == 30_001, 120, every=0.1)
    assert max(coins.stored().values()) == 1
    twice = sum(count - 1 for count in coins.plain().values())
    assert twice <= 2 * 1500, "no more than was not noted yet, each time another process went on"


# -- under load ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("events", [10_000, pytest.param(100_000, marks=pytest.mark.full)])
async def test_under_load_there_is_no_gap_and_no_double(coins: Coins, events: int) -> None:
    """500 events a second arrive meanwhile; another service goes on getting them. With ``-s`` it says how fast."""
    published, stop = events, asyncio.Event()
    await coins.toss(*range(events))
    watching = coins.start("watching")
    await watching.logged("started")

    async def live() -> None:
        nonlocal published
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with coins.publisher() as opened:
            while not stop.is_set():
                due = events + int(RATE * (loop.time() - began)) - published
                tossed = [CoinTossed(number=number) for number in range(published, published + due)]
                await asyncio.gather(*map(opened.publish, tossed))
                published += due
                await asyncio.sleep(0.01)

    living = asyncio.create_task(live())
    await until(lambda: published > events + 2 * RATE, 30)
    began = time()
    process = coins.start("plain")
    await process.logged("backfilling")
    await until(lambda: process.lines("backfill ended"), 300, every=0.2)
    stop.set()
    await living
    await until(lambda: coins.plain().total() >= published, 120, every=0.2)
    (handled,), since = process.lines("backfilled"), process.lines("backfilling")[0]
    assert coins.plain() == Counter(range(published)), "no gap, no double"
    before, meanwhile = coins.latencies(began - 1.5, began), coins.latencies(*map(moment, (since, handled)))
    print(  # noqa: T201  (for people)
        f"\n{handled['events']:,} events backfilled in {handled['took']:.1f} s while {RATE} a second arrived; "
        f"another subscriber got them after {told(before)} before, {told(meanwhile)} meanwhile"
    )


def moment(line: dict[str, Any]) -> float:
    """When a line was logged, in seconds since 1970."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def told(latencies: list[float]) -> str:
    return f"{median(latencies):.1f} ms (median), {quantiles(latencies, n=100)[98]:.1f} ms (p99)"
