"""``broker log`` and ``broker tail``: what the event log holds, and what comes into it."""

from __future__ import annotations

import json
from contextlib import aclosing
from datetime import datetime
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, app, moment, out, printable, settings, wait_for
from broker.errors import ContractError
from broker.settings import Settings
from broker.tools.log import Line, Part, Wanted, check_limit, lines, open_log, part

Patterns = Annotated[list[str] | None, typer.Argument(metavar="[PATTERN]...", help="Routing keys, as in 'order.*'.")]
Since = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="TIME", help="From then on: '1h' ago, or a date.")
]
Until = Annotated[datetime | None, typer.Option(parser=moment, metavar="TIME", help="Before then.")]
Offset = Annotated[int | None, typer.Option(min=0, help="From this number in the log on, rather than a time.")]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", metavar="NAME", help="Business event name or routing key; may be repeated."),
]
Subject = Annotated[str | None, typer.Option(help="Events about this entity.")]
Source = Annotated[str | None, typer.Option(help="Events that this service or program published.")]
CorrelationId = Annotated[UUID | None, typer.Option(help="Events of this story.")]
Ids = Annotated[list[UUID] | None, typer.Option("--id", help="This event; may be repeated.")]

COLOURS = {"handled": "green", "duplicate": "green", "retrying": "yellow", "dead": "red"}


@app.command(epilog=EXIT_CODES, short_help="Look at the events of the last hour, or since whenever.")
def log(
    patterns: Patterns = None,
    since: Since = None,
    until: Until = None,
    offset: Offset = None,
    event: Events = None,
    subject: Subject = None,
    source: Source = None,
    correlation_id: CorrelationId = None,
    id_: Ids = None,
    handlings: Annotated[bool, typer.Option("--handlings", help="Show what became of them, too.")] = False,
    limit: Annotated[int | None, typer.Option(help="No more than so many.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look into the event log. Disturbs nobody, and changes nothing.

    Unsaid, the last hour is shown; with --id or --correlation-id alone, all that the log holds is searched. With --json
    each line holds all that the log keeps of a message, those that are no events included.
    """
    check_limit(limit)
    if follow and until is not None:
        raise ContractError("--follow goes on until Ctrl-C, and --until ends before. Say one of them.")
    if since is None and offset is None and not (id_ or correlation_id):
        since = moment("1h")
    wanted = Wanted(
        patterns=tuple(patterns or ()), events=tuple(event or ()), subject=subject, source=source,
        correlation_id=correlation_id, ids=frozenset(id_ or ()), since=since, until=until,
    )  # fmt: skip
    wait_for(show(settings(), wanted, offset, follow=follow, handlings=handlings, limit=limit, as_json=as_json))


@app.command(epilog=EXIT_CODES, short_help="Watch events as they happen.")
def tail(patterns: Patterns = None, as_json: AsJson = False) -> None:
    """Watch events as they happen, until Ctrl-C: `broker log --follow`, from now on."""
    wanted = Wanted(patterns=tuple(patterns or ()))
    wait_for(watch(settings(), wanted, as_json=as_json))


async def watch(environment: Settings, wanted: Wanted, *, as_json: bool) -> None:
    """Show what comes."""
    async with open_log(environment, "tail") as it, aclosing(lines(it, Part("next", None), wanted)) as found:
        async for each in found:
            show_line(each, as_json=as_json)


async def show(
    environment: Settings,
    wanted: Wanted,
    offset: int | None,
    *,
    follow: bool,
    handlings: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show what there is, and perhaps what comes."""
    shown = 0
    async with open_log(environment) as it:
        which = await part(it, wanted, offset, follow=follow)
        if which.truncated is not None:
            tell(f"The log reaches back to {which.truncated.astimezone():%Y-%m-%d %H:%M:%S} only.")
        async with aclosing(lines(it, which, wanted, handlings=handlings)) as found:
            async for each in found:
                show_line(each, as_json=as_json)
                shown += 1
                if shown == limit:
                    return
    if not shown and not as_json:
        out().print("Nothing in the log is meant by that. `broker log --since 7d` goes further back.")


def tell(text: str) -> None:
    """A word beside what is shown."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, "yellow"))


def show_line(it: Line, *, as_json: bool) -> None:
    """One message on one line; on a terminal, no longer than it is wide."""
    if as_json:
        print(json.dumps(it.as_json()), flush=True)  # noqa: T201
        return
    envelope = it.envelope
    if envelope is not None:
        text = Text.assemble(
            (f"{envelope.time.astimezone():%H:%M:%S.%f}"[:-3], "dim"),
            (f"  {printable(envelope.name):<26}", "bold"),
            (f" {printable(envelope.source):<10}", "cyan"),
            (f" {str(envelope.story.correlation_id)[-8:]}  ", "dim"),
            json.dumps(envelope.data, ensure_ascii=True),
        )
    elif it.error:
        text = Text.assemble(("unreadable ", "red"), f"{printable(it.key)}: {printable(it.error)}")
    else:
        text = Text("\n").join(
            Text.assemble(
                (f"{each.started.astimezone():%H:%M:%S.%f}"[:-3], "dim"),
                (f"  {printable(each.service)} ", "cyan"),
                (
                    each.outcome,
                    "red" if each.outcome == "dead" else "yellow" if each.outcome == "retrying" else "green",
                ),
                f" {printable(each.name)} {each.event_id}" + (f": {printable(each.error)}" if each.error else ""),
            )
            for each in it.entry.handlings
        )
    console = out()
    if console.is_terminal:
        console.print(text, no_wrap=True, overflow="ellipsis")
    else:
        console.print(text, soft_wrap=True)
