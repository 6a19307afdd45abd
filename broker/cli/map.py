"""``broker map``: what is connected to what, and what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from broker.cli.common import (
    EXIT_CODES,
    AsJson,
    From,
    app,
    at_most_one,
    file_named,
    out,
    printable,
    settings,
    wait_for,
    write,
)
from broker.errors import BrokerError, ContractError
from broker.service import Service
from broker.settings import Settings
from broker.tools.discover import find_services
from broker.tools.map import Map, ServiceNode, Subscribed, Where, draw, look, mermaid
from broker.tools.map_page import page
from broker.topology import is_pattern

COLOURS: dict[Where, str] = {"code": "yellow", "live": "red"}
CODES = EXIT_CODES.replace("1 unexpected failure", "1 with --check: something does not fit, or an unexpected failure")


@app.command("map", epilog=CODES, short_help="What is connected to what, and what does not fit.")
def map_(
    code: Annotated[bool, typer.Option("--code", help="Only what the code declares; asks nobody.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Only what RabbitMQ has.")] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html", metavar="FILE", parser=file_named, help="Write a page for a browser: map.html; '-' prints it."
        ),
    ] = None,
    as_mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid flowchart.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit with 1 if anything does not fit.")] = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Services, events, bindings and queues: of the code and of RabbitMQ, laid over each other.

    Unless --code or --live is given, both are looked at; when RabbitMQ's management API cannot be reached, the code
    alone, which is said (with --check it is an error). Red is what does not fit: a queue nobody consumes, a binding no
    code declares, an event nobody hears. Changes nothing: `broker doctor` mends.
    """
    at_most_one({"--html": html, "--mermaid": as_mermaid, "--json": as_json})
    environment = settings()
    found = wait_for(read(environment, modules or [], code=code, live=live, check=check))
    if html is not None:
        write("--html", html, page(found).encode())
    elif as_json:
        print(json.dumps(found.as_json(), indent=2))  # noqa: T201
    elif as_mermaid:
        print(mermaid(found), end="")  # noqa: T201
    else:
        out().print(screen(found))
    if check and found.drift:
        raise typer.Exit(1)


async def read(environment: Settings, modules: list[str], *, code: bool, live: bool, check: bool) -> Map:
    """Look at what was asked for. What was not seen is not checked: then RabbitMQ's silence is an error."""
    services: list[Service] | None = None if live and not code else find_services(modules or environment.modules)
    if code and not live:
        return draw(services, None)
    from broker.tools.management import Management  # httpx takes a while to import

    try:
        async with Management.of(environment) as management:
            seen = await look(management, environment.exchange, environment.event_log)
            return draw(services, seen, looked_in=modules)
    except BrokerError as error:
        if live or check or services is None or isinstance(error, ContractError):
            raise
        return draw(services, None, note=f"Only of the code: {error}")


def screen(it: Map) -> RenderableType:
    """All of it for people: events, then services, then what does not fit."""
    parts: list[RenderableType] = [Text(printable(it.note), "yellow"), Text()] if it.note else []
    if not it.events and not it.services:
        return Group(*parts, Text("There is nothing yet: no code declares a service, and no queue is bound."))
    parts.append(events_table(it))
    parts += [Text(), services_table(it)] if it.live else []
    if it.drift:
        drift = Table(box=None, pad_edge=False, show_header=False)
        for each in it.drift:
            about, text = Text(printable(each.about), "bold"), Text(printable(each.text))
            drift.add_row(Text(each.kind, "red"), about, text, Text(each.help, "dim"))
        parts += [Text(), drift]
    elif it.code and it.live:
        parts += [Text(), Text("Code and RabbitMQ agree.", "green")]
    return Group(*parts)


def events_table(it: Map) -> Table:
    """Who publishes each event, and who gets it."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("publishers", "event", "key", "subscribers"):
        table.add_column(heading, overflow="fold")
    bad = it.bad
    for event in it.events:
        publishers = [service for service, published in it.published if published == event.name]
        subscribers = [subscriber(link, it.alone(link)) for link in it.subscribed if link.event == event.name]
        table.add_row(
            Text(printable(", ".join(publishers)) or "-"),
            Text(printable(event.name), "bold red" if event.name in bad else "bold"),
            Text(printable(event.key), "dim"),
            Text(", ").join(subscribers) if subscribers else Text("nobody", "yellow"),
        )
    return table


def subscriber(link: Subscribed, alone: Where | None) -> Text:
    """A service that gets an event, by which binding if it is a pattern, and whether that stands on one side alone."""
    by = f" ({printable(link.binding)})" if is_pattern(link.binding) and link.binding != link.event else ""
    return Text(printable(link.service) + by, COLOURS[alone] if alone else "")


def services_table(it: Map) -> Table:
    """How each service's queue stands."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("service", "ready", "unacked", "dead", "consumers", "in/s", "out/s"):
        table.add_column(heading, justify="left" if heading == "service" else "right")
    bad, listening = it.bad, it.listening
    for service in it.services:
        table.add_row(*service_row(service, bad=service.name in bad, listens=service.name in listening))
    return table


def service_row(service: ServiceNode, *, bad: bool, listens: bool) -> list[Text]:
    """One service."""
    name = Text(printable(service.name), "bold red" if bad else "bold")
    queue = service.queue
    if queue is None:
        return [name, Text("no queue yet" if listens else "publishes only", "dim")]
    return [
        name,
        Text(str(queue.ready)),
        Text(str(queue.unacked)),
        Text(str(queue.dead), "red" if queue.dead else ""),
        Text(str(queue.consumers), "" if queue.consumers else "red"),
        Text(f"{queue.rate_in:.1f}"),
        Text(f"{queue.rate_out:.1f}"),
    ]
