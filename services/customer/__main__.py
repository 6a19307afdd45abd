"""The command line of the customer service: ``python -m services.customer --help``."""

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
from services.contracts import CustomerDetailsChanged
from services.contracts.storage import Database, open_database
from services.customer import Settings, customers, service
from services.customer.store import Base

T = TypeVar("T")
Changes = list[CustomerDetailsChanged]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Customers. Without a command: run the service until SIGTERM.

    A change is published by the service, now or, when it does not run, once it does.

    Exit codes: 0 done, 1 unexpected failure, 2 called wrongly, 7 database not usable.
    """
    if context.invoked_subcommand is None:
        service.run()


@app.command()
def add(
    name: Annotated[str | None, typer.Option(help="The customer's name.")] = None,
    email: Annotated[str | None, typer.Option(help="The customer's e-mail address.")] = None,
    customer_id: Annotated[UUID | None, typer.Option("--id", help="An id of your choice.")] = None,
    file: Annotated[
        typer.FileText | None,
        typer.Option(
            help='Add many, all or none: a line each, {"name": "…", "email": "…"}. "-" is stdin.',
            encoding="utf-8",
            errors="surrogateescape",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Add a customer, or many, and publish Customer Details Changed."""
    if (file is None) == (name is None or email is None):
        raise typer.BadParameter("Give --name and --email, or --file.")
    given = {"name": name, "email": email, "customer_id": customer_id}
    chosen = json.dumps({field: value for field, value in given.items() if value is not None}, default=str)
    new = []
    for number, line in enumerate([chosen] if file is None else file, start=1):
        try:
            if line.strip():
                new.append(customers.NewCustomer.model_validate_json(line))
        except ValidationError as error:
            fail(f"{'' if file is None else f'line {number}: '}{explain(error)}", 2)
    run(change_and_show(lambda database: customers.add(database, new), as_json))


@app.command()
def change(
    customer_id: Annotated[UUID, typer.Argument(help="Whose details change.")],
    name: Annotated[str | None, typer.Option(help="The new name.")] = None,
    email: Annotated[str | None, typer.Option(help="The new e-mail address.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change a customer's details and publish Customer Details Changed."""
    if name is None and email is None:
        raise typer.BadParameter("Give --name, --email, or both.")

    async def store(database: Database) -> Changes:
        return [await customers.change(database, customer_id, name=name, email=email)]

    run(change_and_show(store, as_json))


@app.command()
def announce(as_json: AsJson = False) -> None:
    """Publish the current state of every customer again, for subscribers that join late."""
    count = run(tell_again())
    typer.echo(json.dumps({"announced": count}) if as_json else f"Announced {count} customers.")


@app.command("list")
def list_customers(as_json: AsJson = False) -> None:
    """List all customers."""
    stored = run(read())
    if as_json:
        typer.echo(json.dumps([customer.model_dump(mode="json") for customer in stored]))
    else:
        show(stored)


async def change_and_show(store: Callable[[Database], Awaitable[Changes]], as_json: bool) -> None:
    """Store a change, and print it."""
    async with open_database(Settings().database, Base.metadata) as database:
        changes = await store(database)
    if as_json:
        for customer in changes:
            typer.echo(customer.model_dump_json())
    else:
        show(changes)


async def tell_again() -> int:
    async with open_database(Settings().database, Base.metadata) as database:
        return await customers.announce(database)


async def read() -> Changes:
    async with open_database(Settings().database, Base.metadata) as database:
        return await customers.everything(database)


def show(changes: Changes) -> None:
    table = Table(Column("id", no_wrap=True), "revision", "name", "e-mail", box=SIMPLE)
    for customer in changes:
        table.add_row(
            str(customer.customer_id), str(customer.revision), printable(customer.name), printable(customer.email)
        )
    Console().print(table)


def printable(text: str) -> Text:
    """Text from elsewhere, without what would steer the terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text), overflow="fold")


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what may go wrong becomes a message and an exit code."""
    try:
        return asyncio.run(command)
    except customers.Refused as error:
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
    app(prog_name="python -m services.customer")
