"""The demo's command line, and its frame: RabbitMQ, processes and view, set up and cleared away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit
from uuid import uuid4

import typer

from broker import Settings
from broker.errors import AccessRefused, BrokerError
from broker.tools.management import Management
from broker.tools.server import Engine, Server, rabbitmq
from services.demo.acts import play
from services.demo.commands import Commands
from services.demo.processes import ROOT, SERVICES, DemoFailed, Guard, Processes, environment, terminate_as_interrupt
from services.demo.stage import Stage
from services.demo.view import View

RUNS = ROOT / "data" / "demo"
INTERRUPTED = 130

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command()
def main(
    orders: Annotated[int, typer.Option(envvar="ORDERS", min=1, max=1000, help="How many orders are placed.")] = 20,
    keep: Annotated[
        bool, typer.Option("--keep", envvar="KEEP", help="Leave the services and RabbitMQ running at the end.")
    ] = False,
    kill: Annotated[str, typer.Option(help=f"Which service is killed: {', '.join(SERVICES)}.")] = "packing",
    folder: Annotated[
        Path | None, typer.Option(help="Where data, logs and e-mails go; default: a new folder in data/demo.")
    ] = None,
    docker: Annotated[bool, typer.Option(help="Use a Docker engine if there is one.")] = True,
) -> None:
    """Watch the shop: eight services, orders, a kill -9, a broken event; at the end, the verdict.

    RabbitMQ is the one at BROKER_URL, or comes from Docker, or from the rabbitmq-server of this machine as a private
    node, or, on Debian and Ubuntu as root, from apt. What was started is stopped at the end and on Ctrl-C.

    Exit status: 0 all is as it should be; 1 some difference, a dead process or a timeout; 3 no RabbitMQ to use; 4 it
    refused; 130 interrupted.
    """
    if kill not in SERVICES:
        raise typer.BadParameter(f"{kill!r} is none of {', '.join(SERVICES)}.", param_hint="--kill")
    terminate_as_interrupt()
    raise typer.Exit(run(Wishes(orders, keep, kill, (folder or new_folder()).resolve(), docker)))


@dataclass(frozen=True)
class Wishes:
    """How the demo is to be."""

    orders: int
    keep: bool
    victim: str
    folder: Path
    docker: bool


def run(wishes: Wishes) -> int:
    """The demo from beginning to end; returns the exit status."""
    view = View()
    wishes.folder.mkdir(parents=True, exist_ok=True)
    well = False
    docker: Engine | None = "compose" if wishes.docker else None
    view.say("Looking for a RabbitMQ, or starting one.")
    try:
        with rabbitmq(docker=docker, say=view.say, keep=lambda: wishes.keep and well) as server:
            asyncio.run(perform(server, view, wishes))
            well = True
    except KeyboardInterrupt:
        view.say("Interrupted; everything that was started is stopped.")
        return INTERRUPTED
    except DemoFailed as error:
        view.say(f"FAILED: {error}", style="bold red")
        return 1
    except BrokerError as error:
        view.say(f"FAILED: {error}", style="bold red")
        return error.exit_code
    return 0


async def perform(server: Server, view: View, wishes: Wishes) -> None:
    """Set the stage, play, and clear it."""
    async with contextlib.AsyncExitStack() as stack:
        url = server.url if server.ours else await stack.enter_async_context(own_vhost(server, wishes.keep))
        management = await stack.enter_async_context(Management(url, server.api_url))
        guard = stack.enter_context(Guard(wishes.folder))
        told = environment(wishes.folder, url)
        processes = stack.enter_context(Processes(wishes.folder, told, guard))
        commands = await stack.enter_async_context(Commands(wishes.folder, told, guard))
        stack.enter_context(view)
        stage = Stage(
            wishes.folder,
            processes,
            commands,
            management,
            settings_for(url, server),
            view,
            wishes.orders,
            wishes.victim,
        )
        await play(stage, server, wishes.keep)
        if wishes.keep:
            processes.keep()


def settings_for(url: str, server: Server) -> Settings:
    """As the services': this RabbitMQ, and none of the caller's own settings."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Settings.model_fields.items()}
    ours = {"url": url, "management_url": server.api_url, "logging_level": "warning"}
    return Settings.model_validate(defaults | ours)


@contextlib.asynccontextmanager
async def own_vhost(server: Server, keep: bool) -> AsyncIterator[str]:
    """On a RabbitMQ that is not ours: a virtual host of our own, or, where that is refused, the given one if empty."""
    name = f"business-events-demo-{uuid4().hex[:8]}"
    async with Management(server.url, server.api_url) as management:
        try:
            await management.create_vhost(name)
        except AccessRefused:
            await _refuse_unless_empty(management)
            try:
                yield server.url
            finally:
                if not keep:
                    await management.clear()
            return
        try:
            yield urlsplit(server.url)._replace(path=f"/{name}").geturl()
        finally:
            if not keep:
                await management.delete_vhost(name)


async def _refuse_unless_empty(management: Management) -> None:
    """The demo publishes to nobody else's queues, and purges nobody else's dead letters."""
    exchanges = [exchange.name for exchange in await management.exchanges() if not exchange.builtin]
    if found := [queue.name for queue in await management.queues()] + exchanges:
        raise DemoFailed(
            f"The virtual host {management.vhost!r} holds {', '.join(found[:5])}; the demo needs an empty one. "
            "Name one in BROKER_URL, or use a login with the tag administrator: then the demo makes one."
        )


def new_folder() -> Path:
    """A folder for this run; those of earlier runs whose demo has ended, but the latest, are removed."""
    RUNS.mkdir(parents=True, exist_ok=True)
    for old in sorted(RUNS.iterdir())[:-1]:
        if not _lives(old):
            shutil.rmtree(old, ignore_errors=True)
    return RUNS / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"


def _lives(folder: Path) -> bool:
    """Whether one of the processes of a run still runs."""
    try:
        os.killpg(int((folder / "group").read_text()), 0)
    except (OSError, ValueError):  # none, or somebody else's by now
        return False
    return True
