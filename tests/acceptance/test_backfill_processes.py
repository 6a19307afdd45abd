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
from broker.rabbitmq.transport import YOUNG
from broker.settings import Settings
from broker.tools.node import Node
from tests.acceptance.conftest import Start
from tests.acceptance.running import BROKER, Process, broker
from tests.waiting import until


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
pace = float(os.environ.get("PACE", "0"))


@service.on(CoinTossed)
async def note(coin: CoinTossed) -> None:
    while Path("closed").exists():
        await asyncio.sleep(0.01)
    if pace:
        await asyncio.sleep(pace)
    os.write(notes, b"%d\\n" % coin.number)
"""
"""Notes what it handles, each for ``PACE`` seconds. While there is a file ``closed``, it does not get on."""

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

    def handled(self, name: str) -> Counter[int]:
        """The same of the service of that name, the plain one or the stored one."""
        return self.stored() if name == "stored" else self.plain()

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


async def test_the_command_says_since_when_before_what_the_service_declares(coins: Coins) -> None:
    """One of these services declares no backfill, the other seven days."""
    await coins.toss(*range(20))
    watching = coins.start("watching", "--backfill", "7d")
    plain = coins.start("plain", "--backfill", "2100-01-01T00:00")
    for process in (watching, plain):
        await process.logged("backfill ended")
    await coins.toss(20)
    await until(lambda: coins.plain() and len(coins.latencies(0, time())) > 20)
    assert coins.plain() == Counter([20]), "the command's time, before which everything lies"
    assert len(coins.latencies(0, time())) == 21
    assert watching.lines("backfilled")[0]["events"] == 20
    assert plain.lines("backfilled")[0]["events"] == 0


# -- killed ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "kills", "pace"),
    [(600, 3, "0.01"), pytest.param(5000, 40, "0.05", marks=pytest.mark.full)],
    ids=["some", "many"],
)
async def test_whenever_it_is_killed_it_goes_on_where_it_was(coins: Coins, events: int, kills: int, pace: str) -> None:
    """One service with a database, one without, as slow, killed (-9) at the same moments, while events arrive."""
    chance, published = random.Random(7), events
    await coins.toss(*range(events))
    started: list[Process] = []

    def both() -> list[Process]:
        started.extend(made := [coins.start("plain", PACE=pace), coins.start("stored")])
        return made

    async def live() -> None:
        nonlocal published
        async with coins.publisher() as opened:
            while True:
                await opened.publish(CoinTossed(number=published))
                published += 1
                await asyncio.sleep(0.05)  # the rate of this load; nothing waits for it

    async def kill_once(phase: str) -> None:
        processes = both()
        if phase == "handling":
            goal = coins.plain().total() + chance.randrange(events // kills)
            await until(lambda: coins.plain().total() >= goal or processes[0].lines("started"), 60)
        else:
            chosen = processes[chance.randrange(2)]
            await until(lambda: chosen.lines(phase) or chosen.lines("started"), 120)
            await asyncio.sleep(chance.random() / 2)
        for process in processes:
            process.kill()

    living = asyncio.create_task(live())
    for kill in range(kills):  # what is started has read all of it, so that comes last
        at_last = kill >= kills - max(1, kills // 10)
        await kill_once("started" if at_last else ("connected", "handling", "backfilling")[kill % 3])
    both()
    await until(lambda: set(coins.plain()) >= set(range(events)), 120)
    living.cancel()
    await asyncio.wait([living])
    everything = set(range(published))
    await until(lambda: set(coins.plain()) >= everything and set(coins.stored()) >= everything, 120, every=0.1)

    async def ended() -> bool:
        return not await coins.left("plain.backfill", "stored.backfill")

    await until(ended, every=0.2)
    resumed = [line for process in started for line in process.lines("backfilling") if line.get("resumed")]
    assert len(resumed) >= kills // 2 - 1, "most kills interrupted a backfill"
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
    await until(lambda: coins.plain().total() >= 20, every=0.001)
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
    coins, everything = made(tmp_path, rabbit.url, start), range(6000)
    await coins.toss(*everything)
    processes = [coins.start(name, PACE="0.01") for name in ("plain", "plain", "stored")]

    def begun() -> bool:
        """Whether both services' queues are old enough: RabbitMQ may lose one that it has had for less."""
        lines = [line for process in processes for line in process.lines("backfilling")]
        services = {line["service"] for line in lines if time() > moment(line) + YOUNG}
        return services == {"plain", "stored"}

    await until(begun, 60)
    for handled in (1000, 4500):
        await until(lambda: coins.plain().total() >= handled, 60)  # noqa: B023  (called at once)
        await asyncio.to_thread(rabbit.kill)
        await asyncio.to_thread(rabbit.start)
    await until(lambda: len(coins.plain()) == len(coins.stored()) == len(everything), 180, every=0.1)
    for process in processes:
        await process.logged("started")
    await coins.toss(len(everything))
    await until(lambda: len(coins.plain()) == len(coins.stored()) == len(everything) + 1, 120, every=0.1)
    assert max(coins.stored().values()) == 1
    twice = sum(count - 1 for count in coins.plain().values())
    assert twice <= 2 * 1500, "no more than was not noted yet, each time another process went on"


# -- under load ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "events", "rate"),
    [("plain", 10_000, 500), ("stored", 1000, 50), pytest.param("plain", 100_000, 500, marks=pytest.mark.full)],
)
async def test_under_load_there_is_no_gap_and_no_double(coins: Coins, name: str, events: int, rate: int) -> None:
    """So many events a second arrive meanwhile; another service goes on getting them. With ``-s`` it says how fast."""
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
                due = events + int(rate * (loop.time() - began)) - published
                tossed = [CoinTossed(number=number) for number in range(published, published + due)]
                await asyncio.gather(*map(opened.publish, tossed))
                published += due
                await asyncio.sleep(0.01)  # then what is due by then: the rate of this load

    living = asyncio.create_task(live())
    await until(lambda: published > events + 2 * rate)
    began = time()
    process = coins.start(name)
    await process.logged("backfilling")
    await until(lambda: process.lines("backfill ended"), 300, every=0.2)
    stop.set()
    await living
    await until(lambda: coins.handled(name).total() >= published, 120, every=0.2)
    (handled,), since = process.lines("backfilled"), process.lines("backfilling")[0]
    assert coins.handled(name) == Counter(range(published)), "no gap, no double: each once"
    before, meanwhile = coins.latencies(began - 1.5, began), coins.latencies(*map(moment, (since, handled)))
    print(  # noqa: T201  (for people)
        f"\n{handled['events']:,} events backfilled in {handled['took']:.1f} s while {rate} a second arrived; "
        f"another subscriber got them after {told(before)} before, {told(meanwhile)} meanwhile"
    )


def moment(line: dict[str, Any]) -> float:
    """When a line was logged, in seconds since 1970."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def told(latencies: list[float]) -> str:
    return f"{median(latencies):.1f} ms (median), {quantiles(latencies, n=100)[98]:.1f} ms (p99)"
