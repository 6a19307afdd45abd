"""What people do with the tables: make them, look at them, try again what was set aside."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update

from broker.errors import DatabaseUnusable
from broker.sql.database import in_memory, open_store, refuse_schema, url_of
from broker.sql.tables import DIALECTS, UPGRADES, VERSION, inbox, outbox, statements, version, waiting

SHOWN = 20
"""Rows set aside that are shown, the oldest first."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a service's inbox holds."""

    service: str
    entries: int
    oldest: datetime


@dataclass(frozen=True, slots=True)
class SetAside:
    """An event that can never be published as it is."""

    id: int
    event_id: str
    name: str
    source: str
    at: datetime
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """How a database stands.

    Attributes:
        waiting: events in the outbox that wait to be published.
        oldest: when the first of them was added.
        set_aside: how many never can be.
        shown: the oldest of those.
    """

    database: str
    version: int
    inbox: tuple[Remembered, ...]
    waiting: int
    oldest: datetime | None
    set_aside: int
    shown: tuple[SetAside, ...]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


async def initialise(database: str, *, timeout: float) -> tuple[str, int | None]:
    """Create the tables, or bring older ones up to date; returns the database's name and the version found.

    Raises:
        DatabaseUnusable: it cannot be reached, or this user may not.
    """
    if in_memory(url_of(database)):
        raise DatabaseUnusable("A database in memory ends with this command. Name a file: sqlite+aiosqlite:///path.")
    async with open_store(database, timeout=timeout, create=True) as store:
        return store.name, store.found


def sql(dialect: str, since: int | None = None) -> str:
    """What makes the tables, or brings them up to date from a version, as a script.

    Raises:
        DatabaseUnusable: no such dialect or version.
    """
    if dialect not in DIALECTS:
        raise DatabaseUnusable(f"{dialect!r} is not supported: {' or '.join(DIALECTS)}.")
    if dialect == "sqlite":
        refuse_schema()
    if since is None:
        lines = statements(DIALECTS[dialect]())
    elif 1 <= since <= VERSION:
        lines = [statement for step in range(since + 1, VERSION + 1) for statement in UPGRADES[step]]
        lines.append(f"UPDATE {version.fullname} SET version = {VERSION}")  # noqa: S608
    else:
        raise DatabaseUnusable(f"There are tables of version 1 to {VERSION}, not {since}.")
    return "".join(f"{line};\n" for line in lines)


async def look(database: str, *, timeout: float) -> Report:
    """Read how a database stands. Raises as `broker.sql.database.open_store` does."""
    async with open_store(database, timeout=timeout, create=False) as store, store.reading() as connection:
        its = inbox.c
        kept = select(its.service, func.count(), func.min(its.handled_at)).group_by(its.service).order_by(its.service)
        lines = await connection.execute(select(func.count(), func.min(outbox.c.added_at)).where(waiting))
        count, oldest = lines.one()
        aside = (await connection.execute(select(func.count()).select_from(outbox).where(~waiting))).scalar_one()
        shown = select(outbox).where(~waiting).order_by(outbox.c.id).limit(SHOWN)
        return Report(
            database=store.name,
            version=VERSION,
            inbox=tuple(Remembered(*row) for row in await connection.execute(kept)),
            waiting=count,
            oldest=oldest,
            set_aside=aside,
            shown=tuple(
                SetAside(row.id, str(row.event_id), row.name, row.source, row.set_aside_at, row.reason)
                for row in await connection.execute(shown)
            ),
        )


async def try_again(database: str, *, timeout: float) -> int:
    """Put what was set aside back in line, at its old place; returns how many. Raises as `look` does."""
    async with open_store(database, timeout=timeout, create=False) as store, store.committing() as connection:
        back = update(outbox).where(~waiting).values(set_aside_at=None, reason=None)
        return (await connection.execute(back)).rowcount
