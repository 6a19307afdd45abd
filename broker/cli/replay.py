"""``broker replay``: events of the log once more, for one service."""

from __future__ import annotations

import json
import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, From, app, out, printable, settings, wait_for
from broker.cli.log import CorrelationId, Events, Ids, Offset, Since, Subject, Until, tell
from broker.errors import ContractError
from broker.settings import Settings
from broker.tools.log import Wanted, open_log, part
from broker.tools.replay import Outcome, Replay, patterns_of


@app.command(epilog=EXIT_CODES, short_help="Events of the log once more, for one service.")
def replay(
    service: Annotated[str, typer.Argument(metavar="SERVICE", help="Whose queue they go to.")],
    since: Since = None,
    until: Until = None,
    offset: Offset = None,
    event: Events = None,
    subject: Subject = None,
    id_: Ids = None,
    correlation_id: CorrelationId = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count them.")] = False,
    rate: Annotated[float | None, typer.Option(help="No more than so many events a second.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Have them handled again, even if the service's inbox knows them.")
    ] = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Publish events of the log to one service's queue, and to no other service.

    Only what the service subscribes to, up to the log's end as it is now; say from when: --since, or --offset, or which
    events. Each keeps its id: an inbox (a service with a database) ignores what was handled already. A service without
    one handles it again. With --force the inbox does not count: effects happen again; what the handlers publish keeps
    its ids, so that inboxes further on ignore it.

    Safe to interrupt: the last line is the command that goes on.
    """
    if since is None and offset is None and not (id_ or correlation_id):
        raise ContractError("Say from when: --since 2h, --since 2026-07-01T12:30 or --offset 0; or which: --id.")
    environment = settings()
    wanted = Wanted(
        events=tuple(event or ()), subject=subject, correlation_id=correlation_id, ids=frozenset(id_ or ()),
        since=since, until=until,
    )  # fmt: skip
    places = modules or list(environment.modules)
    outcome = wait_for(perform(environment, service, places, wanted, offset, dry_run=dry_run, rate=rate, force=force))
    if as_json:
        print(json.dumps(told(service, outcome, dry_run=dry_run)))  # noqa: T201
        return
    console = out()
    for name, count in sorted(outcome.events.items()):
        console.print(Text(f"{count:>8}  {printable(name)}"))
    if outcome.unreadable:
        tell(f"{outcome.unreadable} messages of the log are no events, and were left out.")
    if dry_run:
        console.print(f"{outcome.count} would be replayed.")
    else:
        console.print(f"{outcome.count} replayed to {service}. Next: broker status {service}")


def told(service: str, outcome: Outcome, *, dry_run: bool) -> dict[str, Any]:
    """The outcome for programs."""
    return {
        "service": service,
        "dry_run": dry_run,
        "replayed": 0 if dry_run else outcome.count,
        "matched": outcome.count,
        "events": dict(outcome.events),
        "unreadable": outcome.unreadable,
        "next_offset": outcome.next,
    }


async def perform(
    environment: Settings,
    service: str,
    modules: list[str],
    wanted: Wanted,
    offset: int | None,
    *,
    dry_run: bool,
    rate: float | None,
    force: bool,
) -> Outcome:
    """Do it, showing progress; when it does not end well, say how to go on."""
    it = Replay(environment, service, tuple(await patterns_of(environment, service, modules)), wanted, force, rate)
    async with open_log(environment, "replay") as log:
        which = await part(log, wanted, offset)
        if which.truncated is not None:
            tell(f"The log reaches back to {which.truncated.astimezone():%Y-%m-%d %H:%M:%S} only.")
        if dry_run:
            return await it.count(log, which)
        outcome = it.begun(which)
        try:
            with progress(outcome) as it.progress:
                await it.run(log, which, outcome)
        except BaseException:
            if outcome.count:
                tell(f"{outcome.count} are replayed: all before {outcome.next} in the log. This goes on:")
                tell(go_on(outcome))
            raise
        return outcome


def go_on(outcome: Outcome) -> str:
    """The command as it was typed, but from where it got to."""
    words, skip = ["broker"], False
    for word in sys.argv[1:]:
        if not skip and word not in ("--offset",) and not word.startswith("--offset="):
            words.append(word)
        skip = word == "--offset"
    return shlex.join([*words, "--offset", str(outcome.next)])


class progress:  # noqa: N801  (used as a function)
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self, outcome: Outcome) -> None:
        columns = (TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("", total=max(0, outcome.end - outcome.begin))
        self._begin = outcome.begin

    def __enter__(self) -> Any:
        self._bar.start()
        return lambda outcome: self._bar.update(self._task, completed=outcome.next - self._begin)

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
