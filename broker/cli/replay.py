"""``broker replay``: events of the log once more, for one service."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, From, app, lasting, out, printable, settings, wait_for
from broker.cli.log import CorrelationId, Events, Ids, Offset, Since, Subject, Until, tell, tell_reach
from broker.errors import ContractError, near_miss
from broker.settings import Settings
from broker.tools.log import Bounds, Wanted, open_log, part
from broker.tools.replay import Outcome, Replay, patterns_of, remembered, service_named, within_memory
from broker.tools.replay import Progress as Told

EVERY = 10.0
"""Seconds from one line of progress to the next, where there is no terminal."""


@app.command(epilog=EXIT_CODES, short_help="Send one service events of the log once more.")
def replay(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="Whose queue they go to.")],
    since: Since = None,
    until: Until = None,
    offset: Offset = None,
    end: Annotated[int | None, typer.Option(min=0, metavar="N", help="Up to before this number in the log.")] = None,
    event: Events = None,
    subject: Subject = None,
    correlation_id: CorrelationId = None,
    ids: Ids = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    rate: Annotated[float | None, typer.Option(metavar="N", help="So many a second at most.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Have them handled again, even if the service's inbox knows them.")
    ] = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Publish events of the log to one service's queue, and to no other service.

    Only what the service subscribes to, up to the log's end as it is now. Say from when (--since, --offset), or which
    (--id, --correlation-id). Each keeps its id: a service with a database ignores what it handled already, and gets
    nothing older than its inbox remembers; one without handles it again. With --force its inbox does not count, and
    effects happen again; what it publishes keeps its ids, so that the inboxes of others ignore it.

    Interrupt it wherever you like: it says how to go on.
    """
    if since is None and offset is None and not (ids or correlation_id):
        raise ContractError(
            "Say from when: --since 2h, --since 2026-07-01T12:30, or --offset 0, which is all; "
            "or which: --id, --correlation-id."
        )
    wanted = Wanted(events=tuple(event or ()), subject=subject, correlation_id=correlation_id, ids=frozenset(ids or ()))
    asked = Asked(service, wanted, rate, force, tuple(modules or ()), as_json)
    outcome, waiting = wait_for(perform(asked, Bounds(since, until, offset, end), dry_run=dry_run))
    for note in notes(asked, outcome):
        tell(note)
    if as_json:
        print(json.dumps(document(service, outcome, dry_run=dry_run)))  # noqa: T201
    else:
        show(service, outcome, dry_run=dry_run, waiting=waiting)


def show(service: str, outcome: Outcome, *, dry_run: bool, waiting: bool) -> None:
    """What was replayed, or would be, for people."""
    console = out()
    for name, count in sorted(outcome.events.items()):
        console.print(Text(f"{count:>8}  {printable(name)}"))
    if dry_run:
        console.print(f"{outcome.count} would be replayed to {service}.", soft_wrap=True)
        return
    waits = f" Nothing consumes its queue now: they wait until {service} starts." if waiting else ""
    console.print(f"{outcome.count} replayed to {service}.{waits} Next: broker status {service}", soft_wrap=True)


def notes(asked: Asked, outcome: Outcome) -> Iterator[str]:
    """What is worth knowing beside the count."""
    if outcome.unreadable:
        yield f"{outcome.unreadable} messages are no events, and are left out. `broker log` shows them."
    came_by = {*outcome.seen, *outcome.seen.values()}
    for name in asked.wanted.events:
        if name.casefold() not in {one.casefold() for one in came_by}:
            yield f"No event {printable(name)!r} is in that part of the log.{printable(near_miss(name, came_by))}"
    if not outcome.count:
        where = f"from {outcome.begin} to before {outcome.end}" if outcome.begin < outcome.end else "there"
        yield f"Nothing in the log {where} is what you asked for, and {asked.service} subscribes to."
    elif not asked.force:
        it = service_named(asked.service, asked.modules or Settings().modules)
        if it is None:
            yield (
                f"Whether {asked.service} has an inbox is not known: its code was not found. Without one it "
                "handles again what it has handled already. --from MODULE says where the code is."
            )
        elif it.database is None:
            yield f"{asked.service} has no database, so no inbox: it handles again what it has handled already."


@dataclass(frozen=True)
class Asked:
    """What was typed, but from where to where."""

    service: str
    wanted: Wanted
    rate: float | None
    force: bool
    modules: tuple[str, ...]
    as_json: bool

    def go_on(self, outcome: Outcome) -> str:
        """The command that does the rest."""
        it = self.wanted
        words = ["broker", "replay", self.service, "--offset", str(outcome.next), "--end", str(outcome.end)]
        words += [word for name in it.events for word in ("--event", name)]
        words += ["--subject", it.subject] if it.subject is not None else []
        words += ["--correlation-id", str(it.correlation_id)] if it.correlation_id else []
        words += [word for one in sorted(map(str, it.ids)) for word in ("--id", one)]
        words += ["--rate", f"{self.rate:g}"] if self.rate is not None else []
        words += ["--force"] if self.force else []
        words += [word for name in self.modules for word in ("--from", name)]
        words += ["--json"] if self.as_json else []
        return shlex.join(words)


async def perform(asked: Asked, bounds: Bounds, *, dry_run: bool) -> tuple[Outcome, bool]:
    """Do it, showing progress; when it does not end well, say how to go on. And whether the events wait."""
    environment = settings()
    patterns = await patterns_of(environment, asked.service, asked.modules or environment.modules)
    it = Replay(environment, asked.service, asked.wanted.of(patterns), asked.force, asked.rate)
    service = service_named(asked.service, asked.modules or environment.modules)
    async with open_log(environment, "replay") as log:
        which = await part(log, bounds)
        tell_reach(which)
        if service is not None and service.database is not None and not asked.force:
            age, whole = remembered(environment, service), which
            which = await within_memory(which, log, age)
            if which.begin > whole.begin:
                tell(
                    f"What is older than {lasting(age.total_seconds())} is left out: the inbox of {asked.service} has "
                    "forgotten it, and would have it handled again. With --force it is."
                )
        outcome = Outcome(which.begin, which.end)
        with progress(outcome) as it.progress:
            if dry_run:
                await it.count(log, outcome)
                return outcome, False
            try:
                await it.run(log, outcome)
            except BaseException:
                if outcome.next > outcome.begin:
                    tell(f"{outcome.count} were replayed; all before {outcome.next} in the log is confirmed. To go on:")
                    tell(asked.go_on(outcome), "")
                raise
    return outcome, it.waiting


def document(service: str, outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    """The outcome for programs."""
    return {
        "service": service,
        "matched": outcome.count,
        "replayed": 0 if dry_run else outcome.count,
        "events": dict(outcome.events),
        "unreadable": outcome.unreadable,
        "next": outcome.begin if dry_run else outcome.next,
        "end": outcome.end,
    }


@contextmanager
def progress(outcome: Outcome) -> Iterator[Told]:
    """Progress through the log: on a terminal a bar, gone at the end; elsewhere a line from time to time."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield told_in_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("replaying", total=max(0, outcome.end - outcome.begin))
        yield lambda outcome: bar.update(
            task, completed=outcome.next - outcome.begin, description=f"replaying {outcome.count}"
        )


def told_in_lines() -> Told:
    """Progress for a file that somebody reads."""
    last = monotonic()

    def told(outcome: Outcome) -> None:
        nonlocal last
        if monotonic() - last >= EVERY:
            last = monotonic()
            read, of = outcome.next - outcome.begin, outcome.end - outcome.begin
            tell(f"{read:,} of {of:,} messages of the log read, {outcome.count:,} events", "")

    return told
