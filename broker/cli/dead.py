"""``broker dead``: look at what was set aside, send it back, discard it, take it along."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from broker.cli.common import (
    EXIT_CODES,
    AsJson,
    From,
    ago,
    app,
    fail,
    moment,
    one_line,
    out,
    printable,
    settings,
    wait_for,
)
from broker.errors import ContractError
from broker.settings import Settings
from broker.tools import dead as letters_of
from broker.tools.dead import Group, Letter, Mover, Outcome, Places, Which
from broker.topology import dead_queue

dead = typer.Typer(
    help="Dead letters: events that a service could not handle, set aside in <service>.dead with the reason.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(dead, name="dead", short_help="Look at dead letters, send them back, discard or export them.")

ServiceName = Annotated[str, typer.Argument(metavar="SERVICE", help="The service that could not handle them.")]
EventOption = Annotated[
    str | None, typer.Option("--event", metavar="NAME", help="Only this event: business event name or routing key.")
]
ErrorOption = Annotated[str | None, typer.Option("--error", metavar="TEXT", help="Only errors that contain this.")]
Since = Annotated[
    datetime | None, typer.Option(metavar="TIME", parser=moment, help="Only later ones: '2h' ago, or a date and time.")
]
Before = Annotated[
    datetime | None,
    typer.Option(metavar="TIME", parser=moment, help="Only earlier ones: '2h' ago, or a date and time."),
]
Ids = Annotated[list[UUID] | None, typer.Option("--id", metavar="ID", help="Only the event with this id. Repeatable.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="So many at most, the oldest first.")]
Waiting = Annotated[bool, typer.Option("--waiting", help="What waits in the retry queues, instead of dead letters.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only count.")]


@dead.command("list", epilog=EXIT_CODES, short_help="What is there, by service, event and error.")
def list_(
    service: Annotated[str | None, typer.Argument(metavar="[SERVICE]", help="Only this service's.")] = None,
    event: EventOption = None,
    error: ErrorOption = None,
    since: Since = None,
    before: Before = None,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Count dead letters by service, event and error. Looking changes nothing."""
    environment = settings()
    which = Which(event, error, since, before)
    places = places_of(environment, modules, service)
    services = [service] if service else places.services
    with progress("looking at dead letters") as told:
        groups = wait_for(letters_of.grouped(environment, services, which, told))
    if as_json:
        print(json.dumps([group.as_json() for group in groups], indent=2))  # noqa: T201
    elif groups:
        show_groups(groups)
    else:
        out().print(f"No dead letters{f' of {service}' if service else ''}{' match' if which != Which() else ''}.")


def show_groups(groups: list[Group]) -> None:
    """The groups as a table, and what to do next."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("service", "event", "count", "oldest", "newest", "error"):
        table.add_column(
            heading, justify="right" if heading in ("count", "oldest", "newest") else "left", no_wrap=heading != "error"
        )
    for group in groups:
        table.add_row(
            Text(group.service, "bold"),
            printable(group.event) or "?",
            str(group.count),
            ago(group.oldest),
            ago(group.newest),
            Text(one_line(group.example, 300), "red"),
        )
    console = out()
    console.print(table)
    first = groups[0].service
    console.print(f"\n{sum(group.count for group in groups)} in all. Next: broker dead show {first}", style="dim")


@dead.command(epilog=EXIT_CODES, short_help="Show them in full: event, headers, traceback.")
def show(
    service: ServiceName,
    event: EventOption = None,
    error: ErrorOption = None,
    since: Since = None,
    before: Before = None,
    ids: Ids = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="So many at most, the oldest first.")] = 3,
    waiting: Waiting = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Show dead letters in full: the event, its headers, the error and its traceback."""
    it = meant(service, Which(event, error, since, before, frozenset(ids or ())), modules, waiting=waiting)

    async def take() -> list[Letter]:
        return await first(it.letters(), limit)

    shown = wait_for(take())
    if as_json:
        print(json.dumps([letter.as_json() for letter in shown], indent=2))  # noqa: T201
        return
    for letter in shown:
        show_letter(letter)
    if shown:
        out().print(f"Next: broker dead redrive {service}{' --waiting' if waiting else ''}", style="dim")
    else:
        out().print(nothing(service, waiting=waiting))


async def first(found: AsyncGenerator[Letter], limit: int) -> list[Letter]:
    """The first ones."""
    taken: list[Letter] = []
    async with aclosing(found):
        async for letter in found:
            taken.append(letter)
            if len(taken) == limit:
                break
    return taken


def show_letter(letter: Letter) -> None:
    """One dead letter, for people."""
    console = out()
    envelope = letter.envelope
    console.print(
        Text.assemble((printable(letter.name) or "unreadable", "bold"), f"   {envelope.id if envelope else ''}")
    )
    facts: dict[str, str] = {"error": letter.error, "set aside": when(letter.at), "in": letter.queue}
    if handler := letter.noted("handler"):
        facts["handler"] = f"{handler}, attempt {letter.noted('attempt')}"
    facts["key"] = letter.key
    if envelope is not None:
        facts |= {
            "published": f"{when(envelope.time)}, by {envelope.source}",
            "correlation": str(envelope.story.correlation_id),
        }
    facts |= {name: str(value) for name, value in letter.headers.items()}
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        grid.add_row(Text(printable(name), "dim"), Text(printable(value, lines=True), "red" if name == "error" else ""))
    console.print(grid)
    console.print(Text(printable(payload_of(letter), lines=True)), soft_wrap=True)
    if trace := letter.noted("traceback"):
        console.print(Text(printable(str(trace).rstrip(), lines=True), "dim"), soft_wrap=True)
    console.print()


def payload_of(letter: Letter) -> str:
    """The event's data; of what is none, its bytes."""
    if letter.message is None:
        return "Its properties cannot be decoded; RabbitMQ's management UI shows it."
    if letter.envelope is not None:
        try:
            return json.dumps(letter.envelope.data, indent=2, ensure_ascii=False)
        except ValueError:
            pass
    return letter.message.body[:2000].decode(errors="backslashreplace")


def when(at: datetime | None) -> str:
    """A time, and how long ago it was."""
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S} ({ago(at)} ago)" if at else "not noted"


@dead.command(epilog=EXIT_CODES, short_help="Send them back to the failing service.")
def redrive(
    service: ServiceName,
    event: EventOption = None,
    error: ErrorOption = None,
    since: Since = None,
    before: Before = None,
    ids: Ids = None,
    limit: Limit = None,
    rate: Annotated[
        float | None, typer.Option(metavar="N", help="So many a second at most, for a service that is just up again.")
    ] = None,
    waiting: Waiting = False,
    dry_run: DryRun = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to the service that failed, and to no other: they begin their retry ladder anew.

    With --waiting: bring forward what waits in the service's retry queues; attempts are kept. Each is copied,
    confirmed, and only then removed: interrupt it wherever you like, and run it again.
    """
    if rate is not None and not rate > 0:
        raise ContractError(f"--rate {rate:g}: so many events a second, so more than 0. Without --rate: no limit.")
    it = meant(service, Which(event, error, since, before, frozenset(ids or ())), modules, waiting=waiting)
    if dry_run:
        count = counted(it, limit)
        tell({"service": service, "matched": count, "redriven": 0}, f"{count} would be redriven.", as_json=as_json)
        return
    with progress("redriving") as told:
        mover = Mover(it.environment, service, it.which, rate, limit, told)
        outcome = moved(mover, lambda: mover.redrive(it.queues), "redriven")
    document = {
        "service": service,
        "matched": outcome.matched,
        "redriven": outcome.moved,
        "unmovable": outcome.unmovable,
    }
    if not outcome.matched:
        tell(document, nothing(service, waiting=waiting), as_json=as_json)
        return
    tell(document, redriven(service, outcome), as_json=as_json)


def redriven(service: str, outcome: Outcome) -> str:
    """How many went back, and what to do with those that cannot."""
    text = f"{outcome.moved} redriven to {service}. Next: broker status {service}"
    if not outcome.unmovable:
        return text
    return (
        f"{text}\n{outcome.unmovable} stay: their properties cannot be decoded, so no copy could be faithful. "
        f"Look at them in RabbitMQ's management UI; then: broker dead discard {service} --error 'Malformed'"
    )


@dead.command(epilog=EXIT_CODES, short_help="Delete them for good. Asks first.")
def discard(
    service: ServiceName,
    event: EventOption = None,
    error: ErrorOption = None,
    since: Since = None,
    before: Before = None,
    ids: Ids = None,
    limit: Limit = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    dry_run: DryRun = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Delete dead letters for good. It counts them and asks first; `broker dead export` keeps a copy."""
    it = meant(service, Which(event, error, since, before, frozenset(ids or ())), modules, waiting=False)
    count = counted(it, limit)
    if dry_run or not count:
        text = f"{count} would be deleted." if count else nothing(service, waiting=False)
        tell({"service": service, "matched": count, "discarded": 0}, text, as_json=as_json)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ContractError(f"{count} dead letters of {service!r} would be deleted for good. Say --yes if so.")
        if not typer.confirm(f"Delete {count} dead letters of {service} for good?"):
            out().print("Nothing was deleted.")
            return
    with progress("discarding") as told:
        mover = Mover(it.environment, service, it.which, None, count, told)
        outcome = moved(mover, lambda: mover.discard(it.queues), "discarded")
    document = {"service": service, "matched": outcome.matched, "discarded": outcome.moved}
    tell(document, f"{outcome.moved} deleted from the dead letters of {service}.", as_json=as_json)


@dead.command(epilog=EXIT_CODES, short_help="Print them as JSON Lines.")
def export(
    service: ServiceName,
    event: EventOption = None,
    error: ErrorOption = None,
    since: Since = None,
    before: Before = None,
    ids: Ids = None,
    limit: Limit = None,
    waiting: Waiting = False,
    modules: From = None,
) -> None:
    """Print dead letters as JSON Lines, one each, with body, headers, error and traceback. They stay where they are."""
    it = meant(service, Which(event, error, since, before, frozenset(ids or ())), modules, waiting=waiting)

    async def write() -> None:
        count = 0
        async with aclosing(it.letters()) as found:
            async for letter in found:
                print(json.dumps(letter.as_json()), flush=True)  # noqa: T201
                count += 1
                if count == limit:
                    return

    wait_for(write())


# -- what the commands share -----------------------------------------------------------------------------------------


def places_of(environment: Settings, modules: list[str] | None, service: str | None) -> Places:
    """Where to look; says so when only the code could be asked."""
    places = wait_for(letters_of.find_places(environment, modules or environment.modules))
    if places.note:
        complain(places.note)
    if service is not None:
        letters_of.check_service(service, places)
    return places


@dataclass(frozen=True)
class Meant:
    """The letters that a command is about: which of those in these queues of a service."""

    environment: Settings
    service: str
    which: Which
    queues: list[str]

    def letters(self, told: letters_of.Progress | None = None) -> AsyncGenerator[Letter]:
        """They themselves."""
        return letters_of.letters(self.environment, self.service, self.queues, self.which, told)


def meant(service: str, which: Which, modules: list[str] | None, *, waiting: bool) -> Meant:
    """Those of a service: its dead letters, or what waits in its retry queues."""
    environment = settings()
    places = places_of(environment, modules, service)
    return Meant(environment, service, which, places.waiting(service) if waiting else [dead_queue(service)])


def counted(it: Meant, limit: int | None) -> int:
    """How many are meant."""

    async def count() -> int:
        found = 0
        async with aclosing(it.letters(told)) as letters:
            async for _ in letters:
                found += 1
                if found == limit:
                    break
        return found

    with progress("counting") as told:
        return wait_for(count())


def moved(mover: Mover, work: Callable[[], Coroutine[Any, Any, Outcome]], done: str) -> Outcome:
    """Do it; when interrupted, say how far it came."""
    try:
        return asyncio.run(work())
    except KeyboardInterrupt:
        fail(f"interrupted: {mover.outcome.moved} were {done}; the rest is where it was. Run it again.", 130)
    except BaseException:
        if mover.outcome.moved:
            complain(f"{mover.outcome.moved} were {done} before this happened; the rest is where it was.")
        raise


def nothing(service: str, *, waiting: bool) -> str:
    """What to say when there is none."""
    return (
        f"Nothing that matches waits for a retry in {service}." if waiting else f"No dead letters of {service} match."
    )


def tell(document: dict[str, Any], text: str, *, as_json: bool) -> None:
    """The end of a command, for programs or for people."""
    if as_json:
        print(json.dumps(document))  # noqa: T201
    else:
        out().print(Text(text))


def complain(text: str) -> None:
    """Something worth knowing, beside the output."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"broker: {printable(text)}", "yellow"))


@contextmanager
def progress(what: str) -> Iterator[letters_of.Progress]:
    """Progress on a terminal, gone at the end; nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
