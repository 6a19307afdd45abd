"""The whole shop as real processes: each of the eight is killed (-9) in the middle of a run, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from uuid import UUID

from services.demo import checks, goods
from services.demo.commands import Commands, Placer
from services.demo.processes import OWNERS, SERVICES, Guard, Processes, environment
from tests.waiting import until

PATIENCE = 60.0


async def test_any_of_the_eight_may_be_killed(tmp_path: Path, vhost_url: str) -> None:
    stock = goods.invent()
    async with shop_at_work(tmp_path, vhost_url, stock) as (processes, commands):
        orders = iter(stock.orders(3 * len(SERVICES)))
        placed: list[UUID] = []

        async with Placer(commands) as placer:

            async def place() -> None:
                placed.append(UUID((await placer.place(next(orders)))["order_id"]))

            for victim in SERVICES:
                await kill_amid_orders(processes, victim, place)
        await all_run(processes)
        for owner in OWNERS:
            await commands.run(owner, "announce")

        await until(lambda: everything_is_there(commands, placed), PATIENCE)
        verdict = checks.verdict(await checks.gather(commands), placed)
        count = len(placed)
        assert (verdict.placed, verdict.packed, verdict.dispatched, verdict.emails) == (count, count, count, count)
        assert (verdict.lost, verdict.twice) == (0, 0)


@contextlib.asynccontextmanager
async def shop_at_work(folder: Path, url: str, stock: goods.Goods) -> AsyncIterator[tuple[Processes, Commands]]:
    """The eight services, running, with customers, items and addresses."""
    told = environment(folder, url)
    async with contextlib.AsyncExitStack() as stack:
        guard = stack.enter_context(Guard(folder))
        processes = stack.enter_context(Processes(folder, told, guard))
        commands = await stack.enter_async_context(Commands(folder, told, guard))
        processes.start(*SERVICES)
        await all_run(processes)
        await fill(commands, stock)
        yield processes, commands
        await asyncio.to_thread(processes.stop)


async def kill_amid_orders(processes: Processes, victim: str, place: Callable[[], Awaitable[None]]) -> None:
    """One order is on its way when the victim dies, one comes while it is dead, one while it starts."""
    await place()
    processes.kill(victim)
    await place()
    processes.start(victim)
    await place()


async def all_run(processes: Processes) -> None:
    def running() -> bool:
        for process in processes:
            process.read()
            process.check()
        return all(process.state == "running" for process in processes)

    await until(running, PATIENCE)


async def fill(commands: Commands, stock: goods.Goods) -> None:
    """Customers, items and addresses."""
    owned = zip(OWNERS, (stock.customers, stock.items, stock.addresses), strict=True)
    await asyncio.gather(
        *(commands.run(owner, "add", "--file", "-", stdin=goods.as_lines(entities)) for owner, entities in owned)
    )


async def everything_is_there(commands: Commands, placed: list[UUID]) -> bool:
    """Whether all services agree on every order."""
    missing = checks.differences(await checks.gather(commands), placed)
    for line in missing[:5]:
        print(line)  # noqa: T201 - shown when the test fails
    return not missing
