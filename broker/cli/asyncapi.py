"""``broker asyncapi``: what the code declares, for people and tools that speak AsyncAPI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from broker.cli.common import EXIT_CODES, From, app, file_named, settings, write
from broker.tools.discover import find_services


@app.command(epilog=EXIT_CODES, short_help="What is declared, as an AsyncAPI 3 document.")
def asyncapi(
    services: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SERVICE]...", help="Only these, and the events they publish or get. Unsaid: all."),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option("--format", metavar="yaml|json", help="Unsaid: as the name of --output ends, else yaml."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", parser=file_named, help="Write it there. Unsaid: print it.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Of the application. Unsaid: the service's name, or 'Business events'.")
    ] = None,
    version: Annotated[str, typer.Option(help="Of the application.")] = "0.0.0",
    server: Annotated[
        bool, typer.Option("--server", help="Say where RabbitMQ is, as BROKER_URL does, without the login.")
    ] = False,
    modules: From = None,
) -> None:
    """Print what the code declares as an AsyncAPI 3 document: services, events, their schemas and examples.

    The same code gives the same document, byte for byte. Nothing is asked of RabbitMQ.
    """
    from broker.tools.asyncapi import About, describe, form_of, written  # not every command needs it
    from broker.tools.catalogue import read_catalogue

    environment = settings()
    chosen = form_of(form, output)
    found = find_services(modules or environment.modules)
    about = About(tuple(services or ()), title, version, server)
    document = written(describe(found, read_catalogue(found), environment, about), chosen)
    write("--output", output or Path("-"), document)
