"""How a service of the shop opens its own database. No table and no business rule may live here.

The services share their contracts and nothing else; this module is the one exception, and stands beside the contracts
so that nothing else can join it unnoticed. SQLite needs half a dozen settings that are easy to get wrong and that no
business depends on; eight copies of them would only be eight places to get them wrong.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import AsyncAdaptedQueuePool, BigInteger, Connection, DateTime, Dialect, MetaData, TypeDecorator, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from broker import BrokerError

BUSY_TIMEOUT = 30.0  # s to wait for the other process that is writing the same SQLite file


class DatabaseUnusable(BrokerError):
    """A database cannot be opened or written. The message names it and the cause.

    A `BrokerError`, since those end a service that cannot start with one clear line and their exit code, here 1.
    """


@dataclass(frozen=True, slots=True)
class Database:
    """Sessions of one database.

    Attributes:
        write: ``async with database.write.begin() as session`` is a transaction that may write.
        read: ``async with database.read() as session`` may not; on SQLite it neither waits for a writer nor stops one.
    """

    write: async_sessionmaker[AsyncSession]
    read: async_sessionmaker[AsyncSession]


@asynccontextmanager
async def open_database(url: str, tables: MetaData) -> AsyncIterator[Database]:
    """Open a database, its missing tables (and SQLite's folder) created, and close it at the end.

    Raises:
        DatabaseUnusable: it cannot be opened, or not be written.
    """
    try:
        engine = create_engine(make_url(url))
    except (SQLAlchemyError, ImportError) as error:
        raise DatabaseUnusable(f"A database cannot be used: {error}") from error
    try:
        await _create(engine, tables)
        reading = engine.execution_options(transaction="DEFERRED")
        yield Database(
            write=async_sessionmaker(engine, expire_on_commit=False),
            read=async_sessionmaker(reading, expire_on_commit=False),
        )
    finally:
        await engine.dispose()


def create_engine(url: URL) -> AsyncEngine:
    """An engine; on SQLite one connection, in WAL mode, whose transactions begin IMMEDIATE.

    IMMEDIATE because a SQLite transaction that has read before another writer's commit can no longer write. One
    connection because SQLite has one writer: handlers of one process then wait in a fair queue, not for a busy file.
    """
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_pre_ping=True)
    engine = create_async_engine(
        url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
        connect_args={"timeout": BUSY_TIMEOUT},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions of its own
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(f"BEGIN {connection.get_execution_options().get('transaction', 'IMMEDIATE')}")

    return engine


async def _create(engine: AsyncEngine, tables: MetaData) -> None:
    try:
        if engine.dialect.name == "sqlite":
            await asyncio.to_thread(_create_folder, engine.url)
        async with engine.begin() as connection:
            await connection.run_sync(tables.create_all)
            if engine.dialect.name == "sqlite":
                # A write that changes nothing: a full or read-only disk shows now, and not at the first event.
                version = (await connection.exec_driver_sql("PRAGMA user_version")).scalar_one()
                await connection.exec_driver_sql(f"PRAGMA user_version = {version}")
    except (DBAPIError, OSError) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise DatabaseUnusable(f"The database {_name(engine.url)} cannot be used: {cause}") from error


def _create_folder(url: URL) -> None:
    if url.database not in {None, "", ":memory:"}:
        Path(_name(url)).parent.mkdir(parents=True, exist_ok=True)


def _name(url: URL) -> str:
    """A database as people know it: the path of a SQLite file, else the URL without its password."""
    if url.get_backend_name() == "sqlite" and url.database:
        return str(Path(url.database).absolute())
    return url.render_as_string(hide_password=True)


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time, aware and UTC in Python. SQLite keeps no time zone, so it is taken off and put on here."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Hundredths(TypeDecorator[Decimal]):
    """An amount of money, exact: SQLite has no decimal type, so whole hundredths are stored, which SQL can sum."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: Decimal | None, dialect: Dialect) -> int | None:
        return value if value is None else int(value.scaleb(2))

    def process_result_value(self, value: int | None, dialect: Dialect) -> Decimal | None:
        return value if value is None else Decimal(value).scaleb(-2)
