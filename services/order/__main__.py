"""The command line of the order service: ``python -m services.order --help``."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable
from typing import Annotated, Any, NoReturn, TypeVar
from uuid import UUID

import typer
from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy.exc import DBAPIError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from broker import DatabaseUnusable
from services.contracts.storage import Database, open_database
from services.order import Settings, copies, orders, service
from services.order.orders import PlacedOrder, WantedLine, WantedOrder
from services.order.store import Base

T = TypeVar("T")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(context: typer.Context) -> None:
    """Orders. Without a command: run the service until SIGTERM.

    An order that is placed is told of by the service, now or, when it does not run, once it does.

    Exit codes: 0 done, 1 unexpected failure, 2 called wrongly or order refused, 7 database not usable.
    """
    if context.invoked_subcommand is None:
        service.run()


def wanted_line(text: str) -> WantedLine:
    """Read ``ITEM=QUANTITY``."""
    item, _, quantity = text.partition("=")
    try:
        return WantedLine.model_validate({"item_id": item, "quantity": quantity})
    except ValidationError as error:
        raise typer.BadParameter(f"{text!r} is not of the form ITEM=QUANTITY: {explain(error)}") from None


@app.command()
def place(  # noqa: PLR0913, PLR0917 (each parameter is an option of the command)
    customer: Annotated[UUID | None, typer.Option(help="The id of the customer who orders.")] = None,
    address: Annotated[UUID | None, typer.Option(help="The id of the address to deliver to.")] = None,
    line: Annotated[
        list[WantedLine] | None,
        typer.Option(parser=wanted_line, metavar="ITEM=QUANTITY", help="What to deliver: an item's id, and how many."),
    ] = None,
    file: Annotated[
        typer.FileText | None,
        typer.Option(
            help='Place many, each as its line is read: {"customer_id": "…", "address_id": "…", "lines": '
            '[{"item_id": "…", "quantity": 1}]}. "-" is stdin. A refused line does not stop the others.',
            encoding="utf-8",
            errors="surrogateescape",
        ),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for a customer, item or address whose event may be on its way."),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Place an order, or many, and publish New Order Placed."""
    if (file is None) == (customer is None or address is None or not line) or (file and (customer or address or line)):
        raise typer.BadParameter("Give --customer, --address and --line, or --file.")
    if file is None:
        chosen = {
            "customer_id": customer,
            "address_id": address,
            "lines": [wanted.model_dump() for wanted in line or ()],
        }
        exit_code = run(place_each([json.dumps(chosen, default=str)], wait, as_json, where=""))
    else:
        exit_code = run(place_each(file, wait, as_json))
    raise typer.Exit(exit_code)


@app.command("list")
def list_orders(as_json: AsJson = False) -> None:
    """List all orders."""
    placed = run(read_orders())
    if as_json:
        typer.echo(json.dumps([order.model_dump(mode="json") for order in placed]))
        return
    table = Table(Column("id", no_wrap=True), "placed", "total", "status", box=SIMPLE)
    for order in placed:
        table.add_row(
            str(order.order_id),
            f"{order.history[0].at:%Y-%m-%d %H:%M}",
            str(order.total),
            order.status,
        )
    Console().print(table)


@app.command()
def show(order_id: Annotated[UUID, typer.Argument(help="Which order.")], as_json: AsJson = False) -> None:
    """Show an order and its status history."""
    order = run(read_order(order_id))
    if order is None:
        fail(f"There is no order {order_id}.", 2)
    if as_json:
        typer.echo(order.model_dump_json())
        return
    console = Console()
    console.print(f"order {order.order_id}\ncustomer {order.customer_id}\naddress {order.address_id}", highlight=False)
    table = Table("item", "name", "quantity", "price", box=SIMPLE)
    for line in order.lines:
        table.add_row(str(line.item_id), printable(line.name), str(line.quantity), str(line.price))
    console.print(table, f"total {order.total}", highlight=False)
    for reached in order.history:
        console.print(f"{reached.at:%Y-%m-%d %H:%M:%S.%f} {reached.status}", highlight=False)


@app.command("copies")
def show_copies(as_json: AsJson = False) -> None:
    """Show the local copies of customers, items and addresses."""
    known = run(read_copies())
    if as_json:
        typer.echo(known.model_dump_json())
        return
    table = Table("copy of", Column("id", no_wrap=True), "revision", "details", box=SIMPLE)
    for customer in known.customers:
        details = printable(f"{customer.name}, {customer.email}")
        table.add_row("customer", str(customer.customer_id), str(customer.revision), details)
    for item in known.items:
        table.add_row("item", str(item.item_id), str(item.revision), printable(f"{item.name}, {item.price}"))
    for address in known.addresses:
        details = printable(f"{address.street}, {address.postcode} {address.city}, {address.country}")
        table.add_row("address", str(address.address_id), str(address.revision), details)
    Console().print(table)


async def place_each(texts: Iterable[str], wait: float, as_json: bool, where: str = "line {}: ") -> int:
    """Place an order for each text, as it is read, and print it. Returns the exit code."""
    number, exit_code = 0, 0
    async with open_database(Settings().database, Base.metadata) as database:
        async for text in read_each(texts):
            number += 1
            if not text.strip():
                continue
            try:
                order = await place_when_known(database, WantedOrder.model_validate_json(text), wait)
            except (ValidationError, orders.Refused) as error:
                reason = explain(error) if isinstance(error, ValidationError) else str(error)
                typer.echo(f"{where.format(number)}{reason}", err=True)
                if as_json:
                    typer.echo(json.dumps({"line": number, "refused": reason}))
                exit_code = 2
            else:
                typer.echo(order.model_dump_json() if as_json else f"Placed order {order.order_id}: {order.total}.")
    return exit_code


async def place_when_known(database: Database, wanted: WantedOrder, wait: float) -> PlacedOrder:
    """Place an order; give what it refers to so many seconds to become known."""
    async for attempt in AsyncRetrying(
        retry=retry_if_exception_type(orders.NotKnownYet),
        stop=stop_after_delay(wait),
        wait=wait_fixed(0.1),
        reraise=True,
    ):
        with attempt:
            return await orders.place(database, wanted)
    raise AssertionError("unreachable: the last attempt raises")


async def read_orders() -> list[PlacedOrder]:
    async with open_database(Settings().database, Base.metadata) as database:
        return await orders.everything(database)


async def read_order(order_id: UUID) -> PlacedOrder | None:
    async with open_database(Settings().database, Base.metadata) as database:
        return await orders.find(database, order_id)


async def read_copies() -> copies.Copies:
    async with open_database(Settings().database, Base.metadata) as database:
        return await copies.everything(database)


async def read_each(texts: Iterable[str]) -> AsyncIterator[str]:
    """Read texts without stopping the event loop.

    A daemon thread reads, not `asyncio.to_thread`: an interrupted command must not wait for a line that never comes.
    """
    loop = asyncio.get_running_loop()
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    room = threading.Semaphore(100)

    def read() -> None:
        for text in texts:
            room.acquire()
            loop.call_soon_threadsafe(queue.put_nowait, text)
        loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=read, daemon=True).start()
    while (text := await queue.get()) is not None:
        room.release()
        yield text


def printable(text: str) -> Text:
    """Text from elsewhere, without what would steer the terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text), overflow="fold")


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run a command; what may go wrong becomes a message and an exit code."""
    try:
        return asyncio.run(command)
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
    app(prog_name="python -m services.order")
