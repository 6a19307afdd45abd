"""Effects happen exactly once, ``make exactly-once``: the shop takes orders while everybody is killed.

The eight services, Packing and CRM as two processes each, on a RabbitMQ that is the run's own; first each on a SQLite
file of its own, then each on a database of its own in a PostgreSQL that is the run's, too. While the orders are placed,
at random moments processes are killed (-9): services, the command that places the orders, RabbitMQ, PostgreSQL. Every
tenth event is delivered a second time by hand. Then everything is counted.

``SEED``, ``ORDERS``, ``KILLS`` and ``DATABASES`` in the environment say which kills, how many orders and kills, and on
what: ``sqlite,postgresql``. Prints what happens, and a report, which a run of full length also writes to
docs/exactly-once.md. Exits 0 when nothing was lost and nothing happened twice.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from urllib.parse import urlsplit
from uuid import UUID

from broker import Settings
from broker.logs import configure
from broker.tools.management import Management
from broker.tools.server import node_to_break
from services.crm.sender import State
from services.demo.processes import LISTENERS, Guard, terminate_as_interrupt
from services.demo.processes import SERVICES as NAMES
from tests.acceptance.running import ROOT
from tests.exactly_once.outcome import Outcome, Told, report
from tests.exactly_once.plan import POSTGRESQL, RABBITMQ, Step, delays, plan
from tests.exactly_once.postgres import Postgres
from tests.exactly_once.shop import CONNECTIONS, DATABASES, AnyNode, Shop, subscriptions
from tests.exactly_once.smtp import Post, post_office
from tests.exactly_once.twice import Twice, read_log, transport
from tests.pages import write
from tests.waiting import until

ORDERS, KILLS = 2000, 200
"""What a run of full length has."""
ON = ("sqlite", "postgresql")
"""The databases of a run of full length."""
PAGE = ROOT / "docs" / "exactly-once.md"
SETTLING = 180.0
"""Seconds after the last kill within which everything is handled."""


class Run:
    """One run, on one kind of database.

    Args:
        shop: takes the orders, and is killed.
        twice: delivers events twice.
        post: takes the e-mails.
        orders: how many are placed.
    """

    def __init__(self, shop: Shop, twice: Twice, post: Post, orders: int) -> None:
        self._shop = shop
        self._twice = twice
        self._post = post
        self._orders = iter(shop.goods.orders(orders + orders // 2 + 1000))
        self._wanted = orders
        self._began = monotonic()

    def say(self, what: str) -> None:
        """A line of progress."""
        placed, events = len(self._shop.placer.placed), len(self._twice.seen)
        counts = (
            f"{placed:,} placed, {events:,} events, {len(self._twice.again)} again, {self._post.taken.total():,} sent"
        )
        print(f"{monotonic() - self._began:6.0f} s  {what:30}  {counts}", flush=True)  # noqa: T201

    async def go(self, steps: list[Step]) -> None:
        """Everything that is planned; then place what is missing, and let all settle."""
        placing: asyncio.Queue[Step | None] = asyncio.Queue()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._place(placing))
            for number, step in enumerate(steps, 1):
                placing.put_nowait(step)
                if step.change is not None:
                    tasks.create_task(self._shop.change(step.change, number))
                await asyncio.sleep(step.pause)
                await self._shop.kill(step.victim)
                self.say(f"{number:3}/{len(steps)} {step.victim} killed")
            placing.put_nowait(None)
        await self._shop.started()
        await self._place_missing()
        self.say("all placed")

    async def _place(self, steps: asyncio.Queue[Step | None]) -> None:
        while (step := await steps.get()) is not None:
            await self._shop.placer.place([next(self._orders) for _ in range(step.orders)])

    async def _place_missing(self) -> None:
        """What was in doubt may be stored, or not: the database knows."""
        while missing := self._wanted - len(await self._shop.order_ids("order")):
            self.say(f"{missing} more to place")
            await self._shop.placer.place([next(self._orders) for _ in range(missing)])

    async def settle(self) -> dict[str, int]:
        """Wait until nothing waits anywhere; returns what still does when the time is up."""
        calm = 0

        async def settled() -> bool:
            nonlocal calm
            done = not self._twice.pending and not await self._shop.waiting() and await self._all_sent()
            calm = calm + 1 if done else 0
            return calm >= 3

        with suppress(AssertionError):  # what has not settled by now is named
            await until(settled, SETTLING, every=0.5)
        self.say("settled" if calm else "not settled")
        return await self._shop.waiting()

    async def _all_sent(self) -> bool:
        packed = await self._shop.order_ids("packing")
        dispatched = await self._shop.order_ids("dispatch")
        return len(packed) == len(dispatched) == self._wanted <= len(self._shop.commands.emails())

    async def outcome(self, database: str, waiting: dict[str, int], url: str) -> Outcome:
        """Count everything. The services have ended."""
        shop = self._shop
        async with transport(url) as opened:
            log = await read_log(opened)
        away = sum(codes[CONNECTIONS] + codes[DATABASES] for codes in shop.ended.values())
        return Outcome(
            database=database,
            minutes=(monotonic() - self._began) / 60,
            ordered=self._wanted,
            placed=tuple(UUID(order["order_id"]) for order in shop.placer.placed),
            in_doubt=shop.placer.in_doubt,
            facts=await shop.facts(),
            packed=tuple(await shop.order_ids("packing")),
            dispatched=tuple(await shop.order_ids("dispatch")),
            events={
                event: Told(it.key, it.subject or "", it.data.get("revision") if isinstance(it.data, dict) else None)
                for event, it in log.events.items()
            },
            messages=log.messages,
            by_hand=frozenset(self._twice.again),
            subscriptions=subscriptions(),
            inboxes={name: await shop.inbox(name) for name in LISTENERS},
            outboxes={name: await shop.outbox(name) for name in NAMES},
            dead=await shop.dead(),
            waiting=waiting,
            sent=self._post.by_order(),
            in_doubt_emails=frozenset(
                order for order, state in (await shop.follow_ups()).items() if state is State.IN_DOUBT
            ),
            kills=shop.kills,
            ended=[
                f"{name} ended by itself with {code}: {shop.last_words(name, code)}"
                for name, codes in shop.ended.items()
                for code in codes
                if code not in (CONNECTIONS, DATABASES)
            ],
            restarts=away,
            duplicates=shop.duplicates(),
        )


@asynccontextmanager
async def vhost(node: AnyNode, name: str) -> AsyncIterator[str]:
    """A virtual host of its own on a node, as a URL."""
    async with Management(node.url, node.management_url, timeout=60) as management:
        await management.create_vhost(name)
    yield urlsplit(node.url)._replace(path=f"/{name}").geturl()


@dataclass(frozen=True)
class Size:
    """Which run, and how long."""

    seed: int
    orders: int = ORDERS
    kills: int = KILLS


async def run_once(node: AnyNode, database: str, size: Size, folder: Path) -> Outcome:
    """One run, on one kind of database."""
    async with AsyncExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"{database}-", dir=folder))
        postgres = stack.enter_context(Postgres()) if database == "postgresql" else None
        servers = (RABBITMQ, POSTGRESQL) if postgres else (RABBITMQ,)
        url = await stack.enter_async_context(vhost(node, database))
        management = await stack.enter_async_context(Management(url, node.management_url, timeout=60))
        guard = stack.enter_context(Guard(folder))
        post = await stack.enter_async_context(post_office())
        shop = Shop(node, url, management, postgres=postgres, folder=folder, guard=guard, smtp=post.url)
        opened = await stack.enter_async_context(transport(url))
        twice = Twice(opened, delays(size.seed))
        await twice.start()
        await stack.enter_async_context(shop.commands)
        stack.push_async_callback(shop.close)
        await shop.open()
        run = Run(shop, twice, post, size.orders)
        run.say(f"open, on {database}")
        await run.go(plan(size.seed, size.orders, size.kills, servers))
        waiting = await run.settle()
        await shop.stop()
        named = f"PostgreSQL {postgres.version}" if postgres else "SQLite"
        return await run.outcome(named, waiting, url)


async def exactly_once(size: Size, databases: list[str]) -> int:
    """Run it; returns the exit code. Data and logs stay when something was wrong."""
    told = f"SEED={size.seed} ORDERS={size.orders} KILLS={size.kills} DATABASES={','.join(databases)}"
    print(told, flush=True)  # noqa: T201
    folder = Path(tempfile.mkdtemp(prefix="exactly-once-"))
    try:
        wrongs = await run_on_each(size, databases, folder)
    except asyncio.CancelledError:  # somebody interrupted it
        await asyncio.to_thread(shutil.rmtree, folder)
        raise
    except Exception:
        print(f"It broke off. Data and logs: {folder}", flush=True)  # noqa: T201
        raise
    if wrongs:
        print(f"{wrongs} things are WRONG. Data and logs: {folder}")  # noqa: T201
        return 1
    await asyncio.to_thread(shutil.rmtree, folder)
    print("Nothing lost, nothing twice.")  # noqa: T201
    return 0


async def run_on_each(size: Size, databases: list[str], folder: Path) -> int:
    """A run on each kind of database, and the report of them; returns how many things were wrong."""
    outcomes = []
    async with AsyncExitStack() as stack:
        node = await asyncio.to_thread(node_to_break)
        stack.callback(node.close)
        async with Management(node.url, node.management_url) as management:
            version = await management.version()
        for database in databases:
            outcomes.append(await run_once(node, database, size, folder))
            for wrong in outcomes[-1].wrong:
                print(f"WRONG: {wrong}", flush=True)  # noqa: T201
    text = report(size.seed, version, outcomes)
    print(f"\n{text}\n", flush=True)  # noqa: T201
    if size.orders >= ORDERS and size.kills >= KILLS and set(databases) >= set(ON):
        write("exactly-once", text, PAGE)
    return sum(len(outcome.wrong) for outcome in outcomes)


def main() -> int:
    """Run it as the environment says."""
    terminate_as_interrupt()
    configure(Settings(logging_level="error"))
    seed = int(os.environ.get("SEED") or random.randrange(10_000))
    orders, kills = int(os.environ.get("ORDERS") or ORDERS), int(os.environ.get("KILLS") or KILLS)
    databases = (os.environ.get("DATABASES") or ",".join(ON)).split(",")
    if unknown := set(databases) - set(ON):
        print(f"DATABASES knows {' and '.join(ON)}, not {', '.join(sorted(unknown))}.", file=sys.stderr)  # noqa: T201
        return 2
    try:
        return asyncio.run(exactly_once(Size(seed, orders, kills), databases))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
