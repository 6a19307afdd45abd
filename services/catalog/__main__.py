"""The command line of the catalog service: ``python -m services.catalog --help``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import UUID

import typer
from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError

from broker import DatabaseUnusable
from services.catalog import Settings, items, service
from services.catalog.store import Base
from services.contracts import CatalogItemChanged
from services.contracts.storage import Database, open_database

T = TypeVar("T")
Changes = list[CatalogItemChanged]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Items and their prices. Without a command: run the service until SIGTERM.

    A change is published by the service, now or, when it does not run, once it does.

    Exit codes: 0 done, 1 unexpected failure, 2 called wrongly, 7 database not usable.
    """
    if context.invoked_subcommand is None:
        service.run()


@app.command()
def add(  # noqa: PLR0913, PLR0917 (each parameter is an option of the command)
    name: Annotated[str | None, typer.Option(help="The item's name.")] = None,
    price: Annotated[str | None, typer.Option(help="What one costs, such as 19.90.")] = None,
    currency: Annotated[str, typer.Option(help="The price's currency.")] = "EUR",
    item_id: Annotated[UUID | None, typer.Option("--id", help="An id of your choice.")] = None,
    file: Annotated[
        typer.FileText | None,
        typer.Option(
            help='Add many, all or none: a line each, {"name": "…", "price": {"amount": "…", "currency": "…"}}. '
            '"-" is stdin.',
            encoding="utf-8",
            errors="surrogateescape",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add an item, or many, and publish Catalog Item Changed."""
    if (file is None) == (name is None or price is None):
        raise typer.BadParameter("Give --name and --price, or --file.")
    given = {"name": name, "price": {"amount": price, "currency": currency}, "item_id": item_id}
    chosen = json.dumps({field: value for field, value in given.items() if value is not None}, default=str)
    new = []
    for number, line in enumerate([chosen] if file is None else file, start=1):
        try:
            if line.strip():
                new.append(items.NewItem.model_validate_json(line))
        except ValidationError as error:
            fail(f"{'' if file is None else f'line {number}: '}{explain(error)}", 2)
    run(change_and_show(lambda database: items.add(database, new), as_json))


@app.command()
def change(
    item_id: Annotated[UUID, typer.Argument(help="Which item changes.")],
    name: Annotated[str | None, typer.Option(help="The new name.")] = None,
    price: Annotated[str | None, typer.Option(help="The new price.")] = None,
    currency: Annotated[str | None, typer.Option(help="The new price's currency.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change an item's name or price and publish Catalog Item Changed."""
    if name is None and price is None and currency is None:
        raise typer.BadParameter("Give --name, --price or --currency.")

    async def store(database: Database) -> Changes:
        return [await items.change(database, item_id, name=name, amount=price, currency=currency)]

    run(change_and_show(store, as_json))


@app.command()
def announce(as_json: AsJson = False) -> None:
    """Publish the current state of every item again, for subscribers that join late."""
    count = run(tell_again())
    typer.echo(json.dumps({"announced": count}) if as_json else f"Announced {count} items.")


@app.command("list")
def list_items(as_json: AsJson = False) -> None:
    """List all items."""
    stored = run(read())
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in stored]))
    else:
        show(stored)


async def change_and_show(store: Callable[[Database], Awaitable[Changes]], as_json: bool) -> None:
    """Store a change, and print it."""
    async with open_database(Settings().database, Base.metadata) as database:
        changes = await store(database)
    if as_json:
        for item in changes:
            typer.echo(item.model_dump_json())
    else:
        show(changes)


async def tell_again() -> int:
    async with open_database(Settings().database, Base.metadata) as database:
        return await items.announce(database)


async def read() -> Changes:
    async with open_database(Settings().database, Base.metadata) as database:
        return await items.everything(database)


def show(changes: Changes) -> None:
    table = Table(Column("id", no_wrap=True), "revision", "name", "price", box=SIMPLE)
    for item in changes:
        table.add_row(str(item.item_id), str(item.revision), printable(item.name), str(item.price))
    Console().print(table)


def printable(text: str) -> Text:
    """Text from elsewhere, without what would steer the terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text), overflow="fold")


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what may go wrong becomes a message and an exit code."""
    try:
        return asyncio.run(command)
    except items.Refused as error:
        fail(str(error), 2)
    except ValidationError as error:
        fail(explain(error), 2)
    except DatabaseUnusable as error:
        fail(str(error), error.exit_code)
    except DBAPIError as error:
        fail(f"The database failed: {error.orig}", 1)


def explain(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, part['loc'])) or 'input'}: {part['msg']}" for part in error.errors())


def fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(exit_code)


if __name__ == "__main__":
    app(prog_name="python -m services.catalog")
