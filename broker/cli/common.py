"""What all commands share: the app, their settings, and how they speak to people and to programs."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.text import Text

from broker import logs, retry
from broker.errors import ContractError
from broker.settings import Settings
from broker.tools.catalogue import Entry, read_catalogue
from broker.tools.discover import find_services
from broker.tools.page import printable as printable  # noqa: PLC0414  (what all commands share)

T = TypeVar("T")

WIDE = 200
"""Characters of a line where nobody says how many there may be."""

EXIT_CODES = (
    "Exit codes: 0 done · 1 unexpected failure · 2 called wrongly (arguments, contract, payload) · "
    "3 RabbitMQ not reachable · 4 refused (login, virtual host, permission) · 5 topology conflict · "
    "6 not confirmed · 7 database not usable · 130 interrupted · 143 terminated."
)

app = typer.Typer(
    help="Business events over RabbitMQ: run services, publish, watch. Settings are environment variables, BROKER_…: "
    "BROKER_URL says where RabbitMQ is (amqp://user:password@host:5672/vhost).",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

From = Annotated[
    list[str] | None,
    typer.Option(
        "--from", metavar="MODULE", help="Where to look for events and services, instead of BROKER_MODULES; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def file_named(text: str) -> Path:
    """A file to write, as the value of an option; ``-`` is stdout. Another option is none: the name was forgotten."""
    if text.startswith("-") and text != "-":
        raise typer.BadParameter(f"{text!r} is an option. Which file? Name it, or '-' to print it.")
    return Path(text)


def at_most_one(given: Mapping[str, object]) -> None:
    """Refuse two forms of output at a time.

    Args:
        given: the options' values; the empty ones were not given.
    """
    chosen = [option for option, value in given.items() if value]
    if len(chosen) > 1:
        raise typer.BadParameter(f"{' and '.join(chosen)}: one form of output at a time.")


def fail(message: str, code: int) -> NoReturn:
    """Say what is wrong, and exit."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(f"broker: {printable(message, lines=True)}"))
    sys.exit(code)


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, to Ctrl-C, or to SIGTERM."""
    terminated = False

    async def until_terminated() -> T:
        working = asyncio.current_task()

        def end() -> None:
            nonlocal terminated
            terminated = True
            if working is not None:
                working.cancel()

        if threading.current_thread() is threading.main_thread():  # signals are its own
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, end)
        return await work

    try:
        return asyncio.run(until_terminated())
    except KeyboardInterrupt:
        sys.exit(130)
    except asyncio.CancelledError:
        if terminated:
            sys.exit(143)
        raise


def settings() -> Settings:
    """The environment's settings, with log lines set up by them; unasked, a command logs nothing but warnings."""
    found = Settings()
    unasked = "logging_level" not in found.model_fields_set
    logs.configure(found.model_copy(update={"logging_level": "warning"}) if unasked else found)
    return found


def catalogue(modules: list[str] | None) -> list[Entry]:
    """What the code declares."""
    return read_catalogue(find_services(modules or Settings().modules))


def moment(text: str) -> datetime:
    """A point in time: so long ago (``1h``), or a date and time (local unless it says otherwise)."""
    try:
        return retry.moment(text, datetime.now(UTC))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no time. Write '30m', '2h', '3d' ago, or '2026-07-01T12:30'.") from None


def ago(at: datetime | None) -> str:
    """How long ago, for people."""
    return "?" if at is None else lasting((datetime.now(UTC) - at).total_seconds())


def lasting(seconds: float) -> str:
    """A duration for people, in its two largest units: ``45s``, ``12m``, ``3h 5m``, ``2d 4h``."""
    whole = max(0, round(seconds))
    parts = [(whole // 86400, "d"), (whole // 3600 % 24, "h"), (whole // 60 % 60, "m"), (whole % 60, "s")]
    told = [f"{count}{unit}" for count, unit in parts if count]
    return " ".join(told[: 1 if whole < 3600 else 2]) or "0s"


def one_line(text: str, most: int) -> str:
    """The beginning of a text, on one line."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def until(at: datetime) -> str:
    """How soon, for people."""
    left = (at - datetime.now(UTC)).total_seconds()
    return f"in {lasting(left)}" if left > 0 else "now"


def write(option: str, file: Path, content: bytes) -> None:
    """Write a file that an option names, and say so; ``-``: print it.

    Raises:
        ContractError: it cannot be written.
    """
    if str(file) == "-":
        sys.stdout.buffer.write(content)
        return
    try:
        file.write_bytes(content)
    except OSError as error:
        raise ContractError(f"{option} {file}: {error.strerror}.") from None
    out().print(Text(f"Written: {printable(str(file.resolve()))}"), soft_wrap=True)


def out() -> Console:
    """The terminal, or whatever stdout is: a file or a pipe has room."""
    fits = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if fits else WIDE)
