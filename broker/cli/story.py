"""``broker story``: what came of one event."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from broker.cli.common import (
    EXIT_CODES,
    AsJson,
    From,
    ago,
    app,
    at_most_one,
    file_named,
    moment,
    one_line,
    out,
    printable,
    settings,
    write,
)
from broker.cli.dead import progress
from broker.cli.log import tell
from broker.errors import ContractError
from broker.retry import length
from broker.tools.story import Attempt, Delivered, Ending, Step, Story, elapsed, how_it_ended, what_is_open
from broker.tools.story_reader import Heading, Reader, Wanted

COLOURS: dict[Ending, str] = {"retrying": "yellow", "dead": "red", "waiting": "cyan", "unrecorded": "dim"}
INTERRUPTED = "Interrupted: what was found so far."
ENDS = re.compile(r"[0-9a-fA-F-]{4,36}")
"""How an id may end."""


def duration(text: str) -> timedelta:
    """So long: ``10m``, ``2h``, ``90d``."""
    try:
        return length(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not how long. Write a number and a unit: '30s', '10m', '2h'.") from None


Which = Annotated[
    str | None,
    typer.Argument(
        metavar="[CORRELATION_ID]",
        help="The story's correlation id, or the id of any event in it; or how the correlation id ends, as "
        "`broker tail` shows it, for which the log is searched.",
        show_default=False,
    ),
]
Subject = Annotated[
    str | None, typer.Option(metavar="ID", help="Search the log for events about this instead: an order's id, say.")
]
Since = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        parser=moment,
        help="Search the log from here on, '2h' ago, or a date and time; what is found is told from its beginning. "
        "With an id: read the log from here on, and tell no earlier event.",
    ),
]
Within = Annotated[
    timedelta | None,
    typer.Option(
        metavar="DURATION",
        parser=duration,
        help="Read so much of the log after the story began, no less and no more: '10m'. Else: until everybody who "
        "has subscribed is done with it, or to the log's end.",
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        parser=file_named,
        help="Write a page with a sequence diagram and all details: story.html; '-' prints it.",
    ),
]


@app.command(epilog=EXIT_CODES, short_help="What came of one event, service by service.")
def story(
    which: Which = None,
    subject: Subject = None,
    since: Since = None,
    within: Within = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a Mermaid sequence diagram.")] = False,
    html: Html = None,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Show everything that came of one event, as it happened: who published, who handled it when, what failed, waits
    for a retry or lies among the dead letters, and who has not handled it yet. Reads the event log, disturbs nobody.
    """
    if (which is None) == (subject is None):
        taken = f" {str(html)!r} is the FILE of --html: name that, too." if html is not None and subject is None else ""
        raise typer.BadParameter(f"Which story? Give a correlation id, or --subject ID; not both.{taken}")
    at_most_one({"--html": html, "--mermaid": mermaid, "--json": as_json})
    environment = settings()
    wanted = which_one(which, subject)
    with progress("reading the event log") as told:
        reader = Reader(environment, modules or list(environment.modules), told)
        found, interrupted = read(reader, wanted, since, within)
    if isinstance(found, list):
        if interrupted:
            tell(INTERRUPTED)
        show_list(found, as_json=as_json)
    elif found is not None:
        show(found, html, mermaid=mermaid, as_json=as_json)
    if interrupted:
        sys.exit(130)


def which_one(which: str | None, subject: str | None) -> UUID | Wanted:
    """The story's id, or what to search for.

    Raises:
        ContractError: what was given is no id.
    """
    if which is None:
        return Wanted.subject(subject or "")
    try:
        return UUID(which)
    except ValueError:
        pass
    if not ENDS.fullmatch(which):
        raise ContractError(f"{which!r} is no id, nor an id's end. To search by what events are about: --subject.")
    return Wanted.ending(which)


def read(
    reader: Reader, wanted: UUID | Wanted, since: datetime | None, within: timedelta | None
) -> tuple[Story | list[Heading] | None, bool]:
    """The story; or several, to choose one. And whether somebody would not wait: then what was found so far, if any."""
    try:
        if isinstance(wanted, Wanted):
            found = asyncio.run(reader.about(wanted, since))
            if len(found) > 1:
                return found, False
            wanted, since = found[0].correlation_id, None  # it may have begun before
        return asyncio.run(reader.story(wanted, since=since, within=within)), False
    except KeyboardInterrupt:
        return reader.so_far(INTERRUPTED) or reader.headings or None, True


def show_list(found: list[Heading], *, as_json: bool) -> None:
    """Stories, to choose one."""
    if as_json:
        print(json.dumps([it.as_json() for it in found], indent=2))  # noqa: T201
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("story", "first event", "events", "published"):
        table.add_column(heading, justify="right" if heading == "events" else "left", no_wrap=heading == "story")
    for it in found:
        table.add_row(str(it.correlation_id), Text(one_line(it.name, 40), "bold"), str(it.events), f"{ago(it.at)} ago")
    console = out()
    console.print(table)
    stories = "1 story" if len(found) == 1 else f"{len(found)} stories"
    console.print(f"\n{stories}. Next: broker story {found[-1].correlation_id}", style="dim")


def show(found: Story, html: Path | None, *, mermaid: bool, as_json: bool) -> None:
    """A story, in the way that was asked for."""
    if html is not None:
        from broker.tools.story_page import page

        write("--html", html, page(found).encode())
    elif mermaid:
        from broker.tools.story_drawing import mermaid as diagram

        print(diagram(found), end="")  # noqa: T201
    elif as_json:
        print(json.dumps(found.as_json(), indent=2))  # noqa: T201
    else:
        out().print(screen(found))


def screen(found: Story) -> Group:
    """A story for people."""
    head = Text.assemble(
        (f"{one_line(found.title, 60)}\n", "bold"),
        (f"story {found.correlation_id}\n", "dim"),
        (f"{found.begun.astimezone():%Y-%m-%d %H:%M:%S}, {ago(found.begun)} ago", "dim"),
        (f", about {one_line(found.subject, 60)}" if found.subject else "", "dim"),
    )
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("at", justify="right", no_wrap=True)
    table.add_column("after", justify="right", no_wrap=True)
    table.add_column("event, and who got it", no_wrap=True, overflow="ellipsis", max_width=30)
    table.add_column("", overflow="fold", ratio=1)
    for step in found.steps:
        add_step(table, found, step)
    return Group(head, Text(), table, Text(), *closing(found))


def add_step(table: Table, found: Story, step: Step) -> None:
    """An event, and below it what each service did with it."""
    published = f"published by {one_line(step.publisher, 40)}" if step.publisher else "not in the event log"
    times = f", {step.times} times" if step.times > 1 else ""
    table.add_row(
        since_begun(found, step.at, moved=step.moved),
        elapsed(step.after) if step.after is not None else "",
        Text(printable(step.name), "bold"),
        Text(f"{published}{times}", "dim"),
    )
    for delivered, attempt in step.rows:
        add_handling(table, found, delivered, attempt)
    if not step.deliveries:
        table.add_row("", "", "", Text("nobody has handled it", "dim"))


def add_handling(table: Table, found: Story, delivered: Delivered, attempt: Attempt | None) -> None:
    """One attempt of a service; None: what is still to come, or has no record."""
    name = f"  {printable(delivered.service)}"
    if attempt is None:
        colour = COLOURS["unrecorded" if delivered.ending == "unrecorded" else "waiting"]
        table.add_row("", "", name, Text(what_is_open(delivered), colour))
        return
    it = attempt.handling
    error = f"\n{one_line(it.error, 300)}" if it.error else ""
    table.add_row(
        since_begun(found, attempt.began, moved=attempt.moved),
        Text(elapsed(attempt.after), "dim"),
        name,
        Text(f"{printable(how_it_ended(attempt))}{error}", COLOURS.get(it.outcome, "")),
    )


def since_begun(found: Story, at: datetime, *, moved: bool) -> Text:
    """When, counted from the story's beginning."""
    return Text(f"{'~' if moved else ''}{elapsed(at - found.begun)}")


def closing(found: Story) -> list[Text]:
    """How it stands, what one should know, and what to type next."""
    lines = [Text(found.summary)]
    lines += [Text(printable(note), "yellow") for note in found.notes]
    if following := next_command(found):
        lines.append(Text(following, "bold"))
    return lines


def next_command(found: Story) -> str:
    """What to type next, for the worst that there is."""
    for step, delivered in found.deliveries():
        if delivered.ending == "dead":
            return f"broker dead show {printable(delivered.service)} --id {step.id}"
    for _, delivered in found.deliveries():
        if delivered.open:
            return f"broker status {printable(delivered.service)}"
    return ""
