"""``broker status``: how every service stands, on one screen."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, From, app, lasting, one_line, out, settings, until, wait_for
from broker.errors import BrokerError, ContractError
from broker.settings import Settings
from broker.tools.status import HISTORY, ServiceStatus, Status, Waiting, read_status

EVERY = 2.0
"""Seconds from one look to the next."""


@app.command(epilog=EXIT_CODES, short_help="How every service stands, and what to type next.")
def status(
    service: Annotated[str | None, typer.Argument(metavar="[SERVICE]", help="Only this one.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s, until Ctrl-C.")] = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """How every service stands: what is ready, in hand, waiting for a retry, dead; who consumes; what is wrong.

    Reads RabbitMQ's management API, changes nothing. The last line is the command to type next.
    """
    environment = settings()
    places = modules or list(environment.modules)
    if watch:
        wait_for(keep_looking(environment, service, places, as_json=as_json))
    else:
        show(wait_for(look(environment, service, places)), as_json=as_json)


async def look(environment: Settings, service: str | None, modules: list[str]) -> Status:
    """Ask once."""
    from broker.tools.management import Management  # httpx takes a while to import

    async with Management.of(environment) as management:
        return await read_status(management, service, modules)


def show(found: Status, *, as_json: bool) -> None:
    """Print it."""
    if as_json:
        print(json.dumps(found.as_json()), flush=True)  # noqa: T201
    else:
        out().print(screen(found))


async def keep_looking(environment: Settings, service: str | None, modules: list[str], *, as_json: bool) -> None:
    """Ask again and again; when RabbitMQ does not answer, say so and go on."""
    console = out()
    if as_json or not console.is_terminal:
        while True:
            show(await look(environment, service, modules), as_json=as_json)
            await asyncio.sleep(EVERY)
    with Live(Text("…"), console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(await renewed(environment, service, modules), refresh=True)
            await asyncio.sleep(EVERY)


async def renewed(environment: Settings, service: str | None, modules: list[str]) -> RenderableType:
    """The screen, or why there is none now."""
    try:
        return screen(await look(environment, service, modules))
    except ContractError:
        raise
    except BrokerError as error:
        return Text(f"{error}\n\nTrying again.", "red")


def screen(found: Status) -> RenderableType:
    """All of it for people: what stands above everything, a table, what is wrong, the next command."""
    parts: list[RenderableType] = [Text(f"RabbitMQ {found.version}", "dim")]
    parts += [Text(f"ALARM: {alarm}: nobody can publish until it is over", "bold red") for alarm in found.alarms]
    if found.services:
        parts += [Text(), table_of(found.services)]
    else:
        parts.append(Text("\nNo service has a queue here yet. It gets one when it first starts."))
    notes = [note for it in found.services for note in notes_on(it)]
    parts += [Text(), *notes] if notes else []
    parts += [Text(), Text(found.next_command, "bold")]
    return Group(*parts)


def table_of(services: tuple[ServiceStatus, ...]) -> Table:
    """One row for each service."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("service", "ready", "unacked", "waiting", "dead", "consumers", "in/s", "out/s", "oldest"):
        left = heading in ("service", "waiting")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "waiting")
    for it in services:
        bad = it.stopped or it.paused or it.dead
        table.add_row(
            Text(it.service, "bold red" if bad else "bold"),
            Text(str(it.ready), "yellow" if it.falling_behind else ""),
            str(it.unacked),
            "\n".join(map(waits, it.waiting)) or "-",
            Text(str(it.dead), "red" if it.dead else ""),
            Text(str(it.consumers), "red" if it.stopped else ""),
            f"{it.rate_in:.1f}",
            f"{it.rate_out:.1f}",
            age(it.oldest),
        )
    return table


def waits(it: Waiting) -> str:
    """What waits in one retry queue."""
    return f"{it.count} × {it.delay}" + (f", next {until(it.due)}" if it.due else "")


def age(oldest: timedelta | None) -> str:
    """How long the oldest has waited; it is known to a minute, and no further back than RabbitMQ remembers."""
    if oldest is None:
        return "-"
    if oldest < timedelta(minutes=2):
        return "< 2m"
    return "> 1h" if oldest > HISTORY - timedelta(minutes=2) else f"{lasting(oldest.total_seconds() // 60 * 60)}"


def notes_on(it: ServiceStatus) -> list[Text]:
    """What is wrong with a service, in words."""
    told: list[tuple[str, str]] = []
    so_far = f"{it.backfill} messages of the log"
    if it.backfill and it.backfill.running:
        told.append((f"backfilling, {so_far}: a process reads what it missed, and its queue after that", "yellow"))
    elif it.backfill:
        told.append((f"its backfill is unfinished, {so_far}: run it with --backfill, and it goes on", "red"))
    elif it.stopped:
        told.append(("nobody consumes its queue: no process of it runs, or none is connected", "red"))
    if it.paused:
        told.append((f"paused {one_line(it.paused, 200)}", "red"))
    if it.error:
        told.append((f"{it.error_count} × {one_line(it.error, 200)}", "yellow"))
    if it.falling_behind:
        told.append(("events come faster than they are handled: start another process of it", "yellow"))
    return [Text.assemble((f"{it.service}  ", "bold"), (text, style)) for text, style in told]
