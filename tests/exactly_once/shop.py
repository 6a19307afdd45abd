"""The shop as the run has it: its processes, its servers, its databases; started, killed, and looked into."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from broker import Service
from broker.sql.report import initialise
from broker.sql.tables import inbox, outbox
from broker.tools.container import ContainerNode
from broker.tools.management import Management
from broker.tools.node import Node
from broker.topology import dead_queue
from services.crm.sender import State, state_of
from services.crm.store import FollowUp
from services.demo.checks import Facts, gather
from services.demo.commands import Commands
from services.demo.goods import Entity, Goods, as_lines, invent
from services.demo.processes import LISTENERS, OWNERS, DemoFailed, Guard
from services.demo.processes import SERVICES as NAMES
from services.demo.processes import environment as shop_environment
from tests.acceptance.running import PATIENCE, ROOT, Process
from tests.exactly_once.plan import PLACER, POSTGRESQL, RABBITMQ, SERVICES
from tests.exactly_once.postgres import Postgres
from tests.exactly_once.twice import SPY
from tests.faults.kept import Kept
from tests.waiting import until

AnyNode = Node | ContainerNode
KILLED = -9
"""The status of a process that was."""
CONNECTIONS, DATABASES = 3, 7
"""The statuses with which a service ends that finds no RabbitMQ, or no database, when it starts."""


class Shop:
    """One shop.

    Args:
        node: its RabbitMQ.
        url: a virtual host there, which is its own.
        management: of that virtual host.
        postgres: its PostgreSQL; without, each service has a SQLite file.
        folder: for data, logs and e-mails.
        guard: none of its processes outlives that.
        smtp: where e-mails are sent.
    """

    def __init__(
        self,
        node: AnyNode,
        url: str,
        management: Management,
        *,
        postgres: Postgres | None,
        folder: Path,
        guard: Guard,
        smtp: str,
    ) -> None:
        self._node = node
        self._postgres = postgres
        self._management = management
        self._folder = folder
        self._guard = guard
        told = shop_environment(folder, url) | {"CRM_SMTP_URL": smtp}
        if postgres is not None:
            told |= {f"{name.upper()}_DATABASE": postgres.create(name) for name in NAMES}
        self.environment: Mapping[str, str] = told
        self._engines: dict[str, AsyncEngine] = {}
        self._kept: dict[str, Kept] = {}
        self.commands = Commands(folder, self.environment, guard)
        self.goods: Goods = invent()
        self.placer = Placer(self)
        self.servers_killed: Counter[str] = Counter()
        self._starting: dict[str, asyncio.Task[None]] = {}

    # -- starting and stopping -----------------------------------------------------------------------------------

    async def open(self) -> None:
        """Start everything, add customers, items and addresses, and wait until Order and CRM know them."""
        for name in NAMES:
            url = self.environment[f"{name.upper()}_DATABASE"]
            await initialise(url, timeout=30)
            self._engines[name] = create_async_engine(url, pool_pre_ping=True)
        for name, service in SERVICES.items():
            self._start(name, service)
        for kept in self._kept.values():
            await until(partial(kept.lines, "started"), PATIENCE, every=0.1)  # from then on its queue is bound
        owned = dict(zip(OWNERS, (self.goods.customers, self.goods.items, self.goods.addresses), strict=True))
        await asyncio.gather(
            *(
                self.commands.run(name, "add", "--file", "-", "--json", stdin=as_lines(given))
                for name, given in owned.items()
            )
        )
        expected = {"order": sum(map(len, owned.values())), "crm": len(self.goods.customers)}

        async def copied() -> bool:
            return all([len(await self.inbox(name)) >= count for name, count in expected.items()])

        await until(copied, PATIENCE, every=0.2)

    def _start(self, name: str, service: str) -> None:
        words = (sys.executable, "-m", f"services.{service}")
        folder = self._folder / "output"
        folder.mkdir(exist_ok=True)
        group = self._guard.group

        def start() -> Process:
            return Process(words, ROOT, self.environment, folder / f"{name}-{monotonic()}", group=group)

        self._kept[name] = Kept(start)

    async def stop(self) -> None:
        """SIGTERM to all services, which must end them well."""
        await asyncio.gather(*(kept.stop() for kept in self._kept.values()))

    async def close(self) -> None:
        """End everything that still runs."""
        for kept in self._kept.values():
            await kept.close()
        await self.placer.close()
        for starting in self._starting.values():
            with suppress(Exception):
                await starting
        for engine in self._engines.values():
            await engine.dispose()

    # -- killing -------------------------------------------------------------------------------------------------

    async def kill(self, victim: str) -> None:
        """``kill -9``. Whoever was killed is started again at once."""
        if victim in self._kept:
            await self._kill_process(self._kept[victim])
        elif victim == PLACER:
            await self.placer.kill()
        else:
            await self._kill_server(victim)

    async def _kill_process(self, kept: Kept) -> None:
        killed = kept.codes.count(KILLED)
        while kept.codes.count(KILLED) == killed:  # it may just have ended by itself
            lives = len(kept.lives)
            kept.process.kill()
            await until(partial(_more, kept.lives, lives), PATIENCE)

    async def _kill_server(self, name: str) -> None:
        await self.started(name)
        server = self._node if name == RABBITMQ else self._postgres
        assert server is not None
        self.servers_killed[name] += 1
        await asyncio.to_thread(server.kill)
        self._starting[name] = asyncio.create_task(asyncio.to_thread(server.start))

    async def started(self, *names: str) -> None:
        """Wait until a server that was killed answers again."""
        for name in names or (RABBITMQ, POSTGRESQL):
            if (starting := self._starting.pop(name, None)) is not None:
                await starting

    @property
    def kills(self) -> Counter[str]:
        """How often each was killed: processes by how they ended."""
        processes = {name: kept.codes.count(KILLED) for name, kept in self._kept.items()}
        return Counter(processes | {PLACER: self.placer.killed}) + self.servers_killed

    @property
    def ended(self) -> dict[str, Counter[int]]:
        """How processes ended that nobody killed, by their status."""
        return {
            name: found
            for name, kept in self._kept.items()
            if (found := Counter(code for code in kept.codes if code != KILLED))
        }

    def last_words(self, name: str, code: int) -> str:
        """The last line that a process logged before it ended with that status."""
        kept = self._kept[name]
        lines = kept.lives[kept.codes.index(code)].err.strip().splitlines()
        return lines[-1][:1000] if lines else "it said nothing"

    # -- people --------------------------------------------------------------------------------------------------

    async def change(self, owner: str, number: int) -> None:
        """Change one of a customer, item or address, by the owner's command; again when the database is away."""
        key, owned = {
            "customer": ("customer_id", self.goods.customers),
            "catalog": ("item_id", self.goods.items),
            "address": ("address_id", self.goods.addresses),
        }[owner]
        what = {
            "customer": ("--email", f"customer{number}@example.com"),
            "catalog": ("--price", f"{number % 100}.{number % 97:02}"),
            "address": ("--street", f"{number} Long Road"),
        }[owner]

        async def changed() -> bool:
            with suppress(DemoFailed):
                await self.commands.run(owner, "change", str(owned[number % len(owned)][key]), *what)
                return True
            return False

        try:
            await until(changed, 2 * PATIENCE, every=1)  # a database may be restarted meanwhile
        except AssertionError as error:
            error.add_note(f"{owner} could not be changed: {self.commands.last_words(owner)}")
            raise

    # -- looking -------------------------------------------------------------------------------------------------

    async def inbox(self, name: str) -> list[tuple[str, UUID]]:
        """Source and id of every event that a service's inbox holds."""
        query = select(inbox.c.source, inbox.c.event_id).where(inbox.c.service == name)
        async with self._engines[name].connect() as connection:
            return [(source, event_id) for source, event_id in await connection.execute(query)]

    async def outbox(self, name: str) -> tuple[int, int]:
        """How many events wait in a service's outbox, and how many were set aside."""
        query = select(func.count(), func.count(outbox.c.set_aside_at))
        async with self._engines[name].connect() as connection:
            count, aside = (await connection.execute(query.select_from(outbox))).one()
            return count - aside, aside

    async def order_ids(self, name: str) -> list[UUID]:
        """The orders that Packing or Dispatch has done, or that Order has."""
        module = import_module(f"services.{name}.store")
        table = {"order": "Order", "packing": "PackedOrder", "dispatch": "DispatchedOrder"}[name]
        async with self._engines[name].connect() as connection:
            return list((await connection.execute(select(getattr(module, table).order_id))).scalars())

    async def follow_ups(self) -> dict[UUID, State]:
        """How far CRM says each order's e-mail has come. One that somebody claims to be sending is in doubt."""
        async with AsyncSession(self._engines["crm"]) as session:
            rows = (await session.scalars(select(FollowUp))).all()
        states = {row.order_id: state_of(row) for row in rows}
        return {order: State.IN_DOUBT if state is State.SENDING else state for order, state in states.items()}

    async def waiting(self) -> dict[str, int]:
        """What has not been dealt with: messages in queues, dead letters apart, events in outboxes, e-mails."""
        queues = {
            queue.name: queue.ready + queue.unacked
            for queue in await self._management.queues()
            if queue.type != "stream" and not queue.name.endswith(".dead") and queue.name != SPY
        }
        outboxes = {f"outbox of {name}": (await self.outbox(name))[0] for name in NAMES}
        emails = {"e-mails": sum(state is State.WAITING for state in (await self.follow_ups()).values())}
        return {name: count for name, count in (queues | outboxes | emails).items() if count}

    async def dead(self) -> dict[str, int]:
        """How many dead letters each service has."""
        counts = {queue.name: queue.ready + queue.unacked for queue in await self._management.queues()}
        return {name: counts[dead_queue(name)] for name in LISTENERS}

    async def facts(self) -> Facts:
        """What the services' own commands say."""
        return await gather(self.commands)

    def duplicates(self) -> Counter[tuple[str, UUID]]:
        """How often services say that they were given an event, by source and id, which they had handled."""
        lines = [line for kept in self._kept.values() for process in kept.lives for line in process.lines("duplicate")]
        return Counter((line["source"], UUID(line["event_id"])) for line in lines)


def _more(things: list[Process], count: int) -> bool:
    return len(things) > count


def subscriptions() -> dict[str, list[str]]:
    """The keys that each listening service subscribed to."""
    found = {}
    for name in LISTENERS:
        service = import_module(f"services.{name}").service
        assert isinstance(service, Service)
        found[name] = list(service.handlers.bindings)
    return found


class Placer:
    """One ``order place`` after the other: each takes orders through a pipe until it is killed.

    Attributes:
        placed: the orders it said it has placed.
        in_doubt: how many orders it was given and did not answer, because it or the database was killed.
        killed: how often it was.
    """

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._process: asyncio.subprocess.Process | None = None
        self.placed: list[dict[str, Any]] = []
        self.in_doubt = 0
        self.killed = 0

    async def place(self, orders: list[Entity]) -> None:
        """Have some orders placed, as fast as it goes."""
        if not orders:
            return
        process = await self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        answered = 0
        with suppress(ConnectionError):
            process.stdin.write(as_lines(orders).encode())
            await process.stdin.drain()
        while answered < len(orders):
            line = await process.stdout.readline()
            if not line.endswith(b"\n"):
                break  # it was killed
            answer = json.loads(line)
            assert "refused" not in answer, answer
            self.placed.append(answer)
            answered += 1
        self.in_doubt += len(orders) - answered
        if answered < len(orders):
            await self._shop.commands.end(process, patience=10)

    async def _running(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            words = ("place", "--file", "-", "--wait", "30", "--json")
            self._process = await self._shop.commands.start("order", *words)
        return self._process

    async def kill(self) -> None:
        """``kill -9``, and another is started."""
        killed = self.killed
        while self.killed == killed:
            process = await self._running()
            process.kill()
            self.killed += await process.wait() == KILLED
        await self._running()

    async def close(self) -> None:
        """Close its input, at which it ends by itself."""
        if self._process is not None:
            await self._shop.commands.end(self._process, patience=10)
