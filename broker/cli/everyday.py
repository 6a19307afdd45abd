"""Run a service, publish, watch, and see what is declared."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import ValidationError
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, From, app, catalogue, out, settings, wait_for
from broker.envelope import reason
from broker.errors import BrokerError, ContractError
from broker.publisher import Broker
from broker.service import check_backfill
from broker.service import run as run_service
from broker.tools.catalogue import Entry, find_event
from broker.tools.discover import load_service


def complete_event(incomplete: str) -> list[str]:
    """Names for the shell to complete."""
    try:
        names = {entry.event.__contract__.name for entry in catalogue(None)}
    except (BrokerError, ValidationError):
        return []
    return sorted(name for name in names if name.casefold().startswith(incomplete.casefold()))


EventName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Business event name, routing key or class name.", autocompletion=complete_event
    ),
]


@app.command(epilog=EXIT_CODES, short_help="Run one service process.")
def run(
    service: Annotated[str, typer.Argument(metavar="MODULE[:SERVICE]", help="Where the service is.")],
    backfill: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="A first start reads the event log since then, before its queue: 7d ago, 2026-07-01T12:30, "
            "or first: all of it. Goes on where it was interrupted.",
        ),
    ] = None,
) -> None:
    """Run one service process until SIGTERM or Ctrl-C: it then finishes what is in hand, and exits."""
    if backfill is not None:
        check_backfill(backfill)
    sys.exit(run_service(load_service(service), backfill=backfill))


@app.command(epilog=EXIT_CODES, short_help="Publish one event, and say who gets it.")
def publish(
    name: EventName,
    data: Annotated[str, typer.Option(metavar="JSON|@FILE|-", help="The payload; @FILE reads a file, - stdin.")] = "{}",
    version: Annotated[int | None, typer.Option(help="Version of the event. Default: the newest.")] = None,
    source: Annotated[str, typer.Option(help="Who publishes.")] = "cli",
    correlation_id: Annotated[UUID | None, typer.Option(help="The story it belongs to. Default: a new one.")] = None,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Publish an event: validated against its class, confirmed by RabbitMQ. Says who will get it."""
    environment = settings()
    entry = find_event(catalogue(modules), name, version)
    contract = entry.event.__contract__
    try:
        event = entry.event.model_validate_json(payload(data), extra="forbid")
    except ValidationError as error:
        raise ContractError(
            f"This is no {contract.name!r}: {reason(error)}. `broker events '{contract.name}'` shows its fields."
        ) from None

    async def send() -> UUID:
        async with Broker(source=source, settings=environment) as broker:
            return await broker.publish(event, correlation_id=correlation_id)

    event_id = wait_for(send())
    subscribers = [it.service for it in entry.subscribers]
    if as_json:
        document = {"id": str(event_id), "name": contract.name, "key": contract.key, "subscribers": subscribers}
        print(json.dumps(document))  # noqa: T201
        return
    who = f"Subscribed: {', '.join(subscribers)}." if subscribers else "Nobody has subscribed to it."
    kept = " The event log keeps it." if environment.log else ""
    out().print(Text.assemble(("confirmed ", "green"), f"{contract.name} ", (str(event_id), "dim"), f"\n{who}{kept}"))


def payload(data: str) -> bytes:
    """The payload that ``--data`` names.

    Raises:
        ContractError: the file cannot be read.
    """
    if data == "-":
        return sys.stdin.buffer.read()
    if not data.startswith("@"):
        return data.encode()
    try:
        return Path(data[1:]).read_bytes()
    except OSError as error:
        raise ContractError(f"--data {data}: {error.strerror}: {data[1:]}") from None


@app.command(epilog=EXIT_CODES, short_help="Who publishes what, and who subscribes.")
def events(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Show this one, with its fields and schema.", autocompletion=complete_event
        ),
    ] = None,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """List the events that the code declares: who publishes, who subscribes, and why. With NAME: all about one."""
    entries = catalogue(modules)
    if name is not None:
        entries = [find_event(entries, name)]
    if as_json:
        documents = [entry.as_json() for entry in entries]
        print(json.dumps(documents[0] if name is not None else documents, indent=2))  # noqa: T201
    elif name is not None:
        show_event(entries[0])
    elif entries:
        show_events(entries)
    else:
        out().print("No events are declared there. Name another place: --from MODULE.")


def show_events(entries: list[Entry]) -> None:
    """The catalogue as a table."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("event", "key", "version", "published by", "subscribed by"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "key")
    for entry in entries:
        contract = entry.event.__contract__
        table.add_row(
            Text(contract.name, "bold"),
            contract.key,
            str(contract.version),
            Text(", ".join(entry.publishers) or "nobody", "" if entry.publishers else "yellow"),
            Text(
                ", ".join(it.service + ("" if it.exact else f" ({it.binding})") for it in entry.subscribers)
                or "nobody",
                "" if entry.subscribers else "yellow",
            ),
        )
    out().print(table)


def show_event(entry: Entry) -> None:
    """One event: what it means, its fields, who publishes and who gets it."""
    contract, console = entry.event.__contract__, out()
    head = Text.assemble((contract.name, "bold"), f"   {contract.key}   version {contract.version}")
    console.print(head)
    if entry.title:
        console.print(Text(entry.title, "italic"))
    console.print()
    fields = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("field", "type", ""):
        fields.add_column(heading)
    for field, info in entry.event.model_fields.items():
        notes = ["the subject"] if field == contract.subject else []
        notes += [] if info.is_required() else ["optional"]
        notes += [info.description] if info.description else []
        fields.add_row(field, type_name(info.annotation), ", ".join(notes))
    console.print(fields)
    console.print()
    console.print(Text("published by   ", "dim") + Text(", ".join(entry.publishers) or "nobody"))
    for position, it in enumerate(entry.subscribers):
        label = "subscribed by  " if position == 0 else " " * 15
        console.print(Text(label, "dim") + Text(f"{it.service}: {it.handler} ({it.why})"))
    if not entry.subscribers:
        console.print(Text("subscribed by  ", "dim") + Text("nobody"))
    console.print()
    console.print(Panel(json.dumps(entry.event.model_json_schema(), indent=2), title="JSON Schema", title_align="left"))


def type_name(annotation: Any) -> str:
    """A type as one writes it."""
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
