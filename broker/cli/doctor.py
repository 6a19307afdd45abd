"""``broker doctor``: what is wrong, why it matters, and the command that helps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import groupby
from textwrap import wrap
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, From, app, out, printable, settings, wait_for
from broker.errors import ContractError
from broker.tools import mending
from broker.tools.doctor import LOOKED_AT, Report, diagnose, examine
from broker.tools.snapshot import SEVERITIES, Finding, Severity, Snapshot, some

COLOURS: dict[Severity, str] = {"problem": "bold red", "warning": "yellow", "note": "dim"}
WIDEST = 110
"""Columns of a line that is comfortable to read."""
INDENT = " " * 9
MOST = 8
"""Findings of one kind that are told one by one."""
CODES = EXIT_CODES.replace("1 unexpected failure", "1 problems were found, or an unexpected failure")


Fix = Annotated[
    bool, typer.Option("--fix", help="Declare what the code declares and is missing. Says each thing it does.")
]
Prune = Annotated[
    bool,
    typer.Option(
        "--prune",
        help="Remove what belongs to no service, stale bindings and stale retry queues. Lists them and asks. "
        "Deletes no queue that holds anything or is consumed.",
    ),
]
Log = Annotated[int, typer.Option(min=0, metavar="N", help="How many of the event log's latest messages to look at.")]


@app.command(epilog=CODES, short_help="What is wrong, why it matters, and the command that helps.")
def doctor(
    fix: Fix = False,
    prune: Prune = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    log: Log = LOOKED_AT,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 for warnings, too.")] = False,
    modules: From = None,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with RabbitMQ, with what stands on it, and with what waits: the worst first.

    Compares it with what the code declares. Changes nothing unless told to. Exits with 1 if there is a problem; with 0
    if there is none, though there may be warnings and notes.
    """
    if yes and not prune:
        raise ContractError("--yes answers what --prune asks. Say both.")
    environment = settings()
    places = modules or list(environment.modules)

    def look() -> Snapshot:
        with busy("looking"):
            return wait_for(examine(environment, places, log=log))

    changed: dict[str, list[str]] = {}
    seen = look()
    if fix:
        changed["fixed"] = wait_for(mending.fix(seen, teller(as_json=as_json)))
        seen = look() if changed["fixed"] else seen
    if prune:
        pruned = pruning(seen, yes=yes, as_json=as_json)
        changed |= {"removed": pruned.removed, "kept": pruned.kept}
        seen = look() if pruned.removed else seen
    report = diagnose(seen)
    if as_json:
        print(json.dumps(report.as_json() | changed, indent=2))  # noqa: T201
    else:
        if fix or prune:
            out().print()
        show(report)
    if report.count("problem") or (strict and report.count("warning")):
        raise typer.Exit(1)


def pruning(seen: Snapshot, *, yes: bool, as_json: bool) -> mending.Pruned:
    """Say what would be removed, ask, and do it."""
    console = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else out()
    if not seen.listed or not seen.services:
        console.print("Nothing is pruned: it takes the code and the management API to know what belongs to no service.")
        return mending.Pruned()
    todo = mending.plan(seen)
    for kept in todo.kept:
        console.print(Text(printable(f"kept {kept}"), "yellow"))
    if not todo.steps:
        console.print("There is nothing to prune.")
        return mending.Pruned(kept=list(todo.kept))
    code = ", ".join(service.name for service in seen.services)
    console.print(Text(f"No code of these services declares what follows: {printable(code)}."))
    for step in todo.steps:
        console.print(Text(f"  {printable(step)}"))
    if not yes:
        if not sys.stdin.isatty():
            raise ContractError(f"{len(todo.steps)} things would be removed. Say --yes if so. Nothing was.")
        if not typer.confirm("Remove them?", err=as_json):
            console.print("Nothing was removed.")
            return mending.Pruned(kept=list(todo.kept))
    if todo.queues:
        console.print(Text(f"In {mending.REPORTED:.0f} s RabbitMQ will have told of all that is in hand.", "dim"))
    done = wait_for(mending.prune(seen, todo, teller(as_json=as_json)))
    done.kept[:0] = todo.kept
    return done


def teller(*, as_json: bool) -> Callable[[str], None]:
    """Says each thing as it is done."""
    console = Console(stderr=True, highlight=False, soft_wrap=True) if as_json else out()
    return lambda said: console.print(Text(printable(said), "green" if not said.startswith(("not ", "kept ")) else ""))


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Something to look at on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        yield


# -- the screen ------------------------------------------------------------------------------------------------------


def show(report: Report) -> None:
    """All of it for people. Commands stay on one line, however long, so that they can be copied."""
    console, seen = out(), report.snapshot
    width = min(console.width, WIDEST)
    version = f"RabbitMQ {seen.version}" if seen.version else "No RabbitMQ"
    head = f"{version} at {seen.settings.server} · {some(len(seen.services or ()), 'service')} in the code"
    lines = [*wrapped(head, width, "", "dim"), Text()]
    for _, same in groupby(report.findings, key=lambda it: (it.severity, it.check, it.why)):
        lines += [*finding(list(same), width), Text()]
    for why, checks in report.unknown.items():
        lines += wrapped(f"Not checked: {', '.join(checks)} ({why}).", width, "", "yellow")
    for line in [*lines, summary(report)]:
        console.print(line, soft_wrap=True)


def finding(same: list[Finding], width: int) -> Iterator[Text]:
    """Findings that matter for the same reason: what each is, why it matters, what helps."""
    severity = same[0].severity
    for number, it in enumerate(same[:MOST]):
        lines = wrapped(it.what, width, INDENT, "" if severity == "note" else "bold")
        label = severity if number == 0 else ""
        yield Text.assemble((f"{label:<{len(INDENT)}}", COLOURS[severity]), lines[0][len(INDENT) :])
        yield from lines[1:]
    if len(same) > MOST:
        yield Text(f"{INDENT}and {len(same) - MOST} more: --json lists them all")
    yield from wrapped(same[0].why, width, INDENT, "dim")
    for command in dict.fromkeys(command for it in same[:MOST] for command in it.commands):
        yield Text(f"{INDENT}  {printable(command)}", "cyan")


def wrapped(text: str, width: int, indent: str, style: str) -> list[Text]:
    """A text on lines of its own."""
    lines = wrap(printable(text), width - len(indent), break_on_hyphens=False, break_long_words=False)
    return [Text.assemble(indent, (line, style)) for line in lines] or [Text(indent)]


def summary(report: Report) -> Text:
    """How many of what."""
    counts = [(severity, report.count(severity)) for severity in SEVERITIES]
    told = ", ".join(some(count, severity) for severity, count in counts if count)
    if report.count("problem"):
        return Text(f"{told}.", "red")
    if not told:
        return Text("Nothing is wrong." if not report.unknown else "Nothing wrong was found.", "green")
    return Text(f"No problem; {told}.", "yellow" if report.count("warning") else "green")
