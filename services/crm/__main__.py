"""The command line of the CRM: ``python -m services.crm --help``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
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
from services.contracts.storage import open_database
from services.crm import Settings, follow_up, records, sender, service
from services.crm.records import CustomerRecord
from services.crm.sender import State
from services.crm.store import Base

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Customer records. Without a command: run the service until SIGTERM.

    Exit codes: 0 done, 1 unexpected failure, 2 called wrongly, 7 database not usable.
    """
    if context.invoked_subcommand is None:
        service.run()


@app.command("list")
def list_customers(as_json: AsJson = False) -> None:
    """List all customers, how many orders each has placed, and the e-mails that went wrong."""
    known = run(read_all())
    if as_json:
        typer.echo(json.dumps([described(record) for record in known]))
        return
    table = Table(Column("id", no_wrap=True), "name", "e-mail", "orders", box=SIMPLE)
    for record in known:
        table.add_row(str(record.customer_id), printable(record.name), printable(record.email), str(len(record.orders)))
    Console().print(table)
    for record in known:
        tell_of_emails(record)


@app.command()
def show(customer_id: Annotated[UUID, typer.Argument(help="Which customer.")], as_json: AsJson = False) -> None:
    """Show a customer, their orders, how far each has come, and the e-mails that went wrong."""
    record = run(read_one(customer_id))
    if record is None:
        fail(f"There is no customer {customer_id}.", 2)
    if as_json:
        typer.echo(json.dumps(described(record)))
        return
    console = Console()
    console.print(printable(f"{record.name} <{record.email}>"))
    table = Table(Column("order", no_wrap=True), "placed", "total", "status", box=SIMPLE)
    for order in record.orders:
        placed = f"{order.history[0].at:%Y-%m-%d %H:%M}"
        table.add_row(str(order.order_id), placed, str(order.total), order.status)
    console.print(table)
    tell_of_emails(record)


@app.command()
def release(order_id: Annotated[UUID, typer.Argument(help="Whose e-mail.")]) -> None:
    """Send an order's follow-up e-mail that is in doubt again. If it did go out, it goes out twice."""
    state = run(let_go(order_id))
    if state is not State.IN_DOUBT:
        fail(f"The follow-up e-mail of order {order_id} is {state or 'not known here'}.", 2)
    typer.echo(f"The follow-up e-mail of order {order_id} is sent again.")


def tell_of_emails(record: CustomerRecord) -> None:
    """Say which e-mails are in doubt, or could not be sent so far, and why."""
    for order in record.orders:
        state, reason = order.follow_up.state, order.follow_up.reason
        if state is State.IN_DOUBT or reason:
            Console().print(printable(f"follow-up of order {order.order_id} {state}: {reason or 'its sender died'}"))


def described(record: CustomerRecord) -> dict[str, Any]:
    """A record as JSON, with the path of each order's follow-up e-mail, if it is written."""
    described = record.model_dump(mode="json")
    for order in described["orders"]:
        order["email"] = email_of(UUID(order["order_id"]))
    return described


def email_of(order_id: UUID) -> str | None:
    path = follow_up.outbox_path(Settings().outbox, order_id)
    return str(path) if path.exists() else None


async def let_go(order_id: UUID) -> State | None:
    async with open_database(Settings().database, Base.metadata) as database:
        return await sender.release(database, order_id)


async def read_all() -> list[CustomerRecord]:
    async with open_database(Settings().database, Base.metadata) as database:
        return await records.everybody(database)


async def read_one(customer_id: UUID) -> CustomerRecord | None:
    async with open_database(Settings().database, Base.metadata) as database:
        return await records.find(database, customer_id)


def printable(text: str) -> Text:
    """Text from elsewhere, without what would steer the terminal."""
    return Text(follow_up.one_line(text), overflow="fold")


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what may go wrong becomes a message and an exit code."""
    try:
        return asyncio.run(command)
    except ValidationError as error:
        fail("; ".join(f"CRM_{str(part['loc'][0]).upper()}: {part['msg']}" for part in error.errors()), 2)
    except DatabaseUnusable as error:
        fail(str(error), error.exit_code)
    except DBAPIError as error:
        fail(f"The database failed: {error.orig}", 1)


def fail(message: str, exit_code: int) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(exit_code)


if __name__ == "__main__":
    app(prog_name="python -m services.crm")
