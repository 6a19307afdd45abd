"""``broker log`` and ``broker tail``: what the event log holds, and what comes into it."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import typer
from pydantic_core import to_json
from rich.console import Console
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, app, moment, out, printable, settings, wait_for
from broker.errors import ContractError
from broker.handlings import Outcome
from broker.tools.log import Bounds, Line, Part, Wanted, check_limit, lines, open_log, part

Patterns = Annotated[list[str] | None, typer.Argument(metavar="[PATTERN]...", help="Routing keys, as in 'order.*'.")]
Since = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="TIME", help="Stored then or later: 1h ago, 2026-07-01T12:30.")
]
Until = Annotated[datetime | None, typer.Option(parser=moment, metavar="TIME", help="Stored before then.")]
Offset = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="From this number in the log on, rather than a time.")
]
Events = Annotated[
    list[str] | None,
    typer.Option("--event", metavar="NAME", help="Business event name or routing key; repeatable."),
]
Subject = Annotated[str | None, typer.Option(metavar="ID", help="Events about this entity.")]
Source = Annotated[str | None, typer.Option(metavar="NAME", help="Events that this service or program published.")]
CorrelationId = Annotated[UUID | None, typer.Option(metavar="ID", help="Events of this story.")]
Ids = Annotated[list[UUID] | None, typer.Option("--id", metavar="ID", help="This event; repeatable.")]
Handlings = Annotated[bool, typer.Option("--handlings", help="Show what became of them, too.")]

HOUR = timedelta(hours=1)
COLOURS: dict[Outcome, str] = {"handled": "green", "duplicate": "green", "retrying": "yellow", "dead": "red"}


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
    ids: Ids = None,
    handlings: Handlings = False,
    limit: Annotated[int | None, typer.Option(metavar="N", help="No more than so many.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """Look into the event log: every event, for as long as RabbitMQ keeps it. Disturbs nobody, and changes nothing.

    Unless it is said from when, the last hour is shown; of an --id or a --correlation-id, all that there is. With
    --json, one line each, with all that the log keeps of an event: what it says, and its body, headers and properties.
    What is no event is shown as such.
    """
    check_limit(limit)
    if follow and until is not None:
        raise ContractError("--follow goes on until Ctrl-C, and --until ends before. Say one of them.")
    if since is None and offset is None and not (ids or correlation_id):
        since = (until or datetime.now(UTC)) - HOUR
    wanted = Wanted(
        patterns=tuple(patterns or ()), events=tuple(event or ()), subject=subject, source=source,
        correlation_id=correlation_id, ids=frozenset(ids or ()),
    )  # fmt: skip
    bounds, printer = Bounds(since, until, offset), Printer(as_json=as_json, at_once=follow)

    async def show() -> None:
        async with open_log(settings(), declare=follow) as it:
            which = await part(it, bounds)
            tell_reach(which)
            end = None if follow else which.end
            async with aclosing(lines(it, wanted, which.begin, end, handlings=handlings)) as found:
                async for each in found:
                    left = None if limit is None else limit - printer.shown
                    printer.show(replace(each, handlings=each.handlings[:left]))
                    if printer.shown == limit:
                        return

    wait_for(show())
    if not printer.shown and not as_json:
        further = "" if since is None else " Further back: --since 7d."
        out().print(f"Nothing in the log matches.{further}")


@app.command(epilog=EXIT_CODES, short_help="Watch events as they happen.")
def tail(
    patterns: Patterns = None,
    event: Events = None,
    subject: Subject = None,
    source: Source = None,
    correlation_id: CorrelationId = None,
    handlings: Handlings = False,
    as_json: AsJson = False,
) -> None:
    """Watch events as they happen, until Ctrl-C: `broker log --follow`, from now on."""
    wanted = Wanted(
        patterns=tuple(patterns or ()), events=tuple(event or ()), subject=subject, source=source,
        correlation_id=correlation_id,
    )  # fmt: skip
    printer = Printer(as_json=as_json, at_once=True)

    async def watch() -> None:
        async with (
            open_log(settings(), "tail", declare=True) as it,
            aclosing(lines(it, wanted, "next", None, handlings=handlings)) as found,
        ):
            async for each in found:
                printer.show(each)

    wait_for(watch())


def tell(text: str, style: str = "yellow") -> None:
    """A word beside what is shown."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(text, style))


def tell_reach(which: Part) -> None:
    """Say so if the log does not reach back as far as was asked: unasked, to its beginning."""
    if which.truncated and which.reaches is None:
        tell("The log does not reach back so far: its beginning is truncated.")
    elif which.truncated and which.reaches is not None:
        tell(f"The log reaches back to {which.reaches.astimezone():%Y-%m-%d %H:%M:%S}: what was before is truncated.")


class Printer:
    """Shows messages of the log, one line each; on a terminal, no longer than it is wide.

    Args:
        as_json: for programs.
        at_once: do not collect lines before they are written.
    """

    def __init__(self, *, as_json: bool, at_once: bool) -> None:
        self._as_json = as_json
        self._at_once = at_once
        self._console = out()
        self.shown = 0

    def show(self, it: Line) -> None:
        """One message."""
        self.shown += len(it.handlings) or 1
        if self._as_json:
            document = it.as_json()
            try:
                text = json.dumps(document, allow_nan=False)
            except ValueError:
                text = to_json(document, inf_nan_mode="null").decode()
            print(text, flush=self._at_once)  # noqa: T201
        elif self._console.is_terminal:
            self._console.print(as_text(it), no_wrap=True, overflow="ellipsis")
        else:
            print(as_text(it).plain, flush=self._at_once)  # noqa: T201


def as_text(it: Line) -> Text:
    """One message for people."""
    envelope = it.envelope
    if envelope is not None:
        return Text.assemble(
            (at(envelope.time), "dim"),
            (f"  {printable(envelope.name):<26}", "bold"),
            (f" {printable(envelope.source):<10}", "cyan"),
            (f" {str(envelope.story.correlation_id)[-8:]}  ", "dim"),
            json.dumps(envelope.data, ensure_ascii=True),
        )
    if it.error:
        return Text.assemble(("unreadable ", "red"), f"{printable(it.key)}: {printable(it.error)}")
    return Text("\n").join(
        Text.assemble(
            (at(each.started), "dim"),
            (f"  {printable(each.name):<26}", "bold"),
            (f" {printable(each.service):<10}", "cyan"),
            (f" {str(each.correlation_id)[-8:]}  ", "dim"),
            (each.outcome, COLOURS[each.outcome]),
            f" after {each.took:.3f}s, attempt {each.attempt}",
            f": {printable(each.error)}" if each.error else "",
        )
        for each in it.handlings
    )


def at(time: datetime) -> str:
    """The time of day; the date, too, unless it was within the last twelve hours."""
    local = time.astimezone()
    recent = abs((datetime.now(UTC) - time).total_seconds()) < 12 * 3600
    return f"{local:%H:%M:%S.%f}"[:-3] if recent else f"{local:%Y-%m-%d %H:%M:%S.%f}"[:-3]
