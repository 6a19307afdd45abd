"""How a service of the shop opens its own database, SQLite or PostgreSQL. No table and no business rule may live here.

The services share their contracts and nothing else; this module is the one exception, and stands beside the contracts
so that nothing else can join it unnoticed.

Whoever comes first, the service or one of its commands, creates the tables: the service's own, and those of the broker,
in which a command leaves the events that the service's process publishes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import BigInteger, DateTime, Dialect, MetaData, TypeDecorator, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from broker import DatabaseUnusable
from broker.sql.database import Meaning, in_words, meaning_of, open_store
from broker.sql.tables import make

ANSWER = 10.0
"""Seconds in which a database must answer."""


class Database:
    """Transactions of one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    def write(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A transaction that is committed at the end of the context, or rolled back by an exception.

        On SQLite it is IMMEDIATE: one that has read before another's commit could no longer write.
        """
        return self._transaction("BEGIN IMMEDIATE")

    def read(self) -> AbstractAsyncContextManager[AsyncSession]:
        """A transaction that only reads. On SQLite it neither waits for a writer nor stops one."""
        return self._transaction("BEGIN")

    @asynccontextmanager
    async def _transaction(self, begin: str) -> AsyncIterator[AsyncSession]:
        async with AsyncSession(self._engine, expire_on_commit=False) as session, session.begin():
            if self._engine.dialect.name == "sqlite":  # its driver begins none by itself
                await session.execute(text(begin))
            yield session


@asynccontextmanager
async def open_database(url: str, tables: MetaData) -> AsyncIterator[Database]:
    """Open a database, its missing tables created, and close it at the end.

    Raises:
        DatabaseUnusable: it does not answer, or takes nothing.
    """
    async with open_store(url, timeout=ANSWER, create=True) as store:
        database = Database(store.engine)

        def create(session: Session) -> None:
            make(session.connection())  # there already; but on PostgreSQL, of two who create, one waits here
            tables.create_all(session.connection())

        try:
            async with database.write() as session:
                await session.run_sync(create)
        except DBAPIError as error:
            raise DatabaseUnusable(f"The database {store.name} cannot be used: {in_words(error)}") from None
        yield database


async def prepared(url: str, tables: MetaData) -> str:
    """A database whose missing tables are created, for ``Service(database=lambda: prepared(…))``; returns the URL.

    Raises as `open_database`.
    """
    async with open_database(url, tables):
        return url


def may_pass(error: BaseException) -> bool:
    """Whether the same again, later, may work: the database is away, or another writer was faster."""
    return meaning_of(error) is not Meaning.FAILED


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
