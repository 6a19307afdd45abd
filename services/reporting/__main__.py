"""The command line of the reporting service: ``python -m services.reporting --help``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from datetime import timedelta
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from sqlalchemy.exc import DBAPIError

from broker import DatabaseUnusable
from services.contracts.storage import open_database
from services.reporting import Settings, levels, service, view
from services.reporting.levels import Levels, OrderLine
from services.reporting.store import Base

REFRESH = 0.25  # s; with what reading takes, the view is at most a second behind
T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Ordering levels. Without a command: run the service until SIGTERM.

    Exit codes: 0 done, 1 unexpected failure, 2 called wrongly, 7 database not usable, 130 interrupted.
    """
    if context.invoked_subcommand is None:
        service.run()


@app.command()
def show(
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing, until interrupted.")] = False,
    over: Annotated[float, typer.Option(min=1, help="How many seconds back the charts go.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Show how many orders were placed, packed and dispatched, what they bring in, and how long they take."""
    if watch and as_json:
        raise typer.BadParameter("Give --watch or --json.")
    back = timedelta(seconds=over)
    if watch:
        run(keep_showing(back))
        return
    now = run(read_levels(back))
    if as_json:
        typer.echo(now.model_dump_json())
    else:
        Console().print(view.draw(now, back))


@app.command("list")
def list_orders(as_json: AsJson = False) -> None:
    """List all orders; with --json, when each was placed, packed and dispatched."""
    known = run(read_orders())
    if as_json:
        typer.echo(json.dumps([order.model_dump(mode="json") for order in known]))
        return
    table = Table(Column("order", no_wrap=True), "placed", "total", "status", box=SIMPLE)
    for order in known:
        placed = f"{order.placed_at:%Y-%m-%d %H:%M}" if order.placed_at else ""
        table.add_row(str(order.order_id), placed, str(order.total or ""), order.status)
    Console().print(table)


async def keep_showing(over: timedelta) -> None:
    """On a terminal a live view; elsewhere a line whenever a figure changes."""
    console = Console()
    async with open_database(Settings().database, Base.metadata) as database:
        if console.is_terminal:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(view.draw(await levels.measure(database, over), over), refresh=True)
                    await asyncio.sleep(REFRESH)
        shown = None
        while True:
            now = await levels.measure(database, over)
            figures = (now.placed, now.packed, now.dispatched, now.revenue)
            if figures != shown:
                typer.echo(view.line(now))
                shown = figures
            await asyncio.sleep(REFRESH)


async def read_levels(over: timedelta) -> Levels:
    async with open_database(Settings().database, Base.metadata) as database:
        return await levels.measure(database, over)


async def read_orders() -> list[OrderLine]:
    async with open_database(Settings().database, Base.metadata) as database:
        return await levels.orders(database)


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what may go wrong becomes a message and an exit code."""
    try:
        return asyncio.run(command)
    except DatabaseUnusable as error:
        fail(str(error), error.exit_code)
    except DBAPIError as error:
        fail(f"The database failed: {error.orig}", 1)


def fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(exit_code)


if __name__ == "__main__":
    app(prog_name="python -m services.reporting")
