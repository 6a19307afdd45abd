"""The command line of the address service: ``python -m services.address --help``."""

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
from services.address import Settings, addresses, service
from services.address.store import Base
from services.contracts import AddressChanged
from services.contracts.storage import Database, open_database

T = TypeVar("T")
Changes = list[AddressChanged]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Addresses. Without a command: run the service until SIGTERM.

    A change is published by the service, now or, when it does not run, once it does.

    Exit codes: 0 done, 1 unexpected failure, 2 called wrongly, 7 database not usable.
    """
    if context.invoked_subcommand is None:
        service.run()


@app.command()
def add(  # noqa: PLR0913, PLR0917 (each parameter is an option of the command)
    customer: Annotated[UUID | None, typer.Option(help="The id of the customer whose address it is.")] = None,
    street: Annotated[str | None, typer.Option(help="Street and number.")] = None,
    city: Annotated[str | None, typer.Option(help="The city.")] = None,
    postcode: Annotated[str | None, typer.Option(help="The postcode.")] = None,
    country: Annotated[str, typer.Option(help="The country's two letters.")] = "DE",
    address_id: Annotated[UUID | None, typer.Option("--id", help="An id of your choice.")] = None,
    file: Annotated[
        typer.FileText | None,
        typer.Option(
            help='Add many, all or none: a line each, {"customer_id": "…", "street": "…", "city": "…", '
            '"postcode": "…", "country": "…"}. "-" is stdin.',
            encoding="utf-8",
            errors="surrogateescape",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add an address of a customer, or many, and publish Address Changed."""
    if (file is None) == (None in (customer, street, city, postcode)):
        raise typer.BadParameter("Give --customer, --street, --city and --postcode, or --file.")
    given = {
        "customer_id": customer,
        "street": street,
        "city": city,
        "postcode": postcode,
        "country": country,
        "address_id": address_id,
    }
    chosen = json.dumps({field: value for field, value in given.items() if value is not None}, default=str)
    new = []
    for number, line in enumerate([chosen] if file is None else file, start=1):
        try:
            if line.strip():
                new.append(addresses.NewAddress.model_validate_json(line))
        except ValidationError as error:
            fail(f"{'' if file is None else f'line {number}: '}{explain(error)}", 2)
    run(change_and_show(lambda database: addresses.add(database, new), as_json))


@app.command()
def change(  # noqa: PLR0913, PLR0917 (each parameter is an option of the command)
    address_id: Annotated[UUID, typer.Argument(help="Which address changes.")],
    street: Annotated[str | None, typer.Option(help="The new street and number.")] = None,
    city: Annotated[str | None, typer.Option(help="The new city.")] = None,
    postcode: Annotated[str | None, typer.Option(help="The new postcode.")] = None,
    country: Annotated[str | None, typer.Option(help="The new country's two letters.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change an address and publish Address Changed. Whose address it is never changes."""
    given = {"street": street, "city": city, "postcode": postcode, "country": country}
    new = {field: value for field, value in given.items() if value is not None}
    if not new:
        raise typer.BadParameter("Give --street, --city, --postcode or --country.")

    async def store(database: Database) -> Changes:
        return [await addresses.change(database, address_id, **new)]

    run(change_and_show(store, as_json))


@app.command()
def announce(as_json: AsJson = False) -> None:
    """Publish the current state of every address again, for subscribers that join late."""
    count = run(tell_again())
    typer.echo(json.dumps({"announced": count}) if as_json else f"Announced {count} addresses.")


@app.command("list")
def list_addresses(as_json: AsJson = False) -> None:
    """List all addresses."""
    stored = run(read())
    if as_json:
        typer.echo(json.dumps([address.model_dump(mode="json") for address in stored]))
    else:
        show(stored)


async def change_and_show(store: Callable[[Database], Awaitable[Changes]], as_json: bool) -> None:
    """Store a change, and print it."""
    async with open_database(Settings().database, Base.metadata) as database:
        changes = await store(database)
    if as_json:
        for address in changes:
            typer.echo(address.model_dump_json())
    else:
        show(changes)


async def tell_again() -> int:
    async with open_database(Settings().database, Base.metadata) as database:
        return await addresses.announce(database)


async def read() -> Changes:
    async with open_database(Settings().database, Base.metadata) as database:
        return await addresses.everything(database)


def show(changes: Changes) -> None:
    table = Table(Column("id", no_wrap=True), "revision", "address", "of customer", box=SIMPLE)
    for address in changes:
        table.add_row(
            str(address.address_id),
            str(address.revision),
            printable(f"{address.street}, {address.postcode} {address.city}, {address.country}"),
            printable(str(address.customer_id)),
        )
    Console().print(table)


def printable(text: str) -> Text:
    """Text from elsewhere, without what would steer the terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text), overflow="fold")


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what may go wrong becomes a message and an exit code."""
    try:
        return asyncio.run(command)
    except addresses.Refused as error:
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
    app(prog_name="python -m services.address")
