"""``broker relay``, ``broker database``: the outbox and inbox of programs that keep them in a database of their own."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from broker.cli.common import EXIT_CODES, AsJson, ago, app, one_line, out, settings, wait_for
from broker.errors import ContractError
from broker.service import Service
from broker.service import run as run_service
from broker.settings import Settings

if TYPE_CHECKING:
    from broker.sql.report import Report

database = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The tables of inbox and outbox in a service's database: make them, look at them, retry what was set aside.",
    epilog=EXIT_CODES,
)
app.add_typer(database, name="database")

Database = Annotated[
    str | None,
    typer.Argument(
        metavar="[DATABASE]",
        help="sqlite+aiosqlite:///path or postgresql+asyncpg://user@host/name. Unsaid: BROKER_DATABASE, which is the "
        "place for a URL with a password: others on this machine can read a command's arguments.",
        show_default=False,
    ),
]


def named(chosen: str | None, environment: Settings) -> str:
    """The database that is meant.

    Raises:
        ContractError: none is named.
    """
    if chosen is None and environment.database is None:
        raise ContractError("Which database? Name it, or set BROKER_DATABASE.")
    return chosen if chosen is not None else environment.database.get_secret_value()  # type: ignore[union-attr]


@app.command(epilog=EXIT_CODES, short_help="Publish what programs put into the outbox of a database.")
def relay(chosen: Database = None) -> None:
    """Publish what is in a database's outbox, until SIGTERM or Ctrl-C.

    For programs that are no services: a web application, a batch job. A service with a database relays by itself.
    Several may run at once.
    """
    from broker.sql.database import url_of  # SQLAlchemy takes a while to import

    environment = Settings()
    url = named(chosen, environment)
    url_of(url)  # before anything is connected
    own = environment.model_copy(update={"relay": True})
    sys.exit(run_service(Service("relay", database=url), own))


@database.command(epilog=EXIT_CODES, short_help="Create the tables, or bring them up to date.")
def init(chosen: Database = None) -> None:
    """Create the tables of inbox and outbox, or bring older ones up to date. Run twice, it changes nothing more."""
    from broker.sql.report import initialise  # SQLAlchemy takes a while to import
    from broker.sql.tables import VERSION

    environment = settings()
    work = initialise(named(chosen, environment), timeout=environment.connect_timeout)
    name, found = wait_for(work)
    done = "are created" if found is None else "are as they should be" if found == VERSION else "are brought up to date"
    out().print(Text(f"The tables in {name} {done} (version {VERSION})."))


@database.command(epilog=EXIT_CODES, short_help="Print what makes the tables, for a migration.")
def sql(
    dialect: Annotated[str, typer.Option(help="postgresql or sqlite.")] = "postgresql",
    since: Annotated[
        int | None, typer.Option("--from", metavar="VERSION", help="Only what is new since this version.")
    ] = None,
) -> None:
    """Print the statements that make the tables, for those who migrate with Alembic or by hand. Touches nothing.

    BROKER_DATABASE_SCHEMA puts them into a schema of PostgreSQL.
    """
    from broker.sql.report import sql as script

    print(script(dialect, since), end="")  # noqa: T201


@database.command(epilog=EXIT_CODES, short_help="What the inbox remembers, what waits in the outbox.")
def status(chosen: Database = None, as_json: AsJson = False) -> None:
    """What waits in the outbox and since when, what can never be published and why, what the inbox remembers."""
    from broker.sql.report import look

    environment = settings()
    found = wait_for(look(named(chosen, environment), timeout=environment.connect_timeout))
    if as_json:
        print(json.dumps(found.as_json(), default=str))  # noqa: T201
    else:
        out().print(screen(found))


@database.command(epilog=EXIT_CODES, short_help="Put what was set aside back in line.")
def retry(chosen: Database = None) -> None:
    """Put what was set aside back in line: the permission is granted, or the limit raised, say."""
    from broker.sql.report import try_again

    environment = settings()
    count = wait_for(try_again(named(chosen, environment), timeout=environment.connect_timeout))
    out().print(f"{count} put back in line.")


def screen(found: Report) -> Group:
    """A report for people."""
    waiting = f"{found.waiting} wait, the oldest for {ago(found.oldest)}" if found.waiting else "nothing waits"
    aside = Text(f", {found.set_aside} set aside", style="red") if found.set_aside else Text("")
    parts: list[Text | Table] = [
        Text(f"{found.database}, tables of version {found.version}\n"),
        Text.assemble("outbox  ", waiting, aside),
    ]
    if found.shown:
        table = Table("event", "source", "since", "why", box=None, padding=(0, 2, 0, 0), header_style="dim")
        for it in found.shown:
            table.add_row(
                f"{one_line(it.name, 40)} {it.event_id[-8:]}", it.source, ago(it.at), one_line(it.reason, 120)
            )
        parts += [Text(""), table, Text("\nOnce it can be published: broker database retry")]
    inbox = [f"{it.service}: {it.entries:,} events, the oldest {ago(it.oldest)} ago" for it in found.inbox]
    parts.append(Text(f"inbox   {'; '.join(inbox) or 'empty'}"))
    return Group(*parts)
